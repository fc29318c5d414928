"""From the shell to the table: time and peak memory of `python -m analysis.spectrum`.

Writes LLaMA-7B-shaped LoRA adapters (32 layers × 7 projections) to a temporary directory and runs
the command on them as a user would, a process a run. Targets on two cores: r=16 float32 in 1.0 s,
r=64 bfloat16 in 2.5 s, peak resident memory below the file's size + 250 MB.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

LAYERS, D, D_FF = 32, 4096, 11008
SHAPES = {
    **{f"self_attn.{name}_proj": (D, D) for name in "qkvo"},
    **{"mlp.gate_proj": (D_FF, D), "mlp.up_proj": (D_FF, D), "mlp.down_proj": (D, D_FF)},
}
# r, dtype, seconds allowed; and the megabytes allowed beside the file.
Case = tuple[int, np.dtype, float]
CASES: tuple[Case, ...] = ((16, np.dtype(np.float32), 1.0), (64, np.dtype(ml_dtypes.bfloat16), 2.5))
MEMORY = 250


def write_adapter(directory: Path, r: int, dtype: np.dtype, seed: int = 0) -> Path:
    """A LoRA adapter as PEFT saves it, of LLaMA-7B's linear layers; returns its weight file."""
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for module, (d_out, d_in) in SHAPES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            for factor, shape in (("A", (r, d_in)), ("B", (d_out, r))):
                values = rng.standard_normal(shape, dtype=np.float32)
                tensors[f"{name}.lora_{factor}.weight"] = values.astype(dtype)
    targets = sorted(module.split(".")[-1] for module in SHAPES)
    config = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": targets}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory / "adapter_model.safetensors"


def measure(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, user + system seconds and peak resident MB of one run of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    # wait4 reports this child alone, where getrusage would give the greatest of all so far.
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}")
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * kilobyte / 1e6


def time_command(module: str, adapters: int, cases: Sequence[Case], repeat: int) -> bool:
    """Print a line a case of `python -m module` on so many adapters; whether a target is missed."""
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores,", end=" ")
    print(f"OMP_NUM_THREADS {threads}, Python {platform.python_version()}, {repeat} runs a case")
    missed = False
    for r, dtype, limit in cases:
        with tempfile.TemporaryDirectory() as parent:
            directories = [Path(parent) / f"adapter{seed}" for seed in range(adapters)]
            files = [write_adapter(d, r, dtype, seed) for seed, d in enumerate(directories)]
            size = sum(file.stat().st_size for file in files) / 1e6
            command = [sys.executable, "-m", module, *map(str, directories)]
            runs = [measure(command) for _ in range(repeat)]
        walls, cpus, peaks = zip(*runs, strict=True)
        wall, peak = statistics.median(walls), max(peaks)
        print(
            f"r={r} {dtype.name}: wall {wall:.2f} s (best {min(walls):.2f}, worst {max(walls):.2f};"
            f" target {limit}), cpu {statistics.median(cpus):.2f} s,"
            f" peak {peak:.0f} MB (files {size:.0f}; target {size + MEMORY:.0f})",
            flush=True,
        )
        missed |= wall > limit or peak > size + MEMORY
    return missed


def main(argv: list[str] | None = None) -> int:
    """Measure every case and print a line each; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spectrum", description=__doc__)
    parser.add_argument("--repeat", type=int, default=7, help="runs a case (default 7)")
    return int(time_command("analysis.spectrum", 1, CASES, parser.parse_args(argv).repeat))


if __name__ == "__main__":
    sys.exit(main())
