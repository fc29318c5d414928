"""Measure peak memory of `analysis.spectrum TUNED --base BASE` for a large full fine-tuning.

Writes a made-up model of many bfloat16 matrices and a fine-tuned copy to a temporary directory, in
shards with an index, and runs the command on them in a process of its own. Target: with 4 GB of
weights per model, a peak resident memory below 1.5 GB, since memory depends on the largest matrix
and not on the checkpoint.
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
SIDE, MATRICES = 1024, 64  # one shard: 64 matrices of 1024 × 1024, 134 MB
LARGEST = 4096  # side of one further matrix in the first shard


def write_model(directory: Path, shards: int, seed: int) -> None:
    """Write a model of `shards` files; seed 0 is the base, any other a fine-tuning of it."""
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
    """Measure once, print one line and return 1 if the target is missed or the disk full."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument(
        "--gigabytes", type=float, default=4.0, help="of weights per model (default 4)"
    )
    arguments = parser.parse_args(argv)
    shards = max(1, round(arguments.gigabytes * 1e9 / (MATRICES * SIDE * SIDE * 2)))
    size = shards * MATRICES * SIDE * SIDE * 2 / 1e9
    with tempfile.TemporaryDirectory() as temporary:
        free = shutil.disk_usage(temporary).free / 1e9
        if free < 2 * size + 1:
            needed = f"needs {2 * size + 1:.0f} GB in {temporary}"
            print(f"benchmarks.memory: {needed}; {free:.0f} GB are free")
            return 1
        base, tuned = Path(temporary) / "base", Path(temporary) / "tuned"
        write_model(base, shards, seed=0)
        write_model(tuned, shards, seed=1)
        command = [sys.executable, "-m", "analysis.spectrum", str(tuned), "--base", str(base)]
        wall, cpu, peak = measure(command)
    print(
        f"{size:.1f} GB per model, {shards * MATRICES + 1} matrices: wall {wall:.0f} s,"
        f" cpu {cpu:.0f} s, peak {peak:.0f} MB (target {TARGET})"
    )
    return int(peak > TARGET)


if __name__ == "__main__":
    sys.exit(main())
