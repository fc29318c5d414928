"""Compare the commands that write adapters with a peer's, side by side in one run.

Writes a made-up LoRA adapter with LLaMA-7B's shapes (32 layers × 7 kinds of module), r = 16, to a
temporary directory; its singular values fall by a factor of 0.6 to 0.9, one for each module. Each
command is a process of its own from the shell to the written file, ours and the peer's in turn, so
that a busy machine slows both alike; a ratio is the median over neighbouring runs. Errors are those
of the written files against the adapter, measured here from factors, not what a command prints.

A peer lives in an environment of its own, DIR/NAME; one that is not there is named and left out:

  python -m venv DIR/gradience
  DIR/gradience/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
  DIR/gradience/bin/pip install gradience==0.11.0

Targets: truncate in at most 1/3 of the time of `gradience truncate`, and never a larger error;
merge of two adapters to r = 16 in at most 1/5 of the time of `gradience merge` and of PEFT's
`add_weighted_adapter("svd")` (of one layer, which takes it minutes), within 1e-6 of the optimum.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from analysis import checkpoint
from analysis.numerics import compress, decompose
from analysis.pairs import combine
from analysis.update import LowRankUpdate
from benchmarks.spectrum import LAYERS, SHAPES, measure

R = 16
DECAY = (0.6, 0.9)
ENERGY = 0.95
TRUNCATE_TARGET = 1 / 3
MERGE_TARGET = 1 / 5
ROUNDING = 1e-6  # by which an error may exceed a peer's that is the optimum too


@dataclass(frozen=True)
class Setting:
    """What every comparison gets.

    parent: a temporary directory. peers: the directory of their environments, or None.
    repeat: runs per command. layers: of the model. shrink: by which its widths are divided.
    """

    parent: Path
    peers: Path | None
    repeat: int
    layers: int = LAYERS
    shrink: int = 1

    def peer(self, name: str, program: str) -> Path | None:
        """Return a peer's program; None, with a line that says so, if it is not installed."""
        place = self.peers / name / "bin" / program if self.peers else None
        if place is None or not place.exists():
            print(f"  {name}: left out, no {place or f'--peers DIR with {name}/'}")
            return None
        return place


