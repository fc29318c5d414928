"""Whole fine-tuned model as Transformers saves it; needs its base, --base.

    model.safetensors, pytorch_model.bin, or shards with an index, in both directories

ΔW = W_tuned − W0 is taken tensor by tensor, in float32 or float64. The noise floor counts the
rounding of W_tuned, and with --base-rounded that of W0 too. Names are matched without one prefix on
either side (`model.`, `base_model.model.`); `module` is the base's name. Matrices have the
orientation in which they are stored: an embedding is (entries, width), a convolution's kernel is
(d_out, d_in·kernel). Each expert of a stack (experts, …, …) is a part.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.formats import Options, base, shards
from analysis.formats.place import Place
from analysis.formats.tensors import FLOATS, Stored
from analysis.numerics.denoise import noise_size
from analysis.numerics.floor import noise_floor
from analysis.update import DenseUpdate, Entry, Other, Skipped

STEMS = base.STEMS


def recognise(place: Place) -> bool:
    """Return whether the directory holds the weights of a whole model."""
    return shards.locate(place.path, *STEMS) is not None


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the difference of each matrix, whose values are read when they are needed."""
    if options.base is None:
        raise CheckpointError(
            f"{place.path}: is a whole model; pass the one that it was trained from, --base DIR"
        )
    file, tuned = base.open_model(place)
    source, before = base.open_model(Place(base.directory(options.base)))
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
    matched = set(names.values())
    for name, W0 in before.items():
        if name not in matched:
            yield Other(name, f"in the base, tied to {W0.tied}" if W0.tied else "in the base only")


def _tensor(name: str, W: Stored, W0: Stored, file: Path, options: Options) -> Iterator[Entry]:
    """Yield the updates of a tensor that both models have, or say why it has none.

    name: its name in the base.
    W, W0: the tensor in the tuned model and in the base.
    file: the weight file of the tuned model, for messages.
    options: those of the user; base_rounded counts here.
    """
    module = name.removesuffix(".weight")
    dtypes = " and ".join(dict.fromkeys((W.dtype, W0.dtype)))
    floating = W.dtype in FLOATS and W0.dtype in FLOATS
    # A bias, a mask, or the scale of a quantised weight.
    is_buffer = name.endswith((".bias", *base.SCALES)) or not (floating or name.endswith("weight"))
    if len(W.shape) < 2 or is_buffer or 0 in W.shape:
        yield Other(name, base.change(W, W0))
    elif not floating:  # its shape may differ too, if it is packed
        yield Skipped(module, f"{file}: {module}: stored as {dtypes}; expected floating point")
    elif W.shape != W0.shape:
        yield Other(name, base.change(W, W0))
    elif W.scaled or W0.scaled:
        yield Skipped(module, f"{file}: {module}: is scaled by another tensor (quantised)")
    else:
        for part, select in _matrices(module, W.shape):
            yield _update(module, part, select, W, W0, file, options)


def _matrices(
    module: str, shape: tuple[int, ...]
) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Yield each part and the function that takes its matrix out of the tensor."""
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
    """Return the update of one matrix.

    module, part: its name.
    select: takes the matrix out of a tensor.
    W, W0: the tensor in the tuned model and in the base, of equal shape.
    file: the weight file of the tuned model.
    options: those of the user; base_rounded counts here.
    """
    dtype = np.float64 if "F64" in (W.dtype, W0.dtype) else np.float32

    def load() -> np.ndarray:
        delta = np.array(select(W.load()), dtype)
        with np.errstate(invalid="ignore"):  # Inf − Inf, which is reported later
            return np.subtract(delta, select(W0.load()), out=delta, dtype=dtype)

    def rounded() -> tuple[np.ndarray, np.ndarray | None]:
        return select(W.load()), select(W0.load()) if options.base_rounded else None

    def floor() -> float:
        return noise_floor(*rounded())

    def noise() -> float:
        return noise_size(*rounded())

    d_out, d_in = W.shape[-2:] if part else (W.shape[0], int(np.prod(W.shape[1:])))
    return DenseUpdate(module, (d_out, d_in), load, floor, part, "full", str(file), noise)
