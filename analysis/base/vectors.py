"""Cached full SVD of base weights, with a cost estimate."""

import hashlib
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from analysis import CheckpointError, store
from analysis.files.tensors import open_file
from analysis.numerics import decompose, metrics
from analysis.numerics.decompose import EPS, Basis, Decomposition
from analysis.update import DenseUpdate

SEED = 0
PROBE = 512  # rows and columns of the matrix that measures the speed of the machine
CACHE_VERSION = "1"


def decompose_base(W0: np.ndarray, cache: Path | None = None) -> Decomposition:
    """Return all singular values and vectors of W0, from a full SVD in float64.

    The vectors are kept in float32, which changes a cosine by about 1e-7 and halves the file.
    cache: a directory, in which the result is kept under the SHA-256 of W0; a damaged file is
    computed anew. Raises CheckpointError if the file cannot be written.
    """
    if cache is None:
        return _decompose(W0)
    file = cache / f"{_content(W0)}.safetensors"
    decomposition = _load(file, W0.shape)
    if decomposition is None:
        decomposition = _decompose(W0)
        _save(file, decomposition)
    return decomposition


def _decompose(W0: np.ndarray) -> Decomposition:
    exact = decompose.decomposition(DenseUpdate("W0", W0.shape, lambda: W0))
    U, V = (side.vectors().astype(np.float32) for side in (exact.left, exact.right))
    return _assemble(U, exact.s, V)


def _assemble(U: np.ndarray, s: np.ndarray, V: np.ndarray) -> Decomposition:
    bound = float(max(len(U), len(V)) * EPS * s[0])
    return Decomposition(Basis(U), s, Basis(V), metrics.rank(s, bound), bound)


def _content(W0: np.ndarray) -> str:
    """Return the SHA-256 of W0's shape, dtype and values, which names its decomposition."""
    digest = hashlib.sha256(f"svd {CACHE_VERSION} {W0.shape} {W0.dtype.str}\n".encode())
    digest.update(np.ascontiguousarray(W0).data)
    return digest.hexdigest()


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of U, s and V."""
    digest = hashlib.sha256()
    for name in ("U", "s", "V"):
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _save(file: Path, decomposition: Decomposition) -> None:
    tensors = {"U": decomposition.left.M, "s": decomposition.s, "V": decomposition.right.M}
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    facts = {"sha256": _checksum(tensors)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        store.replace(file, lambda path: save_file(tensors, path, metadata=facts))
    except (OSError, SafetensorError) as error:  # a full disk is a SafetensorError
        raise CheckpointError(f"{file}: cannot be written: {error}; see --cache") from None


def _load(file: Path, shape: tuple[int, ...]) -> Decomposition | None:
    """Return what `_save` wrote for a matrix of this shape; None if it is missing or damaged."""
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
    return _assemble(tensors["U"], tensors["s"], tensors["V"])


def estimate(shapes: Iterable[tuple[int, int]]) -> tuple[float, int]:
    """Estimate the seconds that `decompose_base` takes for these shapes, and the bytes of cache.

    Assumes an empty cache. The speed of the machine is measured on a small matrix, in a tenth of a
    second.
    """
    shapes = list(shapes)
    numbers = sum(min(shape) * sum(shape) for shape in shapes)
    space = sum(4 * min(shape) * sum(shape) + 8 * min(shape) for shape in shapes)
    if not shapes:
        return 0.0, 0
    speed = _probe() / _work((PROBE, PROBE))
    writing = 1e-8 * numbers  # hashing, rounding and writing, as measured
    return speed * sum(map(_work, shapes)) + writing, space


def _work(shape: tuple[int, int]) -> float:
    """Return a number proportional to the time of a full SVD of a matrix of this shape.

    The time is that of a QR decomposition over the longer side and of the SVD of a square matrix.
    """
    m, d = sorted(shape)
    return float(m * m * (8 * d + 14 * m))


def _probe() -> float:
    """Measure the seconds for a matrix of PROBE rows and columns.

    The shorter of two times is returned, since the first run includes starting threads.
    """
    W = np.random.default_rng(SEED).standard_normal((PROBE, PROBE))
    taken = []
    for _ in range(2):
        begin = time.perf_counter()
        _decompose(W)
        taken.append(time.perf_counter() - begin)
    return min(taken)


def estimate_line(shapes: Iterable[tuple[int, int]], cache: Path | None) -> str:
    """Return the estimate in words, for the user; cache: as for `decompose_base`."""
    shapes = list(shapes)
    seconds, space = estimate(shapes)
    matrices = "1 matrix" if len(shapes) == 1 else f"{len(shapes)} matrices"
    line = f"full decomposition of {matrices} of the base: about {_duration(seconds)}"
    if cache is None:
        return line
    return f"{line}, and about {_size(space)} in {cache}; less if some are there already"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(space: int) -> str:
    if space < 1e6:
        return f"{math.ceil(space / 1e3)} kB"
    return f"{space / 1e6:.0f} MB" if space < 1e9 else f"{space / 1e9:.1f} GB"


def default_cache() -> Path:
    """Return the default cache: below $XDG_CACHE_HOME if it is an absolute path, else ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    place = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return place / "multilora" / "base"
