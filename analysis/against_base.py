"""An update beside the weight that it changes: how large it is, and where in it it lands.

W0 (d_out, d_in) is read for one module at a time, ΔW comes decomposed (`analysis.decompose`), and
its factors are never multiplied out. Sizes and amplification take one to four seconds for a W0 of
4096 × 4096; where ΔW lands and what intrudes need every singular vector of W0, which costs as much
as `estimate` says and is kept in a cache.
"""

import argparse
import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from analysis import CheckpointError, decompose, metrics, store
from analysis.decompose import EPS, Basis, Decomposition
from analysis.formats import base, full, peft
from analysis.formats.tensors import Stored, metadata, open_tensors, read_json
from analysis.update import DenseUpdate, Update, float64

COLUMNS = (
    *("relative_spectral", "relative_frobenius"),
    *("amplification_4", "amplification_16", "amplification_k"),
    *("base_share_k", "base_share_chance"),
)
DECILES = 10
LANDING_COLUMNS = tuple(
    f"{side}_{part}" for side in ("left", "right") for part in (*range(1, DECILES + 1), "outside")
)
# Layers of Transformers whose weight is (entries, width), and acts as its transpose.
EMBEDDINGS = (
    *("embed_tokens", "embed_positions", "wte", "wpe", "shared"),
    *("word_embeddings", "position_embeddings", "token_type_embeddings"),
)
SEED = 0
SMALL = 256  # up to it, LAPACK finds all values sooner than a Krylov space finds the largest
RESOLVED = 1e-6  # of the largest value: below it, the square of a value has lost digits
TIED = 1e-9  # of the largest value: closer than that, two singular vectors are one plane
PROBE = 512  # the size of the matrix by which the speed of a machine is measured
CACHE_VERSION = "1"

_writing = threading.Lock()  # a process has one temporary name for a file


@dataclass(frozen=True, eq=False)
class Base:
    """The weights of the model that was trained, by the names that its updates have.

    conv1d: its layers that are called as in `formats.base.CONV1D` are stored as W0ᵀ.
    """

    file: Path
    weights: dict[str, Stored]
    conv1d: bool

    def weight(self, update: Update) -> np.ndarray:
        """W0 (d_out, d_in) of the update's module, read now; float64 if stored so, else float32.

        Turned and flattened as ΔW is: y = (W0 + ΔW) x. Raises CheckpointError where W0 is
        missing, of another shape, quantised, NaN or Inf, or cannot be told from W0ᵀ.
        """
        where = f"{self.file}: {update.name}"
        stored = self.weights.get(update.name)
        if stored is None:
            raise CheckpointError(
                f"{where}: its weight is not in the base; expected {update.name}.weight (of tied"
                " weights only one is stored)"
            )
        if _of_rows(update):
            raise CheckpointError(
                f"{where}: is {stored.shape} in the base, and {update.part} of {update.source} is"
                f" {update.shape}, a block of rows; expected an update of the whole layer"
            )
        if stored.scaled:
            raise CheckpointError(
                f"{where}: its weight in the base is scaled by a tensor of its own (quantised);"
                " expected floating point"
            )
        try:
            turned = len(stored.shape) == 2 and _turned(update, stored, self.conv1d)
            W = base.as_matrix(_of_part(stored.load(), update), update.shape, turned)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None
        W0 = np.array(W, np.float64 if stored.dtype == "F64" else np.float32, order="C")
        if not (np.isfinite(W0.min()) and np.isfinite(W0.max())):
            raise CheckpointError(f"{where}: W0 holds NaN or Inf; expected finite numbers")
        return W0


