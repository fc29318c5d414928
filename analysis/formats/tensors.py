"""A file of tensors → one lazy entry a tensor: .safetensors without torch, .bin without code."""

import json
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # before safetensors: numpy then knows bfloat16 and float8
import numpy as np
from safetensors import SafetensorError, safe_open

from analysis import CheckpointError

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape and dtype are known, its values come with load()."""

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray]


def open_tensors(path: Path) -> dict[str, Stored]:
    """Name → Stored for every tensor of a .safetensors or .bin file, layer 2 before layer 10.

    Raises CheckpointError for a file that is missing, cut short, or not what its name says.
    """
    tensors = _open_safetensors(path) if path.suffix == ".safetensors" else _open_bin(path)
    return {name: tensors[name] for name in sorted(tensors, key=_natural)}


def _natural(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, the numbers in them as numbers."""
    pieces = re.split("([0-9]+)", name)
    return [(len(piece) if i % 2 else 0, piece) for i, piece in enumerate(pieces)]


def _open_safetensors(path: Path) -> dict[str, Stored]:
    try:
        file = safe_open(path, framework="np")
        _refuse_duplicates(path)
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {_line(error)}") from None

    def loader(name: str, dtype: str) -> Callable[[], np.ndarray]:
        def load() -> np.ndarray:
            if dtype not in FLOATS:
                raise CheckpointError(
                    f"{path}: {name}: stored as {dtype}; expected one of {', '.join(FLOATS)}"
                )
            try:
                return file.get_tensor(name)
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(f"{path}: {name}: {_line(error)}") from None

        return load

    return {
        name: Stored(tuple(part.get_shape()), part.get_dtype(), loader(name, part.get_dtype()))
        for name, part in slices.items()
    }


def _refuse_duplicates(path: Path) -> None:
    """The format's parser keeps the last of two tensors of one name; here that is an error."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{path}: the name {twice!r} stands twice in the header")
        return dict(pairs)

    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        json.loads(file.read(length), object_pairs_hook=unique)


def _open_bin(path: Path) -> dict[str, Stored]:
    import torch

    if not zipfile.is_zipfile(path) and not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        # weights_only: a pickle that wants to do more than rebuild tensors is refused.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise CheckpointError(f"{path}: not a readable file of weights: {_line(error)}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}; expected names → tensors")

    def loader(name: str, tensor: Any) -> Callable[[], np.ndarray]:
        def load() -> np.ndarray:
            if tensor.dtype == torch.bfloat16:
                return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            if not tensor.dtype.is_floating_point:
                raise CheckpointError(
                    f"{path}: {name}: stored as {tensor.dtype}; expected floating point"
                )
            return tensor.detach().numpy()

        return load

    return {
        str(name): Stored(tuple(tensor.shape), str(tensor.dtype), loader(str(name), tensor))
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError where it is missing, broken or no object."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {_line(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value


def number(config: dict[str, Any], key: str, where: Path | str, least: float = -1e300) -> float:
    """config[key] as a finite number of at least `least`; CheckpointError naming `where` else."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise CheckpointError(f"{where}: {key} is {_short(value)}; expected a number")
    if value < least:
        raise CheckpointError(f"{where}: {key} is {value!r}; expected at least {least:g}")
    return value


def count(config: dict[str, Any], key: str, where: Path | str) -> int:
    """config[key] as a whole number of at least 1; CheckpointError naming `where` else."""
    value = number(config, key, where, least=1)
    if value != int(value):
        raise CheckpointError(f"{where}: {key} is {value!r}; expected a whole number")
    return int(value)


def _short(value: Any) -> str:
    """`value` for a message: a stranger's may be of any length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _line(error: Exception) -> str:
    """The first line of an error, which other libraries fill with advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
