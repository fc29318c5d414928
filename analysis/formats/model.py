"""A whole fine-tuned model as Transformers saves it, minus the base that --base names.

    model.safetensors, pytorch_model.bin, or shards with an index, in both directories

ΔW = W_tuned − W0, tensor by tensor, in float32 or better, with the floor of its rounding noise:
that of storing W_tuned, and with --base-rounded that of W0 too. Names meet after one prefix of
either side (`model.`, `base_model.model.`); `module` is the base's name. Matrices are as they are
stored: an embedding is (entries, width), a convolution's kernel is (d_out, d_in·kernel), and each
expert of a stack (experts, …, …) is a part.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.formats import Options, base, shards
from analysis.formats.tensors import FLOATS, Stored
from analysis.numerics.floor import noise_floor
from analysis.update import DenseUpdate, Entry, Other, Skipped


def recognises(path: Path) -> bool:
    """Whether `path` holds the weights of a whole model."""
    return shards.locate(path, *base.STEMS) is not None


def read(path: Path, options: Options) -> Iterator[Entry]:
    """The difference of each matrix, read when it is needed."""
    if options.base is None:
        raise CheckpointError(
            f"{path}: is a whole model; pass the one that it was trained from, --base DIR"
        )
    file, tuned = base.open_model(path)
    source, before = base.open_model(base.directory(options.base))
    names = base.align(tuned, before)
    if not names:
        raise CheckpointError(f"{file}: no tensor has a name of {source}; is that its base?")
    for name, W in tuned.items():
        if W.tied in names:
            yield Other(name, f"tied to {W.tied}, listed once")
        elif name not in names:
            yield Other(name, "not in the base")
        else:
            yield from _tensor(names[name], W, before[names[name]], file, options)
    met = set(names.values())
    for name, W0 in before.items():
        if name not in met:
            yield Other(name, f"in the base, tied to {W0.tied}" if W0.tied else "in the base only")


def _tensor(name: str, W: Stored, W0: Stored, file: Path, options: Options) -> Iterator[Entry]:
    """One tensor of both models: an update, several, or what else it is."""
    module = name.removesuffix(".weight")
    dtypes = " and ".join(dict.fromkeys((W.dtype, W0.dtype)))
    floating = W.dtype in FLOATS and W0.dtype in FLOATS
    # A mask, or what a weight is scaled by.
    is_buffer = name.endswith((".bias", *base.SCALES)) or not (floating or name.endswith("weight"))
    if len(W.shape) < 2 or is_buffer or 0 in W.shape:
        yield Other(name, base.change(W, W0))
    elif not floating:  # and maybe packed, into another shape
        yield Skipped(module, f"{file}: {module}: stored as {dtypes}; expected floating point")
    elif W.shape != W0.shape:
        yield Other(name, base.change(W, W0))
    elif W.scaled or W0.scaled:
        yield Skipped(module, f"{file}: {module}: is scaled by a tensor of its own (quantised)")
    else:
        for part, select in _matrices(module, W.shape):
            yield _update(module, part, select, W, W0, file, options)


def _matrices(
    module: str, shape: tuple[int, ...]
) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Part, and how to take its matrix out of the tensor."""
    if len(shape) == 3 and "experts" in module.split("."):
        for i in range(shape[0]):
            yield f"expert{i}", partial(np.take, indices=i, axis=0)
    else:
        yield "", partial(np.reshape, shape=(shape[0], -1))


def _update(
    module: str,
    part: str,
    select: Callable[[np.ndarray], np.ndarray],
    W: Stored,
    W0: Stored,
    file: Path,
    options: Options,
) -> DenseUpdate:
    dtype = np.float64 if "F64" in (W.dtype, W0.dtype) else np.float32

    def load() -> np.ndarray:
        delta = np.array(select(W.load()), dtype)
        with np.errstate(invalid="ignore"):  # Inf − Inf, found later
            return np.subtract(delta, select(W0.load()), out=delta, dtype=dtype)

    def floor() -> float:
        return noise_floor(select(W.load()), select(W0.load()) if options.base_rounded else None)

    d_out, d_in = W.shape[-2:] if part else (W.shape[0], int(np.prod(W.shape[1:])))
    return DenseUpdate(module, (d_out, d_in), load, floor, part, "full", str(file))
