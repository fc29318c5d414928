"""Refuse an adapter and a base that PEFT and Transformers would take too long over, or too much.

They believe what a config says: a base of 10⁹ layers is built, and an expression that takes forever
is matched. So a config is held against the weights next to it before they see it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from analysis import CheckpointError
from analysis.files import shards
from analysis.files.place import Place
from analysis.files.tensors import Stored
from analysis.formats import base, rule

# Keys of a config of Transformers that count the parts of a model, its sizes, and its positions.
COUNTS = re.compile(r"layer|block|depth|expert|head|stage")
SIZES = re.compile(r"size|dim|embd|d_model|d_ff|inner|width|channel|^n_state")
POSITIONS = re.compile(r"^n_(positions|ctx)$|^max_(source|target)_positions$")
MANY, LONG = 256, 2**24  # a count, and a size or number of positions, that any model may have
PER_TENSOR = 4  # a count for each tensor
# Numbers in a matrix of the two largest sizes, and in as many of them as there are layers: these,
# or so many times the stored ones.
MATRIX, TIMES = 2**24, 16
ALL, TIMES_ALL = 2**26, 64


def refuse(path: Path, config: Mapping[str, Any], name: str, base_place: Place) -> None:
    """Raise CheckpointError if an adapter or its base is broken, or claims what it does not hold.

    path: the directory of the adapter; config: its config, from the file `name`; base_place: the
    directory of the base. Their weights are opened, which refuses pickles that unpack to more.
    """
    _, tensors = base.open_model(base_place)
    weights = shards.locate(path, "adapter_model")
    if weights is not None:
        Place(path).tensors(weights)
    rule.refuse_slow(dict(config), path / name, tensors)
    if (base_place.path / base.CONFIG).is_file():
        refuse_claims(base_place.json(base.CONFIG), tensors, base_place.path / base.CONFIG)


def refuse_claims(
    config: Mapping[str, Any], tensors: Mapping[str, Stored], where: Path | str
) -> None:
    """Raise CheckpointError if a model's config claims far more than its weights hold.

    config: that of the model; tensors: its weights; where: the file of the config, for messages.
    """
    numbers = sum(math.prod(tensor.shape) for tensor in tensors.values())
    longest = max((n for tensor in tensors.values() for n in tensor.shape), default=0)
    sizes: list[int] = []
    layers = 1
    for key, value in _whole_numbers(config):
        is_count, is_size = bool(COUNTS.search(key)), bool(SIZES.search(key))
        most = LONG
        if is_count and not is_size:
            most = max(MANY, PER_TENSOR * len(tensors))
            layers = max(layers, value if "layer" in key else 1)
        elif POSITIONS.search(key):
            most = max(longest, 2**13)
        elif is_size:
            sizes.append(value)
        elif "position" not in key:
            continue
        if value > most:
            raise CheckpointError(
                f"{where}: {key} is {value}, but the weights are {len(tensors)} tensors of"
                f" {numbers} numbers; expected at most {most}"
            )
    sizes = sorted(sizes)[-2:] or [1]
    matrix = sizes[0] * sizes[-1]
    if matrix > max(MATRIX, TIMES * numbers) or matrix * layers > max(ALL, TIMES_ALL * numbers):
        raise CheckpointError(
            f"{where}: describes {layers} layers of sizes up to {max(sizes)}; the weights are only"
            f" {numbers} numbers"
        )


def _whole_numbers(value: Any) -> Iterator[tuple[str, int]]:
    """Yield each key with each whole number that it holds, at any depth."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        key, inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += [(str(name), of_name) for name, of_name in inner.items()]
        elif isinstance(inner, list):
            waiting += [(key, item) for item in inner]
        elif isinstance(inner, int) and not isinstance(inner, bool):
            yield key, inner