def open_base(path: str | Path, modules: Iterable[str]) -> Base:
    """The model at `path`, a directory or a name on the hub, for updates of these names.

    Names meet after one prefix of either side, which all of them together tell. Raises
    CheckpointError where there is no model, where it is quantised, or where no name meets.
    """
    place = base.directory(Path(path))
    file, stored = base.open_model(place)
    names = list(dict.fromkeys(modules))
    aligned = base.align([f"{name}.weight" for name in names], stored)
    weights = {name: stored[name] for name in names if name in stored}  # a bare parameter
    weights |= {our.removesuffix(".weight"): stored[their] for our, their in aligned.items()}
    if names and not weights:
        raise CheckpointError(
            f"{file}: has no weight of {names[0]}, nor of any other module of the checkpoint; is"
            " that its base?"
        )
    return Base(file, weights, base.has_conv1d(place))


def _of_rows(update: Update) -> bool:
    return not isinstance(update, DenseUpdate) and update.of_rows


def _as_stored(update: Update) -> bool:
    """Whether ΔW is a difference of tensors as they are stored, Conv1D and embeddings too."""
    return update.method == "full" and Path(update.source).name != full.WEIGHTS


def _of_part(W: np.ndarray, update: Update) -> np.ndarray:
    """The expert that an update is of, in a stack of them."""
    expert = re.fullmatch(r"expert(\d+)", update.part)
    if not (expert and W.ndim == 3 and _as_stored(update)):
        return W
    if int(expert[1]) >= len(W):
        raise CheckpointError(f"is {W.shape} in the base; expected one with {update.part}")
    return W[int(expert[1])]


def _turned(update: Update, stored: Stored, conv1d: bool) -> bool:
    """Whether W0 is stored as W0ᵀ, where its shape does not tell."""
    if _as_stored(update):
        return False
    config = Path(update.source).parent / peft.CONFIG
    says = read_json(config) if update.source and config.is_file() else {}
    if says.get("layer_replication"):
        raise CheckpointError(
            f"layer_replication is set in {config}: a layer of the base stands for several"
        )
    leaf = update.name.rpartition(".")[2]
    if conv1d or leaf in EMBEDDINGS:
        return leaf in EMBEDDINGS or leaf in base.CONV1D
    if says.get("fan_in_fan_out") and stored.shape[0] == stored.shape[1]:
        raise CheckpointError("cannot tell Conv1D from Linear: W0 is square")
    return False


@np.errstate(over="ignore", invalid="ignore")  # there is no ratio to what is beyond float64
def against(update: Update, found: Decomposition, W0: np.ndarray) -> dict[str, float | None]:
    """The size of ΔW beside W0, and what of W0 lies in its directions, by COLUMNS.

    relative_*: ‖ΔW‖/‖W0‖ in either norm. amplification_k: ‖ΔW‖_F / ‖U_kᵀ W0 V_k‖_F, U_k and V_k
    the first k singular vectors of ΔW, at k = 4, 16 and (`_k`) its rank (Hu et al. 2021, 7.3): how
    much larger ΔW is than what W0 already did between its directions. base_share_k: the share of
    W0's energy there, ‖U_kᵀ W0 V_k‖²_F / ‖W0‖²_F at the rank of ΔW, in [0, 1], and its mean over
    random directions. ΔW -> c·ΔW multiplies sizes and amplifications by |c| and leaves shares;
    rotations of ΔW and W0 together leave all. Where the k-th and next value are equal, U_k is not
    unique, nor is what rests on it.

    None: k beyond the rank, W0 = 0, nothing of W0 there but rounding; for ΔW = 0 the sizes are 0
    and the rest None. One float64 copy of W0 is made. Raises CheckpointError for another shape.
    """
    if W0.shape != update.shape:
        raise CheckpointError(f"{update.name}: is {W0.shape} in the base; expected {update.shape}")
    W, rank = float64(W0), found.rank
    size = metrics.frobenius_norm(found.s)
    size0 = float(np.linalg.norm(W))
    core = found.left.vectors(rank).T @ W @ found.right.vectors(rank)

    def amplification(k: int) -> float | None:
        if not 1 <= k <= rank:
            return None
        there = float(np.linalg.norm(core[:k, :k]))
        return _ratio(size, there if there > max(W.shape) * EPS * size0 else 0.0)

    share = _ratio(float(np.linalg.norm(core)), size0) if rank else None
    return {
        "relative_spectral": _ratio(float(found.s[0]), spectral_norm(W)),
        "relative_frobenius": _ratio(size, size0),
        "amplification_4": amplification(4),
        "amplification_16": amplification(16),
        "amplification_k": amplification(rank),
        "base_share_k": None if share is None else share**2,
        "base_share_chance": rank**2 / W.size if rank else None,
    }


