"""Open files of tensors lazily: .safetensors and .npz without torch, .bin without its code."""

import json
import math
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # before safetensors: numpy then knows bfloat16 and float8
import numpy as np
from safetensors import SafetensorError, safe_open

from analysis import CheckpointError
from analysis.files import nested, pickles
from analysis.files.regular import open_regular

FLOATS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
TORCH_NAMES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
}
# What begins an array in a .npz file, after its length.
NPY = re.compile(
    rb"\{'descr': '([<>|=][biufcOSUV][0-9]*)', 'fortran_order': (True|False),"
    rb" 'shape': \(([0-9, ]*)\),? *\}\s*"
)
NPY_HEADER = 10**4  # bytes
LONGEST_NAME = 1000  # characters of the name of a tensor, of a part or of a key
MAX_HEADER = 10**7  # bytes of JSON; a hundred thousand tensors need less


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, whose values are read when they are needed.

    shape: its shape.
    dtype: its dtype, by the names of FLOATS.
    load: reads the values; raises CheckpointError if they are not floating point.
    tied: an earlier tensor of the file that shares its memory, else "".
    scaled: True if it is quantised, so that its values mean nothing without another tensor.
    """

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray]
    tied: str = ""
    scaled: bool = False


class TensorFile(NamedTuple):
    """The tensors of a file by name, and the metadata that it was saved with."""

    tensors: dict[str, Stored]
    metadata: dict[str, Any]


def open_file(path: Path) -> TensorFile:
    """Open a .safetensors, .npz or .bin file; the names are in natural order, 2 before 10.

    The metadata of a .bin are the settings next to its tensors (`nested.settings`). Raises
    CheckpointError for a file that is missing, cut short, or not of the format that its name says.
    """
    metadata: dict[str, Any] = {}
    if path.suffix == ".npz":
        tensors = _open_npz(path)
    else:
        is_safetensors = path.suffix == ".safetensors"
        tensors, metadata = _open_safetensors(path) if is_safetensors else _open_bin(path)
    return TensorFile({name: tensors[name] for name in sorted(tensors, key=by_number)}, metadata)


def refuse_impossible(tensors: Mapping[str, Stored], path: Path) -> None:
    """Raise CheckpointError for a shape that no array can have, even if it holds no number."""
    for name, stored in tensors.items():
        size = math.prod(n for n in stored.shape if n)
        if len(stored.shape) > pickles.MOST_DIMENSIONS or size >= 2**60:
            raise CheckpointError(f"{path}: {short(name)}: has the shape {short(stored.shape)}")


def by_number(name: str) -> list[tuple[int, str]]:
    """Sort key for names, which compares the numbers in them as numbers."""
    pieces = re.split("([0-9]+)", name)
    return [(len(piece) if i % 2 else 0, piece) for i, piece in enumerate(pieces)]


def _open_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    try:
        start, header = _header(path)
        # The library's own parser checks the offsets. The values are read from the file itself:
        # the pages of a memory map would count as memory of this process, and would end it if the
        # file were cut short meanwhile.
        with safe_open(path, framework="np"):
            pass
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {line(error)}") from None
    metadata = header.pop("__metadata__", None)
    for name in header:
        _refuse_name(path, name)
    tensors = {name: _in_safetensors(path, name, start, entry) for name, entry in header.items()}
    return tensors, metadata if isinstance(metadata, dict) else {}


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the offset at which the data begin, and the header as name → entry.

    Raises CheckpointError if a name appears twice: the format's own parser would keep the last.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for name, value in pairs:
            if name in entries:
                raise CheckpointError(f"{path}: the name {name!r} appears twice in the header")
            entries[name] = value
        return entries

    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = json.loads(file.read(length), object_pairs_hook=unique)
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    return 8 + length, header


def _in_safetensors(path: Path, name: str, start: int, entry: dict[str, Any]) -> Stored:
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    begin, end = entry["data_offsets"]

    def load() -> np.ndarray:
        if dtype not in FLOATS:
            raise CheckpointError(
                f"{path}: {name}: stored as {dtype}; expected one of {', '.join(FLOATS)}"
            )
        if len(shape) > pickles.MOST_DIMENSIONS:
            raise CheckpointError(f"{path}: {name}: has {len(shape)} dimensions; expected a matrix")
        data = bytes_at(path, name, start + begin, end - begin)
        return np.frombuffer(data, FLOATS[dtype]).reshape(shape)

    return Stored(shape, dtype, load)


def _open_npz(path: Path) -> dict[str, Stored]:
    """Open the arrays that numpy.savez or mlx.core.savez wrote, none of which is compressed."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            arrays = {m.filename.removesuffix(".npy"): _in_npz(path, archive, m) for m in members}
            if len(arrays) < len(members):
                raise ValueError("a name appears twice in it")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    # A damaged archive, an encrypted one, one of an unknown version.
    except (OSError, ValueError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: not a readable .npz file: {line(error)}") from None
    return arrays


def _npy_header(head: bytes, name: str) -> tuple[int, tuple[int, ...], bool, np.dtype]:
    """Return where the numbers of an array begin, its shape, order and dtype.

    head: the beginning of the array. numpy's own parser evaluates it as Python, warns and raises
    errors of many kinds. Raises ValueError.
    """
    wide = 4 if head[6:7] > b"\1" else 2  # bytes of the length, by the version
    length = int.from_bytes(head[8 : 8 + wide], "little")
    start = 8 + wide + length
    match = NPY.fullmatch(head[8 + wide : start])
    if head[:6] != b"\x93NUMPY" or start > len(head) or match is None:
        raise ValueError(f"{name!r} does not begin as an array of numbers")
    try:
        dtype = np.dtype(match[1].decode("ascii"))
    except (TypeError, ValueError, UnicodeDecodeError):
        raise ValueError(f"{name!r} has a dtype that is not known") from None
    return start, tuple(map(int, re.findall(rb"[0-9]+", match[3]))), match[2] == b"True", dtype


def _in_npz(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Stored:
    """Return one array of an archive; raise ValueError if its header is broken or untrue."""
    name = member.filename
    _refuse_name(path, name)
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name!r} is compressed; expected numpy.savez, which does not compress")
    with archive.open(member) as stream:
        start, shape, by_columns, dtype = _npy_header(stream.read(NPY_HEADER), name)
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds Python objects; expected numbers")
    length = math.prod(shape) * dtype.itemsize
    if length != member.file_size - start:
        raise ValueError(f"{name!r} is {shape}, but holds {member.file_size - start} bytes")
    bfloat16 = dtype.kind == "V" and dtype.itemsize == 2  # numpy has no name of its own for it
    dtype = FLOATS["BF16"] if bfloat16 else dtype
    known = next((key for key, value in FLOATS.items() if value == dtype), str(dtype))

    def load() -> np.ndarray:
        if known not in FLOATS:
            raise CheckpointError(
                f"{path}: {name}: stored as {known}; expected one of {', '.join(FLOATS)}"
            )
        try:
            with open_regular(path) as file, zipfile.ZipFile(file) as opened:
                data = opened.read(name)[start:]
        except (OSError, ValueError, RuntimeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path}: {name}: {line(error)}") from None
        if len(data) < length:
            raise CheckpointError(f"{path}: {name}: the file was cut short while it was read")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")

    return Stored(shape, known, load)


def _open_bin(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    try:
        state, regions = pickles.contents(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (pickles.Refused, OSError) as error:
        raise CheckpointError(f"{path}: not a readable file of weights: {line(error)}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}; expected a dict of tensors")
    metadata = nested.settings(state)
    state = nested.state_dict(
        state, lambda value: len(value.shape) if isinstance(value, pickles.Saved) else -1, path
    )
    memory: dict[Any, str] = {}
    tensors = {}
    for key, saved in state.items():
        if isinstance(saved, pickles.Saved):
            name = str(key)
            _refuse_name(path, name)
            place = (saved.storage, saved.offset, saved.shape, saved.stride)
            view = place if saved.storage else name
            first = memory.setdefault(view, name) if math.prod(saved.shape) else name
            tied = "" if first == name else first
            tensors[name] = in_pickle(path, name, saved, regions.get(saved.storage), tied)
    return tensors, metadata


def in_pickle(
    path: Path, name: str, saved: pickles.Saved, region: pickles.Region | None, tied: str = ""
) -> Stored:
    """Return a tensor of a .bin file; region: where its storage is, None for other kinds."""
    dtype = TORCH_NAMES.get(saved.dtype, saved.dtype)

    def load() -> np.ndarray:
        if dtype not in FLOATS or region is None:
            raise CheckpointError(f"{path}: {name}: stored as {dtype}; expected floating point")
        numbers, size = math.prod(saved.shape), FLOATS[dtype].itemsize
        if not numbers:
            return np.zeros(saved.shape, FLOATS[dtype])
        steps = zip(saved.shape, saved.stride, strict=True)
        reach = 1 + sum((n - 1) * step for n, step in steps)
        # A tensor of stride 0 may claim any size without a byte behind it.
        if max(numbers, saved.offset + reach) * size > region.length:
            raise CheckpointError(f"{path}: {name}: is {saved.shape}, but holds less")
        data = bytes_at(path, name, region.start + saved.offset * size, reach * size)
        strides = [step * size for step in saved.stride]
        values = np.frombuffer(data, FLOATS[dtype])
        view = np.lib.stride_tricks.as_strided(values, saved.shape, strides, writeable=False)
        return np.ascontiguousarray(view)

    return Stored(saved.shape, dtype, load, tied)


def bytes_at(path: Path, name: str, start: int, length: int) -> bytes:
    """Return the bytes of a tensor in a file; CheckpointError if they are not all there."""
    try:
        with open_regular(path) as file:
            file.seek(start)
            data = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: {name}: {line(error)}") from None
    if len(data) < length:
        raise CheckpointError(f"{path}: {name}: the file was cut short while it was read")
    return data


def _refuse_name(path: Path, name: str) -> None:
    """Raise CheckpointError for a name that is too long for one, or not text."""
    if len(name) > LONGEST_NAME:
        raise CheckpointError(
            f"{path}: a tensor has a name of {len(name)} characters; expected at most"
            f" {LONGEST_NAME}"
        )
    if not is_text(name):
        raise CheckpointError(f"{path}: {short(name)} is half a character; expected text")


def is_text(name: str) -> bool:
    """Return whether a string can be written as UTF-8: JSON and pickles can hold half characters.

    >>> is_text("naïve"), is_text(chr(0xD800))
    (True, False)
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises CheckpointError if the file is missing, too long, broken, or holds anything else.
    """
    try:
        with open_regular(path) as file:
            data = file.read(MAX_HEADER + 1)
        if len(data) > MAX_HEADER:
            raise ValueError(f"is over {MAX_HEADER} bytes long")
        value = json.loads(data)
        # Names with half of a character could not be written to any file.
        if not is_text(json.dumps(value, ensure_ascii=False)):
            raise ValueError("a string ends within a character")
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {line(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value


def number(config: dict[str, Any], key: str, where: Path | str, least: float = -1e300) -> float:
    """Return config[key] as a finite number of at least `least`.

    Raises CheckpointError, which begins with `where`, if it is anything else.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise CheckpointError(f"{where}: {key} is {short(value)}; expected a number")
    if value < least:
        raise CheckpointError(f"{where}: {key} is {value!r}; expected at least {least:g}")
    return value


def count(config: dict[str, Any], key: str, where: Path | str) -> int:
    """Return config[key] as a whole number of at least 1.

    Raises CheckpointError, which begins with `where`, if it is anything else.
    """
    value = number(config, key, where, least=1)
    if value != int(value):
        raise CheckpointError(f"{where}: {key} is {value!r}; expected a whole number")
    return int(value)


def short(value: Any) -> str:
    """Return `value` as text for a message, cut to 60 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}…"


def line(error: Exception) -> str:
    """Return the first line of an error's message; other libraries add advice below it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
