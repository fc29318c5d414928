"""Read the tensors of this project's own adapters: MultiLoRA, R-LoRA and MTL-LoRA.

    base_model.model.<module>.<prefix><part>[.<adapter>]

in adapter_model.safetensors, with adapter_config.json. Each method has a file next to this one,
which defines its parts and ΔW.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.tensors import FLOATS, Stored
from analysis.formats import peft
from analysis.update import Entry, LowRankUpdate, Other, Skipped, coarsest, float64

# A file may make FEW updates, and one more for every SHARE numbers in it. Those of a module may
# have SMALL numbers together, or TIMES the stored ones; at a rank above WORK fewer.
FEW, SHARE = 500, 512
SMALL, TIMES, WORK = 2**23, 32, 32
Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, np.ndarray]


def has_type(place: Place, peft_type: str) -> bool:
    """Return whether the directory has an adapter config that names `peft_type`."""
    try:
        return place.json(peft.CONFIG).get("peft_type") == peft_type
    except CheckpointError:
        return False


def read(
    place: Place,
    prefix: str,
    parts: tuple[str, ...],
    each: int,
    fault: Callable[[str, Shapes], str | None],
    updates: Callable[[str, str, Tensors], Iterator[LowRankUpdate]],
) -> Iterator[Entry]:
    """Yield the updates of each module; a module with a missing or unfit tensor is skipped.

    place: the directory of the adapter.
    prefix: what the names of its tensors begin with, after the module.
    parts: what follows the prefix; every module needs a tensor for each.
    each: how many updates every module has.
    fault: from the module's name and the shapes of its tensors by part, the reason why they do not
        fit, or None.
    updates: from the module's name, the weight file and the tensors in float64, its updates, each
        made when it is asked for.
    """
    file, key = peft.weights(place), _key(prefix, parts)
    modules: dict[str, dict[str, Stored]] = {}
    for name, tensor in place.tensors(file).items():
        match = key.fullmatch(name)
        if match is None:
            yield Other(name, peft.describe(name))
        elif match["part"] in modules.setdefault(match["module"], {}):
            raise CheckpointError(f"{file}: {name}: appears twice, under two names")
        else:
            modules[match["module"]][match["part"]] = tensor
    numbers = sum(math.prod(t.shape) for stored in modules.values() for t in stored.values())
    _refuse_many(each * len(modules), file, numbers)
    for module, stored in modules.items():
        missing = [part for part in parts if part not in stored]
        if missing:
            expected = ", ".join(prefix + part for part in parts)
            why: str | None = f"has no {prefix}{missing[0]}; expected {expected}"
        else:
            why = fault(module, {part: tensor.shape for part, tensor in stored.items()})
        if why:
            yield Skipped(module, f"{file}: {module}: {why}")
            continue
        try:
            values = {part: float64(stored[part].load()) for part in parts}
        except CheckpointError as error:
            yield Skipped(module, str(error))
            continue
        dtype = coarsest(*(FLOATS[stored[part].dtype] for part in parts))
        of_module = updates(module, str(file), values)
        while (update := _quietly_next(of_module)) is not None:  # one at a time: they can be large
            yield replace(update, dtypes=(dtype, dtype))


def _quietly_next(updates: Iterator[LowRankUpdate]) -> LowRankUpdate | None:
    """Return the next update, None after the last one; NaN and Inf are reported later."""
    with np.errstate(all="ignore"):
        return next(updates, None)


def _refuse_many(updates: int, file: Path, stored: int) -> None:
    """Raise CheckpointError if a file makes far more updates than it has numbers for.

    updates: how many it makes; stored: the numbers in it.
    """
    most = FEW + stored // SHARE
    if updates > most:
        raise CheckpointError(
            f"{file}: makes {updates} updates of {stored} numbers; expected at most {most}"
        )


def too_large(numbers: int, r: int, stored: int) -> str | None:
    """Return why a module is too large, in words; None if it is not.

    numbers: how many numbers its updates have together, beyond those that they share; r: their
    rank; stored: the numbers in its tensors. A small file could be made from which any number of
    large updates follow.
    """
    largest, work = max(SMALL, TIMES * stored), WORK * max(SMALL, TIMES * stored)
    if numbers <= largest and numbers * r <= work:
        return None
    return (
        f"its updates have {numbers} numbers, made of {stored}, and the rank {r}; expected at most"
        f" {min(largest, work // r)} numbers (too many tasks or heads for its size)"
    )


def modules(place: Place, prefix: str, parts: tuple[str, ...]) -> list[str]:
    """Return the names of the modules that the adapter changes; arguments as for `read`."""
    key = _key(prefix, parts)
    matches = (key.fullmatch(name) for name in place.tensors(peft.weights(place)))
    return list(dict.fromkeys(match["module"] for match in matches if match))


def _key(prefix: str, parts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(
        rf"(?:base_model\.model\.)?(?P<module>.+)\.{prefix}(?P<part>{'|'.join(parts)})(?:\..+)?",
        re.DOTALL,
    )


def mismatch(shapes: Shapes, expected: Mapping[str, tuple[int | str, ...]]) -> str | None:
    """Return how the shapes differ from the expected ones, in words; None if they fit.

    A word in an expected shape is a free size, the same wherever the word appears, and above 0.
    """
    sizes: dict[int | str, int] = {}
    if all(
        len(shapes[part]) == len(wanted)
        and all(
            size > 0 and size == (want if isinstance(want, int) else sizes.setdefault(want, size))
            for size, want in zip(shapes[part], wanted, strict=True)
        )
        for part, wanted in expected.items()
    ):
        return None
    actual = ", ".join(f"{part} is {shapes[part]}" for part in expected)
    return f"{actual}; expected " + ", ".join(
        f"{part} ({', '.join(map(str, wanted))})" for part, wanted in expected.items()
    )
