"""Measure the CPU time of the spectrum of one dense update, and of a LoRA extracted from it.

Each pair is taken in one process with one BLAS thread, ours and the reference in turn, so that a
busy machine slows both alike; a ratio is the median over the pairs. Three made-up updates: the
values fall like i^-0.7 above noise, as those of fine-tunes do ("falling"), pure noise
("noise", the worst case of a search for the largest values), and "falling" that was rounded with
its weights to bfloat16.

  spectrum   the whole spectrum against scipy.linalg.svdvals; target 1/2
  topk       the largest 64 values against the whole spectrum by "auto"; target 1/20
  density    estimates against the whole spectrum by "auto"
  extract    rank 32 against torch.linalg.svd and a cut, which is what mergekit does; target 1/5,
             and an error at most 0.1 % above the optimum
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import ml_dtypes
import numpy as np
from threadpoolctl import threadpool_limits

from analysis import extract
from analysis.numerics import decompose
from analysis.update import DenseUpdate, LowRankUpdate

SHAPE = (4096, 4096)
K, R = 64, 32
TARGETS = {"spectrum": 1 / 2, "topk": 1 / 20, "extract": 1 / 5}
NEAR = 1.001  # an extracted LoRA's error over that of the optimum, at most


def update(kind: str, shape: tuple[int, int], seed: int = 0) -> DenseUpdate:
    """Return a made-up update of float32; kind: "falling", "noise" or "bfloat16"."""
    rng = np.random.default_rng(seed)
    d_out, d_in = shape
    W = rng.standard_normal(shape, dtype=np.float32)
    if kind != "noise":
        r = min(256, *shape)
        B = rng.standard_normal((d_out, r), dtype=np.float32) * np.arange(1, r + 1) ** -0.7
        W = W * np.float32(0.02) + B.astype(np.float32) @ rng.standard_normal(
            (r, d_in), dtype=np.float32
        )
    if kind == "bfloat16":
        W0 = rng.standard_normal(shape, dtype=np.float32).astype(ml_dtypes.bfloat16)
        tuned = (W0.astype(np.float32) + 1e-2 * W).astype(ml_dtypes.bfloat16)
        W = tuned.astype(np.float32) - W0.astype(np.float32)
    return DenseUpdate(kind, shape, lambda: W)


def in_turn(
    ours: Callable[[], object], reference: Callable[[], object], repeat: int
) -> tuple[list[float], list[float]]:
    """Return the CPU seconds of both, taken in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat):
        for work, into in zip((ours, reference), times, strict=True):
            start = time.process_time()
            work()
            into.append(time.process_time() - start)
    return times


def report(name: str, kind: str, ours: list[float], reference: list[float]) -> bool:
    """Print one line; return whether the target is missed."""
    share = statistics.median(a / b for a, b in zip(ours, reference, strict=True))
    target = TARGETS.get(name)
    beside = "" if target is None else f" (target {target:.2f})"
    print(
        f"{name:9} {kind:9} cpu {statistics.median(ours):.2f} s, reference"
        f" {statistics.median(reference):.2f} s, ratio {share:.3f}{beside}",
        flush=True,
    )
    return target is not None and share > target


def spectra(kind: str, shape: tuple[int, int], repeat: int) -> bool:
    """Compare the whole spectrum with scipy's, and the partial ones with the whole spectrum."""
    import scipy.linalg

    given = update(kind, shape)
    W = given.load().astype(np.float64)

    def by(method: str) -> Callable[[], object]:
        return lambda: decompose.spectrum(given, decompose.Method(method, K))

    missed = report("spectrum", kind, *in_turn(by("auto"), lambda: scipy.linalg.svdvals(W), repeat))
    for method in ("topk", "density"):
        missed |= report(method, kind, *in_turn(by(method), by("auto"), repeat))
        found = decompose.spectrum(given, decompose.Method(method, K))
        print(f"{'':19} error bound {found.error_bound / found.s[0]:.1e} of the largest value")
    return missed


def extraction(kind: str, shape: tuple[int, int], repeat: int) -> bool:
    """Compare an extracted LoRA with one that is cut from torch.linalg.svd."""
    import torch

    given = update(kind, shape)
    found: dict[str, LowRankUpdate] = {}

    def ours() -> None:
        factors = extract.factors(given, R, None)
        assert factors is not None
        found["ours"] = factors

    def theirs() -> None:
        U, s, Vh = torch.linalg.svd(torch.from_numpy(given.load()), full_matrices=False)
        B, A = (U[:, :R] * s[:R]).numpy(), Vh[:R].numpy()
        found["theirs"] = LowRankUpdate(kind, B, A)

    missed = report("extract", kind, *in_turn(ours, theirs, repeat))
    errors = {name: extract.compared(given, one, turned=False)[1] for name, one in found.items()}
    share = errors["ours"] / errors["theirs"]
    print(f"{'':19} error {errors['ours']:.6f}, over theirs {share:.6f} (target {NEAR})")
    return missed or share > NEAR


def main(argv: list[str] | None = None) -> int:
    """Run the comparisons, print their lines and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dense",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", type=int, nargs=2, default=SHAPE, metavar=("D_OUT", "D_IN"))
    parser.add_argument("--repeat", type=int, default=3, help="pairs of each (default 3)")
    parser.add_argument("--only", choices=("spectra", "extract"), help="one of the two halves")
    arguments = parser.parse_args(argv)
    shape = tuple(arguments.shape)
    print(f"{shape[0]}×{shape[1]}, one BLAS thread, {arguments.repeat} pairs")
    import torch

    torch.set_num_threads(1)
    missed = False
    with threadpool_limits(1, "blas"):
        for kind in ("falling", "noise", "bfloat16"):
            if arguments.only != "extract":
                missed |= spectra(kind, shape, arguments.repeat)
            if arguments.only != "spectra":
                missed |= extraction(kind, shape, arguments.repeat)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
