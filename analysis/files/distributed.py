"""Distributed checkpoint of PyTorch (dcp), as FSDP saves it: .metadata and *.distcp.

    checkpoint-500/pytorch_model_fsdp_0/.metadata, __0_0.distcp, __1_0.distcp, …

.metadata says which piece of which tensor is where: at an offset of a .distcp file lies what
torch.save wrote. It is a pickle. Here it builds records of this module, and nothing else: a
pickle that names anything but the classes of such metadata is refused. A whole model needs its
base, --base; factors of LoRA are read as from a single file.
"""

import io
import math
import pickle
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.files import pickles
from analysis.files.regular import is_plain, open_regular
from analysis.files.tensors import (
    FLOATS,
    TORCH_NAMES,
    Stored,
    by_number,
    in_pickle,
    line,
    short,
)

METADATA, SUFFIX = ".metadata", ".distcp"
# Where Accelerate and torchtitan put the model below a checkpoint; the optimizer lies beside it.
BELOW = ("pytorch_model_fsdp_0", "pytorch_model_fsdp", "model")
# What is not of the model, if both are in one checkpoint.
STATE = ("optimizer.", "optim.", "lr_scheduler.", "dataloader.", "train_state.")
PLACE = ("relative_path", "length")
FEW = 32  # values of an object of the metadata, or dimensions of a tensor
MAX_METADATA = 2**26  # bytes; a hundred thousand pieces need less
# The opcodes that such metadata needs. None of them makes more of a file than its own size.
OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE NONE NEWTRUE"
    " NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE BINUNICODE8"
    " SHORT_BINBYTES BINBYTES EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND"
    " APPENDS SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD"
).split()
RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties",
        "ChunkStorageMetadata", "MetadataIndex", "StorageMeta",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
}  # fmt: skip


DTYPES = frozenset(
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int8 int16 int32 int64 uint8 uint16"
    " uint32 uint64 bool complex64 complex128".split()
)


class Record:
    """Values of a pickled object by their names, in place of the object."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        if len(state) > FEW:
            raise pickle.UnpicklingError("it has an object of more values than it should")
        if isinstance(state, dict):
            self.__dict__.update({key: x for key, x in state.items() if isinstance(key, str)})
        else:  # the properties of a tensor, of which the first is its dtype
            self.values = state

    def get(self, name: str) -> Any:
        """Return a value; None if the record has none of that name."""
        return self.__dict__.get(name)


class _Reader(pickle._Unpickler):  # the one in Python: the one in C cannot be restricted
    """An unpickler that knows the classes of the metadata, and puts records in their place."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        if name in RECORDS.get(module, ()):
            return Record
        if module == "torch" and name in DTYPES:
            return f"torch.{name}"
        if (module, name) in PLAIN:
            return PLAIN[module, name]
        raise pickle.UnpicklingError(f"it names {short(f'{module}.{name}')}")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        """Add keys and values to the dict on the stack.

        A key is text or a record: to hash a tuple nested deeply enough would end the process.
        """
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | Record) or not isinstance(self.stack[-1], dict):
                raise pickle.UnpicklingError("it has a dict of other keys than it should")
            self.stack[-1][key] = value


_Reader.dispatch = {
    **{
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in OPCODES)
    },
    pickle.SETITEM[0]: _Reader.load_setitem,  # type: ignore[dict-item]
    pickle.SETITEMS[0]: _Reader.load_setitems,  # type: ignore[dict-item]
}


def _last(*values: Any) -> Any:
    """Return the last argument: all that is kept of a layout, a format or a path."""
    return values[-1] if values else None


def _size(values: Any = ()) -> tuple[Any, ...]:
    """Return the numbers of a torch.Size; () for what is none."""
    return tuple(values) if isinstance(values, tuple | list) and len(values) <= FEW else ()


def _mapping(*_: Any) -> dict[str, Any]:
    """Return an empty dict, into which the items of an OrderedDict are put later."""
    return {}


