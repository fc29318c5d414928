"""Whole fine-tuned model as Transformers saves it; needs its base, --base.

    model.safetensors, pytorch_model.bin, or shards with an index; or one file of a state dict; or
    a distributed checkpoint (`distributed`); the base in any of these too

ΔW = W_tuned − W0 is taken tensor by tensor, in float32 or float64. The noise floor counts the
rounding of W_tuned, and with --base-rounded that of W0 too. Names are matched without one prefix on
either side (`model.`, `base_model.model.`); `module` is the base's name. Matrices have the
orientation in which they are stored: an embedding is (entries, width), a convolution's kernel is
(d_out, d_in·kernel). Each expert of a stack (experts, …, …) is a part.

A head that its base ties to the embedding is compared with that embedding. A resized vocabulary is
compared in the rows that both have. A matrix that only one of the two models has is skipped.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.tensors import FLOATS, Stored
from analysis.formats import Options, base, ties
from analysis.numerics.denoise import noise_size
from analysis.numerics.floor import noise_floor
from analysis.update import DenseUpdate, Entry, Other, Skipped

STEMS = base.STEMS
# Modules whose weights are stacks of matrices, one for each expert.
EXPERTS = re.compile(r"(^|\.)experts(\.|$)|(^|[._])moe([._]|$)")
FACTOR = re.compile(r"\.lora_(A|B|down|up)(\.|$)")
# Last components of tensors that are computed, not trained, and may have two dimensions.
BUFFERS = frozenset(
    "inv_freq cos_cached sin_cached freqs_cis position_ids token_type_ids relative_position_index"
    " relative_coords_table causal_mask attn_mask mask masked_bias".split()
)


def recognise(place: Place) -> bool:
    """Return whether the directory holds the weights of a whole model, and no factors of LoRA."""
    file = base.locate(place.path)
    if file is None:
        return False
    try:
        return not any(FACTOR.search(name) for name in place.tensors(file))
    except CheckpointError:
        return True  # even if it is broken


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the difference of each matrix, whose values are read when they are needed."""
    if options.base is None:
        raise CheckpointError(
            f"{place.path}: is a whole model; pass the one that it was trained from, --base DIR"
        )
    base_place = Place(base.directory(options.base))
    file, tuned = base.open_model(place)
    source, before = base.open_model(base_place)
    names = base.align(tuned, before)
    if not names:
        raise CheckpointError(f"{file}: no tensor has a name of {source}; is that its base?")
    tied = {
        name: embedding
        for name, embedding in _untied(base_place, before, tuned).items()
        if name not in names and not tuned[name].tied
    }
    for name, W in tuned.items():
        if W.tied in names:
            yield Other(name, f"tied to {W.tied}, listed once")
        elif name in names:
            yield from _tensor(names[name], W, before[names[name]], file, options)
        elif name in tied:
            yield from _tensor(name, W, before[tied[name]], file, options)
        else:
            yield _unmatched(name, W, file, f"is not in the base, {source}")
    matched = set(names.values())
    newly_tied = _untied(place, tuned, before)
    for name, W0 in before.items():
        if name in matched:
            continue
        if W0.tied or (ties.is_head(name) and ties.is_tied(base_place, before)):
            yield Other(name, f"in the base, tied to {W0.tied or 'its embedding'}")
        elif name in newly_tied:
            yield from _tensor(name, tuned[newly_tied[name]], W0, file, options)
        else:
            yield _unmatched(name, W0, file, f"is in the base only, {source}")


def _untied(
    place: Place, tied: Mapping[str, Stored], other: Mapping[str, Stored]
) -> dict[str, str]:
    """Return name in the other model → the embedding that stands for it in the model at `place`.

    tied: the tensors of the model at `place`. The names are those of heads, if its head is tied,
    and of embeddings that an encoder and a decoder share.
    """
    shared = {name: ties.shared(name, tied) for name in other}
    shared = {name: embedding for name, embedding in shared.items() if embedding}
    if not ties.is_tied(place, tied):
        return shared
    heads = [name for name in other if ties.is_head(name) and len(other[name].shape) == 2]
    found = {name: ties.embedding(tied, other[name].shape[1]) for name in heads}
    return shared | {name: embedding for name, embedding in found.items() if embedding}


def is_weight(name: str, W: Stored) -> bool:
    """Return whether a tensor can be trained as a matrix, or is the quantised form of one."""
    if len(W.shape) < 2 or 0 in W.shape or name.rpartition(".")[2] in BUFFERS:
        return False
    # A bias, a mask, or the scale of a quantised weight.
    return not name.endswith((".bias", *base.SCALES)) and (
        W.dtype in FLOATS or name.endswith("weight")
    )


def _unmatched(name: str, W: Stored, file: Path, what: str) -> Entry:
    """Return the entry of a tensor that one of the models lacks; what: which, for the user."""
    if not is_weight(name, W):
        return Other(name, what.split(",")[0].removeprefix("is "))
    module = name.removesuffix(".weight")
    return Skipped(module, f"{file}: {module}: {W.shape} {what}: not compared")


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
    if not is_weight(name, W) and (W.shape == W0.shape or not is_weight(name, W0)):
        yield Other(name, base.change(W, W0))
    elif 0 in W.shape or len(W.shape) < 2:
        reason = f"is {W.shape}, in the base {W0.shape}; was a sharded model saved ungathered?"
        yield Skipped(module, f"{file}: {module}: {reason}")
    elif not floating:  # its shape may differ too, if it is packed
        yield Skipped(module, f"{file}: {module}: stored as {dtypes}; expected floating point")
    elif W.scaled or W0.scaled:
        yield Skipped(module, f"{file}: {module}: is scaled by another tensor (quantised)")
    elif W.shape == W0.shape:
        for part, select in _matrices(module, W.shape):
            yield _update(module, part, select, W, W0, file, options)
    elif ties.has_entries(name) and len(W.shape) == len(W0.shape) and W.shape[1:] == W0.shape[1:]:
        rows = min(W.shape[0], W0.shape[0])
        more = f"{W.shape[0] - rows} new" if W.shape[0] > rows else f"{W0.shape[0] - rows} removed"
        yield Other(f"{name}[{rows}:]", f"{more} rows, which have no counterpart")
        yield _update(module, "", partial(_first_rows, rows=rows), W, W0, file, options)
    else:
        reason = f"is {W.shape}, in the base {W0.shape}; expected equal shapes"
        yield Skipped(module, f"{file}: {module}: {reason}")


def _first_rows(W: np.ndarray, rows: int) -> np.ndarray:
    """Return the first rows of an array as a matrix."""
    return W[:rows].reshape(rows, -1)


def _matrices(
    module: str, shape: tuple[int, ...]
) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Yield each part and the function that takes its matrix out of the tensor."""
    if len(shape) == 3 and EXPERTS.search(module):
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
    W, W0: the tensor in the tuned model and in the base, of equal shape but for the rows that
        `select` leaves out.
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

    d_out, d_in = W.shape[-2:]
    if not part:
        d_out, d_in = min(W.shape[0], W0.shape[0]), int(np.prod(W.shape[1:]))
    return DenseUpdate(module, (d_out, d_in), load, floor, part, "full", str(file), noise)