def _ratio(a: float, b: float) -> float | None:
    """a / b where it is a number; a and b not negative."""
    return a / b if 0 < b < math.inf and math.isfinite(a / b) else None


def spectral_norm(W: np.ndarray) -> float:
    """‖W‖₂, to rounding; W (d_out, d_in) float64."""
    return float(_top(W, 1)[1][0])


def _top(W: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """U (d_out, k) and s (k,): the k largest singular values and their left vectors, to rounding.

    By ARPACK on the smaller Gram matrix, which is not formed, run until it gains no more; by a full
    SVD where that is small, or where a Gram matrix would lose the values.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    m, size = min(W.shape), float(np.abs(W).max())
    if m > max(SMALL, 2 * k) and size > 0:
        tall = W if W.shape[0] >= W.shape[1] else W.T
        gram = LinearOperator((m, m), lambda x: tall.T @ (tall @ (x / size)) / size, dtype=W.dtype)
        v0 = np.random.default_rng(SEED).standard_normal(m)
        try:
            V = eigsh(gram, k, v0=v0)[1]
            P, s, Qh = np.linalg.svd(tall @ V, full_matrices=False)
            if s[-1] > RESOLVED * s[0]:
                return (P if tall is W else V @ Qh.T), s
        except ArpackNoConvergence:
            pass
    U, s, _ = np.linalg.svd(W, full_matrices=False)
    return U[:, :k], s[:k]


@dataclass(frozen=True, eq=False)
class Landing:
    """How the energy ‖ΔW‖²_F is spread over the singular directions of W0, on either side.

    left (10,): the share ‖u0ᵢᵀΔW‖² of the i-th left singular vectors of W0, by decile of i among
    1 … min(d_out, d_in), the largest singular values first; left_outside: what is orthogonal to
    all of them, where d_out > d_in. They sum to 1. Likewise right.
    """

    left: np.ndarray
    left_outside: float
    right: np.ndarray
    right_outside: float

    def columns(self) -> dict[str, float | None]:
        """By LANDING_COLUMNS; None where undefined."""
        shares = [*self.left, self.left_outside, *self.right, self.right_outside]
        values = (float(share) if np.isfinite(share) else None for share in shares)
        return dict(zip(LANDING_COLUMNS, values, strict=True))


def landing(found: Decomposition, base: Decomposition) -> Landing:
    """Where ΔW lands in W0; base: `decompose_base(W0)`.

    Unchanged by ΔW -> c·ΔW and by rotations of both. All nan for ΔW = 0 and for W0 = 0. Among
    equal singular values of W0, zeros too, the order is arbitrary, and the deciles with it.
    """
    left = _shares(base.left, found.left, found, base)
    right = _shares(base.right, found.right, found, base)
    return Landing(left[:-1], float(left[-1]), right[:-1], float(right[-1]))


def landing_chance(d_out: int, d_in: int) -> Landing:
    """The mean of `landing` over random directions of ΔW: the sizes of the deciles over d."""
    m = min(d_out, d_in)
    sizes = np.bincount(_deciles(m), minlength=DECILES)
    return Landing(sizes / d_out, (d_out - m) / d_out, sizes / d_in, (d_in - m) / d_in)


def _deciles(m: int) -> np.ndarray:
    """0 … 9 for each of m indices, as evenly as m allows."""
    return np.arange(m) * DECILES // m


def _shares(
    of_W0: Basis, of_update: Basis, found: Decomposition, base: Decomposition
) -> np.ndarray:
    """The shares of the deciles, and of what is outside, (11,)."""
    if found.rank == 0 or base.rank == 0:
        return np.full(DECILES + 1, np.nan)
    s = found.s[: found.rank] / found.s[0]
    cosines = of_W0.against(of_update)[:, : found.rank]
    m, d = base.s.size, of_W0.M.shape[0]
    energy = np.bincount(_deciles(m), cosines**2 @ s**2 / np.sum(s**2), minlength=DECILES)
    outside = max(0.0, 1 - float(energy.sum())) if d > m else 0.0
    shares = np.append(energy, outside)
    return shares / shares.sum()


def intruders(
    found: Decomposition,
    W0: np.ndarray,
    base: Decomposition,
    top: int = 10,
    epsilon: float = 0.5,
) -> int | None:
    """How many of the first `top` left singular vectors of W0 + ΔW are new to W0.

    Those whose greatest |cosine| with any left singular vector of W0 is below epsilon (Shuttleworth
    et al., arXiv 2410.21228). base: `decompose_base(W0)`. Where values of W0 are equal, every
    vector of their span is a singular vector, and the cosine is that with the span; vectors of
    value zero do not count, on either side. 0 for ΔW = 0; None for W0 = 0.
    """
    if base.rank == 0:
        return None
    if found.rank == 0:
        return 0
    U, s = _top(_sum(W0, found), min(top, *W0.shape))
    U = U[:, s > max(W0.shape) * EPS * s[0]]
    squares = base.left.against(Basis(U))[: base.rank] ** 2
    s0 = base.s[: base.rank]
    starts = np.flatnonzero(np.append(True, s0[:-1] - s0[1:] > TIED * s0[0]))
    greatest = np.add.reduceat(squares, starts, axis=0).max(axis=0)
    return int(np.count_nonzero(greatest < epsilon**2))


def _sum(W0: np.ndarray, found: Decomposition) -> np.ndarray:
    """W0 + ΔW in float64, ΔW never whole."""
    W = np.array(W0, dtype=np.float64)
    left, right = (side.vectors(found.rank) for side in (found.left, found.right))
    left = left * found.s[: found.rank]
    for i in range(0, len(W), decompose.ROWS):
        W[i : i + decompose.ROWS] += left[i : i + decompose.ROWS] @ right.T
    return W


def decompose_base(W0: np.ndarray, cache: Path | None = None) -> Decomposition:
    """All singular values and vectors of W0, by a full SVD in float64; vectors kept in float32.

    That moves a cosine by 1e-7 or so, and halves what lies on disk. cache: a directory, where the
    result is kept by the SHA-256 of W0 and found again; a file there that is not what was written
    is computed anew. Raises CheckpointError where it cannot be written.
    """
    if cache is None:
        return _decomposed(W0)
    file = cache / f"{_content(W0)}.safetensors"
    found = _load(file, W0.shape)
    if found is None:
        found = _decomposed(W0)
        _save(file, found)
    return found


def _decomposed(W0: np.ndarray) -> Decomposition:
    found = decompose.decomposition(DenseUpdate("W0", W0.shape, lambda: W0))
    U, V = (side.vectors().astype(np.float32) for side in (found.left, found.right))
    return _assembled(U, found.s, V)


def _assembled(U: np.ndarray, s: np.ndarray, V: np.ndarray) -> Decomposition:
    bound = float(max(len(U), len(V)) * EPS * s[0])
    return Decomposition(Basis(U), s, Basis(V), metrics.rank(s, bound), bound)


def _content(W0: np.ndarray) -> str:
    """The name of W0's decomposition: by its shape, its dtype and its values."""
    digest = hashlib.sha256(f"svd {CACHE_VERSION} {W0.shape} {W0.dtype.str}\n".encode())
    digest.update(np.ascontiguousarray(W0).data)
    return digest.hexdigest()


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("U", "s", "V"):
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _save(file: Path, found: Decomposition) -> None:
    tensors = {"U": found.left.M, "s": found.s, "V": found.right.M}
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    facts = {"sha256": _checksum(tensors)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _writing:
            store.replace(file, lambda path: save_file(tensors, path, metadata=facts))
    except (OSError, SafetensorError) as error:  # the latter for a full disk, too
        raise CheckpointError(f"{file}: cannot be written: {error}; see --cache") from None


def _load(file: Path, shape: tuple[int, ...]) -> Decomposition | None:
    """What `_save` wrote for a matrix of this shape; None where it is absent or damaged."""
    (d_out, d_in), m = shape, min(shape)
    try:
        stored = open_tensors(file)
        if {n: (x.shape, x.dtype) for n, x in stored.items()} != {
            "U": ((d_out, m), "F32"),
            "s": ((m,), "F64"),
            "V": ((d_in, m), "F32"),
        }:
            return None
        tensors = {name: tensor.load() for name, tensor in stored.items()}
        if metadata(file).get("sha256") != _checksum(tensors):
            return None
    except CheckpointError:
        return None
    return _assembled(tensors["U"], tensors["s"], tensors["V"])


def estimate(shapes: Iterable[tuple[int, int]]) -> tuple[float, int]:
    """About how many seconds `decompose_base` takes for matrices of these shapes, and how many
    bytes of cache; nothing there yet. Measured on a small matrix, in a tenth of a second.
    """
    shapes = list(shapes)
    numbers = sum(min(shape) * sum(shape) for shape in shapes)
    space = sum(4 * min(shape) * sum(shape) + 8 * min(shape) for shape in shapes)
    if not shapes:
        return 0.0, 0
    speed = _probe() / _work((PROBE, PROBE))
    writing = 1e-8 * numbers  # hashing, rounding, writing; measured
    return speed * sum(map(_work, shapes)) + writing, space


def _work(shape: tuple[int, int]) -> float:
    """Proportional to the time of a full SVD: a QR of the longer side, and a square matrix."""
    m, d = sorted(shape)
    return float(m * m * (8 * d + 14 * m))


def _probe() -> float:
    """Seconds for a matrix of PROBE rows and columns; the better of two, as the first wakes up."""
    W = np.random.default_rng(SEED).standard_normal((PROBE, PROBE))
    taken = []
    for _ in range(2):
        begin = time.perf_counter()
        _decomposed(W)
        taken.append(time.perf_counter() - begin)
    return min(taken)


def estimate_line(shapes: Iterable[tuple[int, int]], cache: Path) -> str:
    """What `estimate` says, in words."""
    shapes = list(shapes)
    seconds, space = estimate(shapes)
    matrices = "1 matrix" if len(shapes) == 1 else f"{len(shapes)} matrices"
    return (
        f"full decomposition of {matrices} of the base: about {_duration(seconds)}, and about"
        f" {_size(space)} in {cache}; less for what is there already"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(space: int) -> str:
    if space < 1e6:
        return f"{math.ceil(space / 1e3)} kB"
    return f"{space / 1e6:.0f} MB" if space < 1e9 else f"{space / 1e9:.1f} GB"


def default_cache() -> Path:
    """Where decompositions are kept unless one says otherwise: by XDG, else below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    place = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return place / "multilora" / "base"


def add_options(parser: argparse.ArgumentParser) -> None:
    """--landing, --intruders, --cache."""
    group = parser.add_argument_group(
        "against the singular vectors of the base (with --base)",
        "Both need the full decomposition of every W0: half a minute and 134 MB on disk for one of"
        " 4096 × 4096, hours and 40 GB for a model of 7 billion parameters. An estimate is printed"
        " before it starts, and the result is kept, so that it is paid for once.",
    )
    group.add_argument(
        "--landing",
        action="store_true",
        help="the share of the update's energy by decile of W0's left and right singular vectors",
    )
    group.add_argument(
        "--intruders",
        action="store_true",
        help="how many of the top 10 left singular vectors of W0 + ΔW are new to W0",
    )
    group.add_argument(
        "--cache", metavar="DIR", help="where decompositions are kept (default: below ~/.cache)"
    )


def cache_directory(arguments: Any) -> Path:
    """What `add_options` was given for --cache, or the default."""
    return Path(arguments.cache) if arguments.cache else default_cache()