PLAIN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch", "Size"): _size,
    ("torch.serialization", "_get_layout"): _last,
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): _last,
    ("pathlib", "PosixPath"): _last,
    ("pathlib", "WindowsPath"): _last,
    ("pathlib", "PurePosixPath"): _last,
    ("collections", "OrderedDict"): _mapping,
}


def locate(directory: Path) -> Path | None:
    """Return the metadata of a distributed checkpoint in a directory, or just below; or None."""
    places = [directory, *(directory / name for name in BELOW)]
    return next((p / METADATA for p in places if (p / METADATA).is_file()), None)


def open_metadata(file: Path) -> dict[str, Stored]:
    """Return name → Stored of a distributed checkpoint, in natural order.

    file: its .metadata. Raises CheckpointError if it is broken or does more than list tensors.
    """
    metadata = _unpickled(file)
    tensors, pieces = metadata.get("state_dict_metadata"), metadata.get("storage_data")
    if not isinstance(tensors, dict) or not isinstance(pieces, dict):
        raise CheckpointError(f"{file}: lists no tensors; expected the metadata of torch's dcp")
    if not any(isinstance(name, str) and not name.startswith(STATE) for name in tensors):
        raise CheckpointError(f"{file}: has no weights; is it the state of an optimizer?")
    _refuse_overlap(file, pieces.values())
    at: dict[str, list[tuple[Any, Record]]] = {}
    for index, place in pieces.items():
        name = index.get("fqn") if isinstance(index, Record) else None
        if isinstance(name, str) and isinstance(place, Record):
            at.setdefault(name, []).append((index.get("offset"), place))
    shaped = {
        name: facts
        for name, facts in tensors.items()
        if isinstance(name, str) and not name.startswith(STATE)
        if isinstance(facts, Record) and _is_shape(facts.get("size"))
    }
    return {
        name: _stored(file, name, shaped[name], at.get(name, []))
        for name in sorted(shaped, key=by_number)
    }


def _refuse_overlap(file: Path, places: Collection[Any]) -> None:
    """Raise CheckpointError if the pieces are together larger than the files that hold them.

    A small file, read as thousands of pieces, would take any time and memory.
    """
    lengths: Counter[str] = Counter()
    for place in places:
        name, length = (place.get(k) if isinstance(place, Record) else None for k in PLACE)
        if isinstance(name, str) and isinstance(length, int) and _is_shape((length,)):
            lengths[name] += length
    for name, length in lengths.items():
        held = file.parent / name
        if is_plain(name) and held.is_file() and length > held.stat().st_size:
            raise CheckpointError(f"{file}: puts {length} bytes into {name}, which holds fewer")


