"""Measure time and peak memory of `python -m analysis.spectrum`, from the shell to the table.

Writes LoRA adapters with LLaMA-7B's shapes (32 layers × 7 kinds of module) to a temporary directory
and runs the command on them, one process per run. Targets on two cores: r=16 float32 in 1.0 s,
r=64 bfloat16 in 2.5 s, and peak resident memory below the size of the file + 250 MB.
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
    "self_attn.q_proj": (D, D),
    "self_attn.k_proj": (D, D),
    "self_attn.v_proj": (D, D),
    "self_attn.o_proj": (D, D),
    "mlp.gate_proj": (D_FF, D),
    "mlp.up_proj": (D_FF, D),
    "mlp.down_proj": (D, D_FF),
}
Case = tuple[int, np.dtype, float]  # r, dtype, seconds allowed
CASES: tuple[Case, ...] = ((16, np.dtype(np.float32), 1.0), (64, np.dtype(ml_dtypes.bfloat16), 2.5))
MEMORY = 250  # megabytes allowed in addition to the files


def write_adapter(directory: Path, r: int, dtype: np.dtype, seed: int = 0) -> Path:
    """Write a LoRA adapter of LLaMA-7B's linear layers, as PEFT does; return its weight file."""
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
    """Run a command once; return wall seconds, user + system seconds and peak resident MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    # wait4 reports this child alone; getrusage would report the largest of all so far.
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}")
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * kilobyte / 1e6


def time_command(module: str, adapters: int, cases: Sequence[Case], repeat: int) -> bool:
    """Time `python -m module`, print one line per case; return whether a target is missed.

    module: the command.
    adapters: how many of them it is given.
    cases: the adapters' rank and dtype, and the seconds allowed.
    repeat: runs per case.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores,", end=" ")
    print(f"OMP_NUM_THREADS {threads}, Python {platform.python_version()}, {repeat} runs per case")
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
    """Measure every case, print one line each and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spectrum", description=__doc__)
    parser.add_argument("--repeat", type=int, default=7, help="runs per case (default 7)")
    return int(time_command("analysis.spectrum", 1, CASES, parser.parse_args(argv).repeat))


if __name__ == "__main__":
    sys.exit(main())
