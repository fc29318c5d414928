"""Measure how time and memory of spectra grow with rank, width and number of layers.

Writes adapters, or full fine-tunes in bfloat16, of square matrices; one size changes at a time, and
each case is analysed in a process of its own, by one thread. Prints CPU seconds and memory beyond
those of a small case, and the exponents of the power laws fitted to the larger half of each series
beside the expected ones: Gram matrices of factors take d·r², dense ones d³; memory is that of a few
modules, whatever the number of layers.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

# Analyse a small case, so that everything is imported, then the case.
MEASURE = """
import json, resource, sys, time
from analysis import spectrum
def used(paths):
    start = time.process_time()
    assert not spectrum.analyse(paths[0], base=paths[1] if len(paths) > 1 else None).skipped
    return time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small, large = (used(paths) for paths in json.loads(sys.argv[1]))
print(json.dumps([large[0], large[1] - small[1]]))
"""
KINDS = 4  # matrices in a layer


@dataclass(frozen=True)
class Series:
    """Cases in which one size changes.

    name: the size; sizes: its values.
    case: from a value, the rank (None: dense), the width and the number of layers.
    time, memory: the expected exponents.
    """

    name: str
    sizes: Sequence[int]
    case: Callable[[int], tuple[int | None, int, int]]
    time: float
    memory: float


SERIES = (
    Series("r", (8, 16, 32, 64, 128, 256, 512), lambda r: (r, 4096, 8), 2, 1),
    Series("d", (1024, 2048, 4096, 8192, 16384), lambda d: (32, d, 8), 1, 1),
    Series("layers", (8, 16, 32, 80), lambda n: (16, 4096, n), 1, 0),
    Series("d, dense", (1024, 2048, 4096, 8192, 16384), lambda d: (None, d, 1), 3, 2),
    Series("layers, dense", (8, 16, 32, 80), lambda n: (None, 1024, n), 1, 0),
)
SMALL = (
    Series("r", (8, 16, 32), lambda r: (r, 512, 1), 2, 1),
    Series("layers, dense", (1, 2), lambda n: (None, 128, n), 1, 0),
)


def write(directory: Path, r: int | None, d: int, layers: int) -> list[str]:
    """Write an adapter of rank r, or a full fine-tune and its base; return their paths."""
    rng = np.random.default_rng(0)
    names = [f"layers.{i}.{kind}" for i in range(layers) for kind in "qkvo"[:KINDS]]

    def matrix(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32).astype(ml_dtypes.bfloat16)

    directory.mkdir(parents=True)
    if r is None:
        for model in ("tuned", "base"):
            (directory / model).mkdir()
            weights = {f"{name}.weight": matrix(d, d) for name in names}
            save_file(weights, directory / model / "model.safetensors")
        return [str(directory / "tuned"), str(directory / "base")]
    tensors = {}
    for name in names:
        tensors[f"base_model.model.{name}.lora_A.weight"] = matrix(r, d)
        tensors[f"base_model.model.{name}.lora_B.weight"] = matrix(d, r)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": r, "lora_alpha": r, "target_modules": list("qkvo")}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return [str(directory)]


def measure(case: tuple[int | None, int, int], repeat: int) -> tuple[float, float]:
    """Return the median CPU seconds and bytes of a case."""
    r, d, layers = case
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        small = write(Path(temporary, "small"), r and min(r, 8), 64, 1)
        large = write(Path(temporary, "large"), r, d, layers)
        command = [sys.executable, "-c", MEASURE, json.dumps([small, large])]
        for _ in range(repeat):
            done = subprocess.run(
                command, env=os.environ | one_thread, capture_output=True, text=True, check=True
            )
            found.append(json.loads(done.stdout))
    seconds, memory = zip(*found, strict=True)
    return statistics.median(seconds), statistics.median(memory)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of log(value) over log(size), fitted to the larger half of the sizes.

    nan if a value is not positive.

    >>> round(exponent([1, 2, 4, 8], [9, 5, 16, 128]), 6)
    3.0
    """
    half = len(sizes) // 2 if len(sizes) > 2 else 0
    sizes, values = sizes[half:], values[half:]
    if min(values) <= 0:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every series and print its cases and exponents; nothing is judged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each case (default 3)")
    parser.add_argument("--small", action="store_true", help="a few small cases, to try it out")
    parser.add_argument("--series", help="only those whose name contains this text")
    arguments = parser.parse_args(argv)
    for series in SMALL if arguments.small else SERIES:
        if arguments.series and arguments.series not in series.name:
            continue
        seconds, memory = [], []
        for size in series.sizes:
            used = measure(series.case(size), arguments.repeat)
            seconds.append(used[0])
            memory.append(used[1])
            print(f"{series.name} = {size}: {used[0]:.3g} s, {used[1] / 1e6:.0f} MB", flush=True)
        print(
            f"{series.name}: time ∝ size^{exponent(series.sizes, seconds):.2f}"
            f" (expected {series.time:g}), memory ∝ size^{exponent(series.sizes, memory):.2f}"
            f" (expected {series.memory:g})",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
