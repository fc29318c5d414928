"""W0 → all its singular vectors, which cost much and are kept: what it takes, and the cache."""

import hashlib
import math
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from analysis import CheckpointError, store
from analysis.formats.tensors import open_file
from analysis.numerics import decompose, metrics
from analysis.numerics.decompose import EPS, Basis, Decomposition
from analysis.update import DenseUpdate

SEED = 0
PROBE = 512  # the size of the matrix by which the speed of a machine is measured
CACHE_VERSION = "1"

_writing = threading.Lock()  # a process has one temporary name for a file


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
        stored, metadata = open_file(file)
        if {n: (x.shape, x.dtype) for n, x in stored.items()} != {
            "U": ((d_out, m), "F32"),
            "s": ((m,), "F64"),
            "V": ((d_in, m), "F32"),
        }:
            return None
        tensors = {name: tensor.load() for name, tensor in stored.items()}
        if metadata.get("sha256") != _checksum(tensors):
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


def estimate_line(shapes: Iterable[tuple[int, int]], cache: Path | None) -> str:
    """What `estimate` says, in words."""
    shapes = list(shapes)
    seconds, space = estimate(shapes)
    matrices = "1 matrix" if len(shapes) == 1 else f"{len(shapes)} matrices"
    line = f"full decomposition of {matrices} of the base: about {_duration(seconds)}"
    if cache is None:
        return line
    return f"{line}, and about {_size(space)} in {cache}; less for what is there already"


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
