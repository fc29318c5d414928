"""Memory of a large fine-tune: sparse shards as a stand-in, the peak measured in a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHAPE, SHARDS, PER_SHARD = (8192, 768), 2, 2
# Analyse a small fine-tune, so that everything is imported, then the large one.
MEASURE = """
import json, sys
from analysis import spectrum
def peak(tuned, base):
    found = spectrum.analyse(tuned, base=base)
    # Of this program alone; ru_maxrss begins with that of the process that started it.
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    most = int(line.split()[1]) * 1024
    return {"peak": most, "rows": [[row["rank"], row["spectral_norm"]] for row in found.rows],
            "skipped": found.skipped}
print(json.dumps([peak(*sys.argv[1:3]), peak(*sys.argv[3:5])]))
"""


def write_sparse(directory, shape, shards, per_shard, first):
    """Write a model of zeros in bfloat16, but for the first entry of every matrix.

    Only the headers and these entries take room on the disk. first: two bytes.
    """
    directory.mkdir()
    size = 2 * shape[0] * shape[1]
    weight_map = {}
    for i in range(shards):
        shard = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        names = [f"layers.{i}.mlp.{j}.weight" for j in range(per_shard)]
        weight_map |= dict.fromkeys(names, shard)
        entries = {
            name: {"dtype": "BF16", "shape": shape, "data_offsets": [j * size, (j + 1) * size]}
            for j, name in enumerate(names)
        }
        header = json.dumps(entries).encode()
        with (directory / shard).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            start = file.tell()
            file.truncate(start + per_shard * size)
            for j in range(per_shard):
                file.seek(start + j * size)
                file.write(first)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to measure with")
def test_a_fine_tune_of_any_number_of_shards_needs_three_matrices(tmp_path):
    """Three in float64, read ahead included."""
    one, two = b"\x80\x3f", b"\x00\x40"  # in bfloat16
    for name, *size in (("small", (8, 4), 1, 1), ("large", SHAPE, SHARDS, PER_SHARD)):
        write_sparse(tmp_path / f"{name}-base", *size, one)
        write_sparse(tmp_path / f"{name}-tuned", *size, two)
    places = [
        tmp_path / f"{size}-{model}" for size in ("small", "large") for model in ("tuned", "base")
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, places)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)
    assert small["skipped"] == large["skipped"] == []
    assert large["rows"] == [[1, 1.0]] * (SHARDS * PER_SHARD)
    matrix = 8 * SHAPE[0] * SHAPE[1]
    assert large["peak"] - small["peak"] < 3 * matrix
    assert large["peak"] - small["peak"] > matrix / 2  # it was measured at all