def write_adapter(directory: Path, setting: Setting, seed: int = 0) -> Path:
    """Write a LoRA adapter with decaying singular values, as PEFT does; return its directory.

    Rank R, α = 2R, float32.
    """
    directory.mkdir()
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(setting.layers):
        for module, shape in SHAPES.items():
            d_out, d_in = (d // setting.shrink for d in shape)
            A = rng.standard_normal((R, d_in), dtype=np.float32) * d_in**-0.5
            B = rng.standard_normal((d_out, R), dtype=np.float32) * d_out**-0.5
            name = f"base_model.model.model.layers.{layer}.{module}.lora"
            decay = (rng.uniform(*DECAY) ** np.arange(R)).astype(np.float32)
            tensors |= {f"{name}_A.weight": A * decay[:, None], f"{name}_B.weight": B}
    targets = sorted(module.split(".")[-1] for module in SHAPES)
    config = {"peft_type": "LORA", "r": R, "lora_alpha": 2 * R, "target_modules": targets}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def updates(path: Path) -> dict[str, LowRankUpdate]:
    """Return the updates of an adapter by module."""
    return {e.name: e for e in checkpoint.scan(path) if isinstance(e, LowRankUpdate)}


def error(path: Path, exact: dict[str, LowRankUpdate]) -> float:
    """Return ‖ΔW − ΔW'‖/‖ΔW‖ over all modules of a written adapter.

    Raises KeyError if it lacks a module.
    """
    found = updates(path)
    sizes = np.array([compress.norm([(1.0, update)]) for update in exact.values()])
    errors = np.array([compress.error(update, found[name]) for name, update in exact.items()])
    return float(np.linalg.norm(sizes * errors) / np.linalg.norm(sizes))


def size(path: Path) -> float:
    """Return the megabytes of the weights in an adapter's directory."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) / 1e6


def in_turn(
    commands: Sequence[list[str]], repeat: int
) -> tuple[list[list[float]], list[float], list[float]]:
    """Run commands in turn; return the wall seconds of each, and the peak MB and CPU seconds."""
    walls: list[list[float]] = [[] for _ in commands]
    peaks, cpus = [0.0] * len(commands), [0.0] * len(commands)
    for i in range(repeat):
        for j in range(len(commands)):
            k = (i + j) % len(commands)
            wall, cpus[k], peak = measure(commands[k])
            walls[k].append(wall)
            peaks[k] = max(peaks[k], peak)
    return walls, peaks, cpus


def ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median ratio of times that were taken next to one another."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def line(name: str, walls: Sequence[float], peak: float, cpu: float, out: Path, far: float) -> None:
    """Print one line for a command: its times, memory, and what it wrote."""
    print(
        f"  {name}: wall {statistics.median(walls):.2f} s (best {min(walls):.2f}, worst"
        f" {max(walls):.2f}), cpu {cpu:.2f} s, peak {peak:.0f} MB, wrote {size(out):.1f} MB,"
        f" relative error {far:.9f}",
        flush=True,
    )


def truncation(setting: Setting) -> bool:
    """Compare `analysis.truncate` with `gradience truncate`; return whether a target is missed.

    Ours goes to 95 % of the energy. The peer knows one rank for all modules: it gets the largest
    that ours keeps, and ours goes to that rank as well, so that errors can be compared.
    """
    adapter = write_adapter(setting.parent / "adapter", setting)
    exact = updates(adapter)
    print(f"truncate: {len(exact)} modules, r = {R}, float32, {size(adapter):.0f} MB")

    def ours(out: Path, *how: str) -> list[str]:
        program = [sys.executable, "-m", "analysis.truncate", str(adapter)]
        return [*program, *how, "--out", str(out), "--force"]

    by_energy, by_rank, theirs = (setting.parent / name for name in ("energy", "rank", "peer"))
    measure(ours(by_energy, "--energy", str(ENERGY)))
    rank = max(update.r for update in updates(by_energy).values())
    names = [f"truncate --energy {ENERGY}", f"truncate --rank {rank}"]
    places = [by_energy, by_rank]
    commands = [ours(by_energy, "--energy", str(ENERGY)), ours(by_rank, "--rank", str(rank))]
    if peer := setting.peer("gradience", "gradience"):
        names.append(f"gradience truncate --rank {rank}")
        places.append(theirs)
        arguments = ["--peft-dir", str(adapter), "--out-dir", str(theirs), "--rank", str(rank)]
        commands.append([str(peer), "truncate", *arguments, "--dtype", "fp32"])
    walls, peaks, cpus = in_turn(commands, setting.repeat)
    errors = [error(place, exact) for place in places]
    for row in zip(names, walls, peaks, cpus, places, errors, strict=True):
        line(*row)
    if not peer:
        return False
    share = ratio(walls[0], walls[2])
    print(f"  time against gradience: {share:.3f} (target {TRUNCATE_TARGET:.3f})")
    return share > TRUNCATE_TARGET or errors[1] > errors[2] * (1 + ROUNDING)


# PEFT in a model whose weights take no memory: each is one number, seen d_out × d_in times.
PEFT_MERGE = """
import json, sys
import torch
from peft import PeftModel
from torch import nn

a, b, out, rank, shapes = *sys.argv[1:4], int(sys.argv[4]), json.loads(sys.argv[5])
model = nn.Module()
for name, (d_out, d_in) in shapes.items():
    *path, last = name.split(".")
    place = model
    for part in path:
        if not hasattr(place, part):
            place.add_module(part, nn.Module())
        place = getattr(place, part)
    with torch.device("meta"):
        layer = nn.Linear(d_in, d_out, bias=False)
    layer.weight = nn.Parameter(torch.zeros(()).expand(d_out, d_in), requires_grad=False)
    place.add_module(last, layer)
model.config = {"model_type": "custom"}
model = PeftModel.from_pretrained(model, a, adapter_name="a")
model.load_adapter(b, "b")
weights = [1.0, 1.0]
model.add_weighted_adapter(["a", "b"], weights, "m", combination_type="svd", svd_rank=rank)
model.save_pretrained(out, selected_adapters=["m"])
"""


def merging(setting: Setting) -> bool:
    """Compare `analysis.merge --rank 16` with its peers; return whether a target is missed."""
    missed = against_gradience(setting, _pair(setting, "pair"))
    one = replace(setting, layers=1)
    return against_peft(one, _pair(one, "layer")) or missed


def _pair(setting: Setting, name: str) -> list[Path]:
    """Write two adapters; return their places."""
    return [write_adapter(setting.parent / f"{name}-{i}", setting, seed=i) for i in range(2)]


def _merge(pair: Sequence[Path], out: Path) -> list[str]:
    """Return our command, which also makes its report."""
    program = [sys.executable, "-m", "analysis.merge", *(f"1:{path}" for path in pair)]
    return [*program, "--rank", str(R), "--out", str(out), "--force"]


def against_gradience(setting: Setting, pair: Sequence[Path]) -> bool:
    """Compare with `gradience merge`, which gets a plan that was made before; as `merging`."""
    ours, theirs = setting.parent / "ours", setting.parent / "gradience"
    commands, names, places = [_merge(pair, ours)], [f"merge --rank {R}"], [ours]
    if peer := setting.peer("gradience", "gradience"):
        plan = setting.parent / "plan"
        arguments = ["--adapter-a", str(pair[0]), "--adapter-b", str(pair[1])]
        arguments += ["--output-rank", str(R), "--output-alpha", str(R)]
        measure([str(peer), "merge-plan", *arguments, "--output-dir", str(plan)])
        given = ["--plan", str(plan / "merge_plan.json"), "--output-dir", str(theirs)]
        commands.append([str(peer), "merge", *given])
        names.append("gradience merge")
        places.append(theirs)
    # Its uniform plan weighs each adapter with 1/2.
    return _compared(setting, pair, commands, names, places, weights=(1.0, 0.5))


def against_peft(setting: Setting, pair: Sequence[Path]) -> bool:
    """Compare with PEFT's add_weighted_adapter("svd"); as `merging`."""
    ours, theirs = setting.parent / "ours-layer", setting.parent / "peft"
    shapes = {update.name: update.shape for update in updates(pair[0]).values()}
    arguments = [*map(str, (*pair, theirs, R)), json.dumps(shapes)]
    commands = [_merge(pair, ours), [sys.executable, "-c", PEFT_MERGE, *arguments]]
    names = [f"merge --rank {R} of a layer", "PEFT's svd of a layer"]
    return _compared(setting, pair, commands, names, [ours, theirs / "m"], weights=(1.0, 1.0))


def _compared(
    setting: Setting,
    pair: Sequence[Path],
    commands: Sequence[list[str]],
    names: Sequence[str],
    places: Sequence[Path],
    weights: Sequence[float],
) -> bool:
    """Run ours and a peer's, print both; return whether ours misses a target.

    weights: of both adapters in the sum that each command makes.
    """
    of = [updates(path) for path in pair]
    walls, peaks, cpus = in_turn(commands, setting.repeat)
    errors = []
    for i, place in enumerate(places):
        total = {
            name: combine.weighted_sum([(weights[i], found[name]) for found in of])
            for name in of[0]
        }
        errors.append(error(place, total))
        line(names[i], walls[i], peaks[i], cpus[i], place, errors[i])
    found = {name: decompose.singular_values(update) for name, update in total.items()}
    energy = sum(np.sum(s**2) for s in found.values())
    optimum = float(np.sqrt(sum(np.sum(s[R:] ** 2) for s in found.values()) / energy))
    print(f"  the optimum: {optimum:.9f}")
    missed = errors[0] > optimum + ROUNDING
    if len(commands) > 1:
        share = ratio(walls[0], walls[1])
        print(f"  time against the peer: {share:.3f} (target {MERGE_TARGET:.3f})")
        missed |= share > MERGE_TARGET
    return missed


Comparison = Callable[[Setting], bool]
# name → comparison. One more command: a function like those above, and its line here.
COMPARISONS: dict[str, Comparison] = {"truncate": truncation, "merge": merging}


def main(argv: list[str] | None = None) -> int:
    """Run the comparisons, print their lines and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.doing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(COMPARISONS)} (default: all)")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="environments of peers")
    parser.add_argument("--repeat", type=int, default=5, help="runs per command (default 5)")
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"(default {LAYERS})")
    parser.add_argument("--shrink", type=int, default=1, help="divide the widths (default 1)")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - COMPARISONS.keys():
        parser.error(
            f"no comparison {', '.join(sorted(unknown))}; there is {', '.join(COMPARISONS)}"
        )
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores,", end=" ")
    print(f"OMP_NUM_THREADS {threads}, Python {platform.python_version()}", end=", ")
    print(f"{arguments.repeat} runs per command")
    missed = False
    for name, comparison in COMPARISONS.items():
        if arguments.names and name not in arguments.names:
            continue
        with tempfile.TemporaryDirectory() as parent:
            place = Path(parent)
            setting = Setting(
                place, arguments.peers, arguments.repeat, arguments.layers, arguments.shrink
            )
            missed |= comparison(setting)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
