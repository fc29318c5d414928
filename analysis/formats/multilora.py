"""MultiLoRA adapter: adapter_config.json (peft_type MULTILORA) and adapter_model.safetensors.

    base_model.model.<module>.multilora_A     (n·r, d_in)    block of rows i is Aᵢ
    base_model.model.<module>.multilora_B     (d_out, n·r)   block of columns i is Bᵢ
    base_model.model.<module>.multilora_s     (d_out, n)     column i is sᵢ; (1, n) if scale_per
                                                             is "module"

ΔW = scale · Σᵢ diag(sᵢ) Bᵢ Aᵢ (Wang et al. 2023), scale = α/r, or α/√r with rsLoRA: one factored
update of rank n·r, with B = [diag(s₁)B₁ … diag(sₙ)Bₙ]. The export in lora/ is exactly the same
update and is not read.
"""

from collections.abc import Iterator

import numpy as np

from analysis.files.place import Place
from analysis.files.tensors import count
from analysis.formats import Options, own, peft
from analysis.formats.rule import Rule
from analysis.update import Entry, LowRankUpdate

STEMS = (peft.STEM,)
KEYS = ("multilora_", ("A", "B", "s"))


def recognise(place: Place) -> bool:
    """Return whether the directory holds a PEFT adapter of type MULTILORA."""
    return own.has_type(place, "MULTILORA")


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the stacked update of each module.

    Raises CheckpointError if the config lacks n, r or α.
    """
    config, source = place.json(peft.CONFIG), place.path / peft.CONFIG
    n = count(config, "n", source)
    rule = Rule(config, source, own.modules(place, *KEYS))
    scaled: int | str = 1 if config.get("scale_per") == "module" else "d_out"

    def fault(module: str, shapes: own.Shapes) -> str | None:
        r = int(rule.rank(module))
        A, B = (n * r, "d_in"), ("d_out", n * r)
        wrong = own.mismatch(shapes, {"A": A, "B": B, "s": (scaled, n)})
        return wrong and f"{wrong} for n = {n}, r = {r}"

    def updates(module: str, file: str, t: own.Tensors) -> Iterator[LowRankUpdate]:
        B, scale = stack(t["B"], t["s"], n), rule.scale(module)
        # One s for a whole module multiplies all of its columns; a row of s averages out.
        inner = np.eye(B.shape[1]) if scaled == 1 else None
        yield LowRankUpdate(
            module, B, t["A"], scale, method="multilora", source=file, stacked=n, inner=inner
        )

    yield from own.read(place, *KEYS, 1, fault, updates)


def stack(B: np.ndarray, s: np.ndarray, n: int) -> np.ndarray:
    """Return [diag(s₁)B₁ … diag(sₙ)Bₙ] (d_out, n·r); B (d_out, n·r), s (d_out, n) or (1, n)."""
    return (B.reshape(len(B), n, -1) * s[:, :, None]).reshape(B.shape)
