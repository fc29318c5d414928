"""MultiLoRA: adapter_config.json with peft_type MULTILORA beside adapter_model.safetensors.

    base_model.model.<module>.multilora_A     (n·r, d_in)    block of rows i is Aᵢ
    base_model.model.<module>.multilora_B     (d_out, n·r)   block of columns i is Bᵢ
    base_model.model.<module>.multilora_s     (d_out, n)     column i is sᵢ

ΔW = scale · Σᵢ diag(sᵢ) Bᵢ Aᵢ (Wang et al. 2023), scale = α/r, or α/√r with rsLoRA: one factored
update of rank n·r, B = [diag(s₁)B₁ … diag(sₙ)Bₙ]. The exact export in lora/ is not read again.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from analysis.formats import Options, own, peft
from analysis.formats.tensors import count, number, read_json
from analysis.update import Entry, LowRankUpdate


def recognises(path: Path) -> bool:
    """Whether `path` holds a PEFT adapter whose config says MULTILORA."""
    return own.has_type(path, "MULTILORA")


def read(path: Path, options: Options) -> Iterator[Entry]:
    """The stacked update of each module; CheckpointError where the config has no scale."""
    config, source = read_json(path / peft.CONFIG), path / peft.CONFIG
    n, r = count(config, "n", source), count(config, "r", source)
    alpha = number(config, "lora_alpha", source)
    scale = alpha / (math.sqrt(r) if config.get("use_rslora") else r)

    def fault(shapes: own.Shapes) -> str | None:
        A, B = (n * r, "d_in"), ("d_out", n * r)
        wrong = own.against(shapes, {"A": A, "B": B, "s": ("d_out", n)})
        return wrong and f"{wrong} for n = {n}, r = {r}"

    def updates(module: str, file: str, t: own.Tensors) -> Iterator[LowRankUpdate]:
        B = stack(t["B"], t["s"], n)
        yield LowRankUpdate(module, B, t["A"], scale, method="multilora", source=file, stacked=n)

    yield from own.read(path, "multilora_", ("A", "B", "s"), fault, updates)


def stack(B: np.ndarray, s: np.ndarray, n: int) -> np.ndarray:
    """[diag(s₁)B₁ … diag(sₙ)Bₙ]. B (d_out, n·r), s (d_out, n) -> (d_out, n·r)."""
    return (B.reshape(len(B), n, -1) * s[:, :, None]).reshape(B.shape)
