"""Full fine-tuning: delta.safetensors (ΔW by module name) beside delta_config.json.

ΔW = W_tuned − W0 was taken when the checkpoint was written, with the noise floor of each module
(`analysis.numerics.floor`), which stands in the config; there too, the norms of the 1-D changes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.formats import Options
from analysis.formats.tensors import FLOATS, Stored, number, open_tensors, read_json, short
from analysis.update import DenseUpdate, Entry, Other, Skipped

CONFIG, WEIGHTS = "delta_config.json", "delta.safetensors"
FORMAT, VERSION = "multilora-delta", 1


def recognises(path: Path) -> bool:
    """Whether `path` holds a stored difference; one without its config counts."""
    return (path / CONFIG).exists() or (path / WEIGHTS).exists()


def read(path: Path, options: Options) -> Iterator[Entry]:
    """The difference of each 2-D weight, read when it is needed."""
    config, source = read_json(path / CONFIG), path / CONFIG
    kind, version = config.get("format"), config.get("version")
    if (kind, version) != (FORMAT, VERSION):
        raise CheckpointError(
            f"{source}: format {short(kind)}, version {short(version)};"
            f" expected {FORMAT!r}, version {VERSION}"
        )
    modules, vectors = (_of_type(dict, config, key, source) for key in ("modules", "vectors"))
    tied = _of_type(list, config, "tied", source)
    file = path / WEIGHTS
    tensors = open_tensors(file)
    for name in dict.fromkeys([*modules, *tensors]):
        try:
            yield _update(name, modules.get(name), tensors.get(name), path)
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
    if facts is None or tensor is None:
        has, lacks = (CONFIG, WEIGHTS) if tensor is None else (WEIGHTS, CONFIG)
        raise CheckpointError(f"{path}: {name}: stands in {has}, not in {lacks}; expected both")
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
    """The same values in a dtype that LAPACK has."""

    def widened() -> np.ndarray:
        x = load()
        return x if x.dtype.itemsize >= 4 else x.astype(np.float32)

    return widened


def _of_type(kind: type, config: dict[str, Any], key: str, path: Path) -> Any:
    value = config.get(key) or kind()
    if not isinstance(value, kind):
        name = type(value).__name__
        raise CheckpointError(f"{path}: {key} is a {name}; expected a {kind.__name__}")
    return value
