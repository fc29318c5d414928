"""Open a .gguf file: its metadata, and its tensors as they are needed.

    "GGUF", version 2 or 3, counts; then key, type, value …; then name, sizes, type, offset …

Sizes are stored with the fastest first, and are turned round here: lora_a is (r, d_in). Only
floating-point tensors can be loaded; those of quantised types are named by their type. A count in
the file never allocates anything: all that is read lies in the file.
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from analysis import CheckpointError
from analysis.files.regular import open_regular
from analysis.files.tensors import (
    FLOATS,
    LONGEST_NAME,
    Stored,
    TensorFile,
    by_number,
    bytes_at,
    line,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Types of metadata: struct's letters, and the two that have a length.
SCALARS = dict(enumerate(["B", "b", "H", "h", "I", "i", "f", "?"])) | {10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
# Types of tensors: ggml's numbers.
DTYPES = {0: "F32", 1: "F16", 28: "F64", 30: "BF16"}
QUANTISED = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 20: "IQ4_NL", 23: "IQ4_XS", 39: "MXFP4",
}  # fmt: skip
ALIGNMENT = 32  # bytes, unless the file gives another
LONGEST = 2**26  # bytes of the header; a vocabulary of a quarter of a million words needs 10⁷
NAME, SIZES = 2**16, 8  # bytes in a name and sizes of a tensor, at most


class _Header:
    """The header of an open file, read from its start; ValueError beyond its end."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = file.seek(0, 2)
        file.seek(0)

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        self._check(count)
        return self.file.read(count)

    def skip(self, count: int) -> None:
        """Pass over bytes."""
        self._check(count)
        self.file.seek(count, 1)

    def number(self, letter: str) -> Any:
        """Return the next number, by struct's letter."""
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]

    def text(self) -> str:
        """Return the next string."""
        length = self.number("Q")
        if length > NAME:
            self.skip(length)
            return f"a text of {length} bytes"
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """Return the next value of metadata; None for an array, which is passed over."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"a value of type {kind}, which is not defined")
        inner, count = self.number("I"), self.number("Q")
        if inner in SCALARS:
            self.skip(count * struct.calcsize(f"<{SCALARS[inner]}"))
        elif inner == TEXT:
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise ValueError("an array of arrays")
        return None

    def _check(self, count: int) -> None:
        end = self.file.tell() + count
        if end > self.size:
            raise ValueError("it is cut short")
        if end > LONGEST:
            raise ValueError(f"its header is longer than {LONGEST} bytes")


def open_file(path: Path) -> TensorFile:
    """Return the tensors of a .gguf file by name, in natural order, and its metadata.

    Raises CheckpointError if the file is missing, cut short or not GGUF of a known version.
    """
    try:
        with open_regular(path) as file:
            metadata, infos, start = _parsed(_Header(file))
            size = file.seek(0, 2)
        tensors = {name: _stored(path, name, info, start, size) for name, info in infos.items()}
        _refuse_overlap(infos, size)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: not a readable GGUF file: {line(error)}") from None
    return TensorFile({name: tensors[name] for name in sorted(tensors, key=by_number)}, metadata)


def _refuse_overlap(infos: dict[str, tuple[tuple[int, ...], int, int]], size: int) -> None:
    """Raise ValueError if the tensors together are larger than the file: they share their bytes."""
    bits = sum(
        math.prod(shape) * (8 * FLOATS[DTYPES[kind]].itemsize if kind in DTYPES else 1)
        for shape, kind, _ in infos.values()  # quantised: at least one bit for each number
    )
    if bits > 8 * size:
        raise ValueError("its tensors are larger than the file")


def _parsed(
    header: _Header,
) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, int]], int]:
    """Return the metadata, name → (shape, type, offset), and where the data begin."""
    if header.take(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = header.number("I")
    if version not in VERSIONS:
        raise ValueError(f"version {version}; expected 2 or 3, with the lowest byte first")
    count_of_tensors, count_of_values = header.number("Q"), header.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(count_of_values):
        key, kind = header.text(), header.number("I")
        metadata[key] = header.value(kind)
    infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count_of_tensors):
        name, dimensions = header.text(), header.number("I")
        if dimensions > SIZES:
            raise ValueError(f"{name!r} has {dimensions} sizes; expected at most {SIZES}")
        shape = tuple(header.number("Q") for _ in range(dimensions))[::-1]
        if len(name) > LONGEST_NAME:
            raise ValueError(f"a name of {len(name)} characters; expected at most {LONGEST_NAME}")
        if name in infos:
            raise ValueError(f"the name {name!r} appears twice")
        infos[name] = (shape, header.number("I"), header.number("Q"))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}; expected a number of bytes")
    return metadata, infos, -(-header.file.tell() // alignment) * alignment


def _stored(
    path: Path, name: str, info: tuple[tuple[int, ...], int, int], start: int, size: int
) -> Stored:
    """Return a tensor; ValueError if it does not lie in the file.

    info: its shape, type and offset; start: of the data; size: of the file.
    """
    shape, kind, offset = info
    if kind not in DTYPES:
        dtype = QUANTISED.get(kind, f"ggml type {kind}")

        def refuse() -> np.ndarray:
            raise CheckpointError(
                f"{path}: {name}: stored as {dtype}; expected one of {', '.join(DTYPES.values())}"
            )

        return Stored(shape, dtype, refuse)
    dtype = DTYPES[kind]
    begin, length = start + offset, math.prod(shape) * FLOATS[dtype].itemsize
    if begin + length > size:
        raise ValueError(f"{name!r} is {shape} and ends beyond the end of the file")

    def load() -> np.ndarray:
        return np.frombuffer(bytes_at(path, name, begin, length), FLOATS[dtype]).reshape(shape)

    return Stored(shape, dtype, load)
