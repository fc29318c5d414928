"""Time the calls of `SpectrumCallback` during training.

Adapters with LLaMA-7B's shapes (224 modules) on a base without weights: LoRA of rank 16, whose
target on two cores is at most 1.0 s per call; MultiLoRA with three modules of rank 16. Each call
writes its rows and singular values to a temporary directory, as in training. The first call, which
also draws the null models, is reported separately.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from multilora import MultiLoraConfig, budget
from multilora.callback import TABLE, SpectrumCallback

CASES: tuple[tuple[str, PeftConfig, float], ...] = (
    ("LoRA r=16", LoraConfig(r=16, target_modules="all-linear"), 1.0),
    ("MultiLoRA 3×16", MultiLoraConfig(n=3, r=16, target_modules="all-linear"), float("inf")),
)


def adapted(config: PeftConfig) -> Any:
    """Return LLaMA-7B on the meta device with an adapter in memory, moved off its start."""
    model = get_peft_model(budget.build(budget.config_of("llama-7b")), config)
    torch.manual_seed(0)
    for layer in model.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.requires_grad:
                value = torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5
                setattr(layer, name, nn.Parameter(value))
    return model


def seconds(model: Any, out: Path, repeat: int) -> list[float]:
    """Time `repeat` + 1 calls, at steps 1, 2, …"""
    arguments = transformers.TrainingArguments(output_dir=str(out), report_to="none", use_cpu=True)
    state, control = transformers.TrainerState(), transformers.TrainerControl()
    callback = SpectrumCallback(every=1, singular_values=True)
    times = []
    for state.global_step in range(1, repeat + 2):
        start = time.perf_counter()
        callback.on_step_end(arguments, state, control, model=model)
        times.append(time.perf_counter() - start)
    return times


def main(argv: list[str] | None = None) -> int:
    """Measure both cases, print one line each and return 1 if the target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.callback", description=__doc__)
    parser.add_argument("--repeat", type=int, default=7, help="calls per case (default 7)")
    repeat = parser.parse_args(argv).repeat
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, {repeat} calls per case"
    )
    missed = False
    for name, config, target in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            first, *times = seconds(adapted(config), Path(temporary), repeat)
            size = (Path(temporary) / TABLE).stat().st_size / 1e6
        median = statistics.median(times)
        missed |= median > target
        limit = f"; target {target}" if target < float("inf") else ""
        print(
            f"{name}: {median:.2f} s (best {min(times):.2f}, worst {max(times):.2f}{limit}), "
            f"the first {first:.2f} s, table {size / (repeat + 1):.2f} MB per call",
            flush=True,
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
