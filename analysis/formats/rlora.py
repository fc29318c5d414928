"""R-LoRA adapter: adapter_config.json (peft_type RLORA) and adapter_model.safetensors.

    base_model.model.<module>.rlora_A, rlora_A0     (r, d_in)      A, and its value at the start
    base_model.model.<module>.rlora_B, rlora_B0     (d_out, n·r)   block of columns i is head Bᵢ
    base_model.model.<module>.rlora_R               (n, d_in)      the router

ΔW(x) = scale · (Σᵢ softmax(R x)ᵢ Bᵢ A − mean B0ᵢ A0), scale = α/√r (arXiv 2502.15455), depends on
the input x. Part `mean` is [scale·mean Bᵢ, −scale·mean B0ᵢ][A; A0], the update at equal weights of
the heads; part `headᵢ` is [scale·Bᵢ, −scale·B0ᵢ][A; A0], each head relative to its own start.
"""

import math
from collections.abc import Iterator

import numpy as np

from analysis.files.place import Place
from analysis.files.tensors import count, number
from analysis.formats import Options, own, peft
from analysis.update import Entry, LowRankUpdate

STEMS = (peft.STEM,)


def recognise(place: Place) -> bool:
    """Return whether the directory holds a PEFT adapter of type RLORA."""
    return own.has_type(place, "RLORA")


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the mean and the heads of each module.

    Raises CheckpointError if the config lacks n, r or α.
    """
    config, source = place.json(peft.CONFIG), place.path / peft.CONFIG
    n, r = count(config, "n", source), count(config, "r", source)
    scale = number(config, "lora_alpha", source) / math.sqrt(r)

    def fault(module: str, shapes: own.Shapes) -> str | None:
        A, B = (r, "d_in"), ("d_out", n * r)
        wrong = own.mismatch(shapes, {"A": A, "B": B, "R": (n, "d_in"), "A0": A, "B0": B})
        if wrong:
            return f"{wrong} for n = {n}, r = {r}"
        numbers = 4 * (n + 1) * r * shapes["B"][0]  # [B − B0, B0], and their sizes
        return own.too_large(numbers, r, sum(map(math.prod, shapes.values())))

    def updates(module: str, file: str, t: own.Tensors) -> Iterator[LowRankUpdate]:
        heads, before = (t[part].reshape(len(t[part]), n, r) for part in ("B", "B0"))
        parts = {"mean": (heads.mean(1), before.mean(1))}
        parts |= {f"head{i + 1}": (heads[:, i], before[:, i]) for i in range(n)}
        # B A − B0 A0 = (B − B0) A + B0 (A − A0): this form has no cancellation.
        right = np.vstack([t["A"], t["A"] - t["A0"]])
        # The rounding of a difference is that of its terms.
        right_sizes = np.vstack([t["A"], np.hypot(t["A"], t["A0"])])
        for part, (B, B0) in parts.items():
            yield LowRankUpdate(
                module,
                np.hstack([B - B0, B0]),
                right,
                scale,
                part=part,
                method="rlora",
                source=file,
                of_parts=part == "mean",
                sizes=(np.hstack([np.hypot(B, B0), B0]), right_sizes),
            )

    yield from own.read(place, "rlora_", ("A", "B", "R", "A0", "B0"), n + 1, fault, updates)
