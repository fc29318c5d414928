"""LyCORIS LoHa in the files of kohya's sd-scripts.

    lora_unet_<module>.hada_w1_a, .hada_w2_a     (d_out, r)
    lora_unet_<module>.hada_w1_b, .hada_w2_b     (r, d_in), or (r, d_in·kernel)

and .alpha. ΔW = alpha/r · (w1_a w1_b) ∘ (w2_a w2_b), the product entry by entry, has a rank of up
to r². The Tucker form for convolutions (hada_t1, hada_t2) and LoKr are skipped.
"""

import math

import numpy as np

from analysis import CheckpointError
from analysis.formats import factors
from analysis.formats.tensors import Stored
from analysis.update import DenseUpdate, float64

PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def update(module: str, parts: dict[str, Stored], source: str, scale: float) -> DenseUpdate:
    """Return ΔW of one layer as a matrix.

    module: its name; parts: its tensors, by PARTS and "alpha"; source: the file; scale: what ΔW is
    multiplied by in addition to alpha/r. Raises CheckpointError if the tensors do not fit.
    """
    where = f"{source}: {module}"
    rest = [part for part in parts if part not in (*PARTS, "alpha")]
    missing = [part for part in PARTS if part not in parts]
    if rest or missing:
        raise CheckpointError(
            f"{where}: has {', '.join(parts)}; expected {', '.join(PARTS)} and alpha"
        )
    w1_a, w1_b, w2_a, w2_b = (parts[part] for part in PARTS)
    for a, b in ((w1_a, w1_b), (w2_a, w2_b)):
        factors.check(a.shape, b.shape, where)
    (d_out, r), d_in = w1_a.shape[:2], w1_b.shape[-1]
    if (w1_a.shape, w1_b.shape) != (w2_a.shape, w2_b.shape) or len(w1_b.shape) != 2:
        shapes = ", ".join(str(parts[part].shape) for part in PARTS)
        raise CheckpointError(f"{where}: shapes are {shapes}; expected two pairs of equal shapes")
    stored = sum(math.prod(parts[part].shape) for part in PARTS)
    factors.refuse_large((d_out, d_in), stored, where)
    if "alpha" in parts:
        scale *= factors.alpha(parts["alpha"], where) / r

    def load() -> np.ndarray:
        with np.errstate(all="ignore"):  # NaN and overflow are reported later
            W1 = float64(w1_a.load()) @ float64(w1_b.load())
            W2 = float64(w2_a.load()) @ float64(w2_b.load())
            return scale * W1 * W2

    return DenseUpdate(module, (d_out, d_in), load, method="loha", source=source)
