"""LyCORIS LoHa, and LoCon in Tucker form, in the files of kohya's sd-scripts.

    lora_unet_<module>.hada_w1_a, .hada_w2_a     (d_out, r)
    lora_unet_<module>.hada_w1_b, .hada_w2_b     (r, d_in), or (r, d_in·kernel)

and .alpha. ΔW = alpha/r · (w1_a w1_b) ∘ (w2_a w2_b), the product entry by entry, has a rank of up
to r²: its factors have a column, and a row, for each pair of a column of w1_a and one of w2_a.
Where r² is over half of d_out or d_in, ΔW is read as a matrix. In Tucker form, for convolutions,
there is a core hada_t1, hada_t2 (r, r, *kernel) between w_a (r, d_out) and w_b (r, d_in):
w[o, i, …] = Σ_jk t[j, k, …] w_a[j, o] w_b[k, i]. LoCon has its core in lora_mid.weight, between
lora_up (d_out, r, 1, 1) and lora_down (r, d_in, 1, 1): ΔW has rank r. This is ΔW in LyCORIS's
training; its merge of LoHa multiplies by alpha/r twice (4.1.3).
"""

import math
from collections.abc import Callable

import numpy as np

from analysis import CheckpointError
from analysis.files.tensors import FLOATS, Stored
from analysis.formats import factors
from analysis.update import DenseUpdate, LowRankUpdate, coarsest, float64

PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
CORES = ("hada_t1", "hada_t2")
MID = "lora_mid.weight"


def update(
    module: str, parts: dict[str, Stored], source: str, scale: float
) -> LowRankUpdate | DenseUpdate:
    """Return ΔW of one layer of LoHa, as factors or as a matrix.

    module: its name; parts: its tensors, by PARTS, CORES and "alpha"; source: the file; scale: what
    ΔW is multiplied by in addition to alpha/r. Raises CheckpointError if the tensors do not fit.
    """
    where = f"{source}: {module}"
    rest = [part for part in parts if part not in (*PARTS, *CORES, "alpha")]
    cores = [part for part in CORES if part in parts]
    missing = [part for part in PARTS if part not in parts]
    if rest or missing or len(cores) == 1:
        raise CheckpointError(
            f"{where}: has {', '.join(parts)}; expected {', '.join(PARTS)}, alpha, and for a"
            f" convolution perhaps {' and '.join(CORES)}"
        )
    w1_a, w1_b, w2_a, w2_b = (parts[part] for part in PARTS)
    if (w1_a.shape, w1_b.shape) != (w2_a.shape, w2_b.shape) or len(w1_b.shape) != 2:
        shapes = ", ".join(str(parts[part].shape) for part in PARTS)
        raise CheckpointError(f"{where}: shapes are {shapes}; expected two pairs of equal shapes")
    if cores:
        products = [
            _with_core(w_a, parts[core], w_b, where)
            for core, w_a, w_b in zip(CORES, (w1_a, w2_a), (w1_b, w2_b), strict=True)
        ]
        if parts[CORES[0]].shape != parts[CORES[1]].shape:
            raise CheckpointError(f"{where}: {' and '.join(CORES)} differ in shape")
        d_out, d_in = w1_a.shape[1], w1_b.shape[1] * math.prod(parts[CORES[0]].shape[2:])
    else:
        factors.check(w1_a.shape, w1_b.shape, where)
        products = [_product(w1_a, w1_b), _product(w2_a, w2_b)]
        d_out, d_in = w1_a.shape[0], w1_b.shape[1]
    stored = sum(math.prod(parts[part].shape) for part in (*PARTS, *cores))
    factors.refuse_large((d_out, d_in), stored, where)
    if "alpha" in parts:
        scale = factors.alpha(parts["alpha"], where) / w1_b.shape[0]
    if not cores and 2 * w1_b.shape[0] ** 2 <= min(d_out, d_in):
        return _factored(module, [parts[part] for part in PARTS], source, scale)
    W1, W2 = products

    def load() -> np.ndarray:
        with np.errstate(all="ignore"):  # NaN and overflow are reported later
            return scale * W1() * W2()

    return DenseUpdate(module, (d_out, d_in), load, method="loha", source=source)


