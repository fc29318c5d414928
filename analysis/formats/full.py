"""Full fine-tuning stored as ΔW by this project: delta_config.json and delta.safetensors.

ΔW = W_tuned − W0 was taken when the checkpoint was written, by module name. The config holds the
noise floor of each module (`analysis.numerics.floor`) and the norms of the changes of 1-D weights.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.tensors import FLOATS, Stored, number, short
from analysis.formats import Options
from analysis.update import DenseUpdate, Entry, Other, Skipped

CONFIG, WEIGHTS = "delta_config.json", "delta.safetensors"
STEMS = ("delta",)
FORMAT, VERSION = "multilora-delta", 1


def recognise(place: Place) -> bool:
    """Return whether the directory holds a stored difference, or one of its two files."""
    return (place.path / CONFIG).exists() or (place.path / WEIGHTS).exists()


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the difference of each 2-D weight, whose values are read when they are needed."""
    config, source = place.json(CONFIG), place.path / CONFIG
    kind, version = config.get("format"), config.get("version")
    if (kind, version) != (FORMAT, VERSION):
        raise CheckpointError(
            f"{source}: format {short(kind)}, version {short(version)};"
            f" expected {FORMAT!r}, version {VERSION}"
        )
    modules = _of_type(dict, config, "modules", source)
    vectors = _of_type(dict, config, "vectors", source)
    tied = _of_type(list, config, "tied", source)
    tensors = place.tensors(place.path / WEIGHTS)
    for name in dict.fromkeys([*modules, *tensors]):
        try:
            yield _update(name, modules.get(name), tensors.get(name), place.path)
        except CheckpointError as error:
            yield Skipped(name, str(error))
    for name, change in vectors.items():
        norm = number(
            change if isinstance(change, dict) else {}, "frobenius_norm", f"{source}: {name}"
        )
        yield Other(name, f"1-D change of norm {norm:.3g}")
    for name in tied:
        yield Other(str(name), "tied to another weight, listed once")


def _update(name: str, facts: Any, tensor: Stored | None, path: Path) -> DenseUpdate:
    """Return the update of a module; facts: what the config says about it."""
    if facts is None or tensor is None:
        has, lacks = (CONFIG, WEIGHTS) if tensor is None else (WEIGHTS, CONFIG)
        raise CheckpointError(f"{path}: {name}: is in {has}, not in {lacks}; expected both")
    if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.dtype not in FLOATS:
        raise CheckpointError(
            f"{path / WEIGHTS}: {name}: is {tensor.dtype} {tensor.shape};"
            " expected a floating-point matrix"
        )
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path / CONFIG}: {name}: is {short(facts)}; expected an object")
    floor = number(facts, "floor", f"{path / CONFIG}: {name}", least=0)
    d_out, d_in = tensor.shape
    load = _widened(tensor.load)
    return DenseUpdate(name, (d_out, d_in), load, floor, method="full", source=str(path / WEIGHTS))


def _widened(load: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """Return a function that reads the same values in a dtype that LAPACK has."""

    def widened() -> np.ndarray:
        x = load()
        return x if x.dtype.itemsize >= 4 else x.astype(np.float32)

    return widened


def _of_type(kind: type, config: dict[str, Any], key: str, path: Path) -> Any:
    """Return config[key], empty if it is missing; raise CheckpointError for another type."""
    value = config.get(key) or kind()
    if not isinstance(value, kind):
        name = type(value).__name__
        raise CheckpointError(f"{path}: {key} is a {name}; expected a {kind.__name__}")
    return value
