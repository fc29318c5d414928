"""MultiLoRA: adapter_config.json with peft_type MULTILORA beside adapter_model.safetensors.

    base_model.model.<module>.multilora_A     (n·r, d_in)    block of rows i is Aᵢ
    base_model.model.<module>.multilora_B     (d_out, n·r)   block of columns i is Bᵢ
    base_model.model.<module>.multilora_s     (d_out, n)     column i is sᵢ; (1, n) with
                                                             scale_per "module"

ΔW = scale · Σᵢ diag(sᵢ) Bᵢ Aᵢ (Wang et al. 2023), scale = α/r, or α/√r with rsLoRA: one factored
update of rank n·r, B = [diag(s₁)B₁ … diag(sₙ)Bₙ]. The exact export in lora/ is not read again.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from analysis.formats import Options, own, peft
from analysis.formats.rule import Rule
from analysis.formats.tensors import count, read_json
from analysis.update import Entry, LowRankUpdate

KEYS = ("multilora_", ("A", "B", "s"))


def recognises(path: Path) -> bool:
    """Whether `path` holds a PEFT adapter whose config says MULTILORA."""
    return own.has_type(path, "MULTILORA")


def read(path: Path, options: Options) -> Iterator[Entry]:
    """The stacked update of each module; CheckpointError where the config has no scale."""
    config, source = read_json(path / peft.CONFIG), path / peft.CONFIG
    n = count(config, "n", source)
    rule = Rule(config, source, own.modules(path, *KEYS))
    scaled: int | str = 1 if config.get("scale_per") == "module" else "d_out"

    def fault(module: str, shapes: own.Shapes) -> str | None:
        r = int(rule.rank(module))
        A, B = (n * r, "d_in"), ("d_out", n * r)
        wrong = own.against(shapes, {"A": A, "B": B, "s": (scaled, n)})
        return wrong and f"{wrong} for n = {n}, r = {r}"

    def updates(module: str, file: str, t: own.Tensors) -> Iterator[LowRankUpdate]:
        B, scale = stack(t["B"], t["s"], n), rule.scale(module)
        yield LowRankUpdate(module, B, t["A"], scale, method="multilora", source=file, stacked=n)

    yield from own.read(path, *KEYS, fault, updates)


def stack(B: np.ndarray, s: np.ndarray, n: int) -> np.ndarray:
    """[diag(s₁)B₁ … diag(sₙ)Bₙ]. B (d_out, n·r), s (d_out, n) or (1, n) -> (d_out, n·r)."""
    return (B.reshape(len(B), n, -1) * s[:, :, None]).reshape(B.shape)
