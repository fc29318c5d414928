"""Peak memory of `python -m analysis.spectrum TUNED --base BASE` on a large full fine-tune.

Makes up a model of many bfloat16 matrices and a fine-tune of it in a temporary directory, in
shards with an index, and runs the command on them as a user would, in a process of its own. Target:
4 GB of weights a model, and a peak resident memory below 1.5 GB; the largest matrix and its
workspace count, not the checkpoint.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from benchmarks.spectrum import measure

TARGET = 1500  # MB
SIDE, MATRICES = 1024, 64  # a shard: 64 matrices of 1024 × 1024, 134 MB
LARGEST = 4096  # the side of one matrix more, in the first shard


def write_model(directory: Path, shards: int, seed: int) -> None:
    """A model of `shards` files; another seed is another fine-tune of the same base."""
    directory.mkdir()
    index = {}
    for i in range(shards):
        start, step = np.random.default_rng(i), np.random.default_rng((seed, i))
        tensors = {}
        for j in range(MATRICES + (i == 0)):
            d = SIDE if j < MATRICES else LARGEST
            W = start.standard_normal((d, d), dtype=np.float32)
            W += 0.1 * seed * np.outer(step.standard_normal(d), step.standard_normal(d))
            tensors[f"model.layers.{i}.{j}.weight"] = W.astype(ml_dtypes.bfloat16)
        file = f"model-{i:05}.safetensors"
        save_file(tensors, directory / file)
        index |= dict.fromkeys(tensors, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def main(argv: list[str] | None = None) -> int:
    """Measure once and print a line; exit status 1 where the target is missed, or the disk full."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="a model (default 4)")
    arguments = parser.parse_args(argv)
    shards = max(1, round(arguments.gigabytes * 1e9 / (MATRICES * SIDE * SIDE * 2)))
    size = shards * MATRICES * SIDE * SIDE * 2 / 1e9
    with tempfile.TemporaryDirectory() as temporary:
        free = shutil.disk_usage(temporary).free / 1e9
        if free < 2 * size + 1:
            print(f"benchmarks.memory: needs {2 * size + 1:.0f} GB in {temporary}, free {free:.0f}")
            return 1
        base, tuned = Path(temporary) / "base", Path(temporary) / "tuned"
        write_model(base, shards, seed=0)
        write_model(tuned, shards, seed=1)
        command = [sys.executable, "-m", "analysis.spectrum", str(tuned), "--base", str(base)]
        wall, cpu, peak = measure(command)
    print(
        f"{size:.1f} GB a model, {shards * MATRICES + 1} matrices: wall {wall:.0f} s,"
        f" cpu {cpu:.0f} s, peak {peak:.0f} MB (target {TARGET})"
    )
    return int(peak > TARGET)


if __name__ == "__main__":
    sys.exit(main())
