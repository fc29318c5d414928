"""Measure peak memory of training: MultiLoRA against PEFT's LoRA of equal budget, rank n·r.

A LLaMA-shaped model of random weights is adapted and trained for a few steps of AdamW, one process
per run. The measure is its peak resident memory minus the memory before the model was built.
Target: MultiLoRA takes at most 1.05 times as much as LoRA.
"""

import argparse
import statistics
import subprocess
import sys

from analysis.results import Row, grouped

TARGET = 1.05
N, R = 3, 8
SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8}
BATCH, LENGTH, STEPS = 4, 256, 3

CHILD = """
import resource, sys
import torch
import transformers
from peft import LoraConfig, get_peft_model
from benchmarks.training import BATCH, LENGTH, N, R, SHAPE, STEPS
from multilora import MultiLoraConfig

configs = {{"lora": LoraConfig(r=N * R), "multilora": MultiLoraConfig(n=N, r=R)}}
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * resource.getpagesize()
torch.manual_seed(0)
shape = transformers.LlamaConfig(**SHAPE, num_attention_heads=16, vocab_size=1000)
config = configs["{method}"]
config.target_modules = "all-linear"
config.task_type = "CAUSAL_LM"
model = get_peft_model(transformers.LlamaForCausalLM(shape), config)
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3)
ids = torch.randint(0, 1000, (BATCH, LENGTH))
for _ in range(STEPS):
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(peak - before, sum(p.numel() for p in trained))
"""


def measure(method: str) -> tuple[float, int]:
    """Run one training; return its peak in MB above the memory before it, and its parameters."""
    command = [sys.executable, "-c", CHILD.format(method=method)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, parameters = map(int, done.stdout.split())
    return peak / 1e6, parameters


def rows(repeat: int) -> list[Row]:
    """Return one row per method and run.

    value: the peak in MB; ratio: to that of the LoRA run in the same turn.
    """
    shape = f"width {SHAPE['hidden_size']}, {SHAPE['num_hidden_layers']} layers, {N}×{R}"
    measured = []
    for _ in range(repeat):
        (lora, _), _ = turn = [measure(method) for method in ("lora", "multilora")]
        for method, (peak, parameters) in zip(("LoRA", "MultiLoRA"), turn, strict=True):
            row: Row = {"what": "memory", "setting": shape, "method": method, "value": peak}
            measured.append(row | {"unit": "MB", "ratio": peak / lora, "parameters": parameters})
    return measured


def main(argv: list[str] | None = None) -> int:
    """Print the peaks and their ratio, and return 1 if the target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="runs per method (default 3)")
    measured = rows(parser.parse_args(argv).repeat)
    for (method,), of_method in grouped(measured, "method").items():
        peaks = [row["value"] for row in of_method]
        print(
            f"{method}: {of_method[0]['parameters']:,} parameters, peak"
            f" {statistics.median(peaks):.0f} MB ({min(peaks):.0f}–{max(peaks):.0f})"
        )
    ratio = statistics.median(row["ratio"] for row in measured if row["method"] == "MultiLoRA")
    print(f"ratio {ratio:.3f} (target {TARGET})")
    return int(ratio > TARGET)


if __name__ == "__main__":
    sys.exit(main())
