"""LyCORIS LoKr, a Kronecker product, in the files of kohya's sd-scripts.

    lora_unet_<module>.lokr_w1     (m1, n1); or lokr_w1_a (m1, r) and lokr_w1_b (r, n1)
    lora_unet_<module>.lokr_w2     (m2, n2, *kernel); or lokr_w2_a (m2, r), lokr_w2_b (r, n2·kernel)

and .alpha. ΔW = alpha/r · w1 ⊗ w2 is (m1·m2, n1·n2·kernel); the factor is 1 if w1 and w2 are both
whole. The singular values are the products of those of w1 and of w2, so that ΔW is never formed.
In Tucker form, there is a core lokr_t2 (r, r, *kernel) between lokr_w2_a (r, m2) and lokr_w2_b
(r, n2). This is ΔW in LyCORIS's training; its merge multiplies by alpha/r a second time (4.1.3).
"""

import math

import numpy as np

from analysis import CheckpointError
from analysis.files.tensors import FLOATS, Stored
from analysis.formats import factors, lycoris
from analysis.update import Factor, KroneckerUpdate, coarsest, float64

LARGE = 2**28  # entries of ΔW, which is not formed; or `factors.TIMES` times the stored numbers
PARTS = (
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha",
)  # fmt: skip


def update(module: str, parts: dict[str, Stored], source: str, scale: float) -> KroneckerUpdate:
    """Return ΔW of one layer.

    module: its name; parts: its tensors, by PARTS; source: the file; scale: what ΔW is multiplied
    by in addition to alpha/r. Raises CheckpointError if the tensors do not fit.
    """
    where = f"{source}: {module}"
    rest = [part for part in parts if part not in PARTS]
    if rest:
        raise CheckpointError(f"{where}: {', '.join(rest)} is not read next to LoKr's tensors")
    ranks = {
        parts[f"{name}_b"].shape[0]
        for name in ("lokr_w1", "lokr_w2")
        if name not in parts and f"{name}_b" in parts and parts[f"{name}_b"].shape
    }
    first, second = (_factor(name, parts, where) for name in ("lokr_w1", "lokr_w2"))
    (m1, n1), (m2, n2) = first.shape, second.shape
    stored = sum(math.prod(tensor.shape) for tensor in parts.values())
    limit = max(LARGE, factors.TIMES * stored)
    if m1 * m2 * n1 * n2 > limit:
        raise CheckpointError(
            f"{where}: is {(m1 * m2, n1 * n2)}, of {stored} stored numbers; expected at most"
            f" {limit} entries"
        )
    if len(ranks) > 1:
        raise CheckpointError(f"{where}: w1 has rank {ranks.pop()}, w2 {ranks.pop()}; expected one")
    if "alpha" in parts and ranks:
        scale = factors.alpha(parts["alpha"], where) / ranks.pop()
    return KroneckerUpdate(module, first, second, scale, method="lokr", source=source)


def _factor(name: str, parts: dict[str, Stored], where: str) -> Factor:
    """Return w1 or w2: a whole matrix, or the product of two, with a core between them or not."""
    a, b, core = (parts.get(key) for key in (f"{name}_a", f"{name}_b", name.replace("_w", "_t")))
    if name in parts:
        whole = parts[name]
        if len(whole.shape) < 2 or 0 in whole.shape or a or b or core:
            more = " next to its factors" if a or b or core else ""
            raise CheckpointError(f"{where}: {name} is {whole.shape}{more}; expected a matrix")
        matrix = whole.load().reshape(whole.shape[0], -1)
        return Factor(matrix, None, FLOATS[whole.dtype])
    if a is None or b is None:
        raise CheckpointError(
            f"{where}: has {', '.join(parts)}; expected {name}, or {name}_a and {name}_b"
        )
    if core is not None:
        lycoris.check_core(a.shape, core.shape, b.shape, where)
        size = b.shape[0], b.shape[1] * math.prod(core.shape[2:])
        stored = sum(math.prod(tensor.shape) for tensor in (a, b, core))
        factors.refuse_large(size, stored, where)
        left, mid, right = a.load().T, core.load(), b.load()
        squares = lycoris.times_core(float64(mid) ** 2, float64(right) ** 2)
        dtype = coarsest(FLOATS[a.dtype], FLOATS[b.dtype], FLOATS[core.dtype])
        product = lycoris.times_core(mid, right)
        return Factor(left, product, dtype, sizes=np.sqrt(2 * squares))
    flat = (b.shape[0], math.prod(b.shape[1:])) if b.shape else ()
    factors.check(a.shape, flat, where)
    left, right = a.load(), b.load().reshape(flat)
    return Factor(left, right, coarsest(FLOATS[a.dtype], FLOATS[b.dtype]))