def _factored(module: str, stored: list[Stored], source: str, scale: float) -> LowRankUpdate:
    """Return ΔW as factors B (d_out, r²) and A (r², d_in); stored: the tensors of PARTS.

    An entry of a factor is a product of two stored numbers, so its relative rounding is √2 times
    that of one.
    """
    w1_a, w1_b, w2_a, w2_b = (float64(tensor.load()) for tensor in stored)
    with np.errstate(all="ignore"):  # NaN and overflow are reported later
        B = np.einsum("oj,ok->ojk", w1_a, w2_a).reshape(len(w1_a), -1)
        A = np.einsum("ji,ki->jki", w1_b, w2_b).reshape(-1, w1_b.shape[1])
    dtypes = [FLOATS[tensor.dtype] for tensor in stored]
    return LowRankUpdate(
        module,
        B,
        A,
        scale,
        method="loha",
        source=source,
        dtypes=(coarsest(dtypes[0], dtypes[2]), coarsest(dtypes[1], dtypes[3])),
        sizes=(math.sqrt(2) * B, math.sqrt(2) * A),
    )


def _product(a: Stored, b: Stored) -> Callable[[], np.ndarray]:
    return lambda: float64(a.load()) @ float64(b.load())


def _with_core(a: Stored, core: Stored, b: Stored, where: str) -> Callable[[], np.ndarray]:
    """Return a function that multiplies a (r, d_out), core (r, r, *kernel) and b (r, d_in)."""
    check_core(a.shape, core.shape, b.shape, where)
    return lambda: float64(a.load()).T @ times_core(core.load(), b.load())


def check_core(a: tuple[int, ...], core: tuple[int, ...], b: tuple[int, ...], where: str) -> None:
    """Raise CheckpointError unless a (r, d_out), core (r, r, *kernel) and b (r, d_in) fit."""
    fits = len(a) == len(b) == 2 and 2 < len(core) <= 5 and core[:2] == (a[0], b[0])
    if not fits or 0 in (*a, *core, *b):
        raise CheckpointError(
            f"{where}: shapes are {a}, {core}, {b}; expected (r, d_out), the core (r, r, *kernel)"
            " and (r, d_in)"
        )


def times_core(core: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return core (r, r, *kernel) times b (r, d_in) as (r, d_in·kernel), float64."""
    r = len(core)
    flat = float64(core).reshape(r, r, -1)
    with np.errstate(all="ignore"):  # NaN and overflow are reported later
        return np.einsum("jkx,ki->jix", flat, float64(b)).reshape(r, -1)


def tucker(module: str, parts: dict[str, Stored], source: str, scale: float) -> LowRankUpdate:
    """Return ΔW of one layer of LoCon in Tucker form: up @ (mid × down), of rank r.

    The entries of the right factor are sums of products of two stored numbers; their sizes are the
    root sum of squares of those. Raises CheckpointError if the tensors do not fit.
    """
    where = f"{source}: {module}"
    core = parts[MID]
    pair = {part: tensor for part, tensor in parts.items() if part != MID}
    factors.require_pair(pair, where)
    B, A = pair["B"], pair["A"]
    if math.prod(A.shape[2:]) != 1 or math.prod(B.shape[2:]) != 1:
        raise CheckpointError(
            f"{where}: lora_up is {B.shape}, lora_down is {A.shape}; expected kernels of size 1"
            f" next to {MID}"
        )
    check_core(B.shape[1::-1], core.shape, A.shape[:2], where)
    r, kernel = B.shape[1], math.prod(core.shape[2:])
    stored = sum(math.prod(tensor.shape) for tensor in (A, B, core))
    factors.refuse_large((r, A.shape[1] * kernel), stored, where)
    up, down, mid = B.load().reshape(-1, r), A.load().reshape(r, -1), core.load()
    if "alpha" in parts:
        scale = factors.alpha(parts["alpha"], where) / r
    dtypes = FLOATS[B.dtype], coarsest(FLOATS[A.dtype], FLOATS[core.dtype])
    with np.errstate(all="ignore"):
        sizes = np.sqrt(2 * times_core(float64(mid) ** 2, float64(down) ** 2))
    return LowRankUpdate(
        module,
        up,
        times_core(mid, down),
        scale,
        method="locon",
        source=source,
        dtypes=dtypes,
        sizes=(up, sizes),
    )