def _unpickled(file: Path) -> Record:
    """Return the record in a .metadata file; raise CheckpointError for anything else."""
    try:
        with open_regular(file) as opened:
            data = opened.read(MAX_METADATA + 1)
        if len(data) > MAX_METADATA:
            raise ValueError(f"is over {MAX_METADATA} bytes long")
        value = _Reader(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise CheckpointError(f"{file}: not readable as metadata of dcp: {line(error)}") from None
    if not isinstance(value, Record):
        raise CheckpointError(f"{file}: holds a {type(value).__name__}; expected metadata of dcp")
    return value


def _is_shape(value: Any) -> bool:
    """Return whether a value is a shape: a tuple of whole numbers, 0 or more."""
    return isinstance(value, tuple) and all(type(n) is int and 0 <= n < 2**48 for n in value)


def _stored(file: Path, name: str, facts: Record, places: list[tuple[Any, Record]]) -> Stored:
    """Return one tensor.

    file, name: for messages; facts: its shape, dtype and pieces; places: (offset of a piece, where
    it lies).
    """
    properties = facts.get("properties")
    values = properties.values if isinstance(properties, Record) else ()
    is_named = isinstance(values, tuple) and values and isinstance(values[0], str)
    torch_name = values[0] if is_named else "of no known dtype"
    shape = facts.get("size")
    load = partial(_load, file, name, shape, TORCH_NAMES.get(torch_name, ""), facts, places)
    return Stored(shape, TORCH_NAMES.get(torch_name, torch_name), load)


def _load(
    file: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    facts: Record,
    places: list[tuple[Any, Record]],
) -> np.ndarray:
    """Return the values of a tensor, put together from its pieces; arguments as for `_stored`."""
    where = f"{file}: {name}"
    if not dtype:
        raise CheckpointError(f"{where}: is not stored in floating point")
    chunks = facts.get("chunks")
    sizes = {
        chunk.get("offsets"): chunk.get("sizes")
        for chunk in (chunks if isinstance(chunks, list) else [])
        if isinstance(chunk, Record) and _is_shape(chunk.get("offsets"))
    }
    placed = [((0,) * len(shape) if at is None else at, place) for at, place in places]
    pieces = {at: place for at, place in placed if _is_shape(at) and len(at) == len(shape)}
    if not all(map(_is_shape, sizes.values())) or sizes.keys() != pieces.keys():
        raise CheckpointError(f"{where}: its pieces do not match those that are stored")
    if sum(map(math.prod, sizes.values())) != math.prod(shape):
        raise CheckpointError(f"{where}: its pieces do not fill its shape, {shape}")
    whole: np.ndarray | None = None
    for offset, place in pieces.items():
        piece = _piece(file, name, place, dtype)
        if piece.shape != sizes[offset]:
            raise CheckpointError(f"{where}: a piece is {piece.shape}; expected {sizes[offset]}")
        if piece.shape == shape:
            return piece
        if whole is None:
            whole = np.zeros(shape, FLOATS[dtype])
        target = whole[tuple(slice(i, i + n) for i, n in zip(offset, piece.shape, strict=True))]
        if target.shape != piece.shape:
            raise CheckpointError(f"{where}: a piece lies outside its shape, {shape}")
        target[...] = piece
    assert whole is not None
    return whole


def _piece(file: Path, name: str, place: Record, dtype: str) -> np.ndarray:
    """Return the values of one piece; place: the file, the offset and the length of its bytes."""
    relative, offset, length = (place.get(k) for k in ("relative_path", "offset", "length"))
    if not is_plain(relative):
        raise CheckpointError(f"{file}: {name}: lies in {short(relative)}; expected a plain name")
    source = file.parent / relative
    if place.get("transform_descriptors"):
        raise CheckpointError(f"{source}: {name}: is transformed (compressed); expected plain")
    if not (_is_shape((offset, length)) and source.is_file() and not source.is_symlink()):
        raise CheckpointError(f"{source}: {name}: no such piece; expected a file of {SUFFIX}")
    if offset + length > source.stat().st_size:
        raise CheckpointError(f"{source}: {name}: the file is cut short")
    with open_regular(source) as opened:
        opened.seek(offset)
        piece = _tensor(opened.read(length), source, name, offset)
    if piece.dtype != dtype:
        raise CheckpointError(f"{source}: {name}: is {piece.dtype}; expected {dtype}")
    return piece.load()


def _tensor(data: bytes, source: Path, name: str, offset: int) -> Stored:
    """Return the tensor in the bytes that torch.save wrote at an offset of a file."""
    try:
        saved, regions = pickles.contents_of(io.BytesIO(data))
    except pickles.Refused as error:
        raise CheckpointError(f"{source}: {name}: not a readable piece: {line(error)}") from None
    if not isinstance(saved, pickles.Saved):
        raise CheckpointError(f"{source}: {name}: not a readable piece: it holds no tensor")
    region = regions.get(saved.storage)
    place = region and pickles.Region(offset + region.start, region.length)
    return in_pickle(source, name, saved, place)
