"""Read the tensors of this project's own adapters: MultiLoRA, R-LoRA and MTL-LoRA.

    base_model.model.<module>.<prefix><part>[.<adapter>]

in adapter_model.safetensors, with adapter_config.json. Each method has a file next to this one,
which defines its parts and ΔW.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from analysis import CheckpointError
from analysis.formats import peft
from analysis.formats.place import Place
from analysis.formats.tensors import FLOATS, Stored
from analysis.update import Entry, LowRankUpdate, Other, Skipped, coarsest, float64

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
    fault: Callable[[str, Shapes], str | None],
    updates: Callable[[str, str, Tensors], Iterator[LowRankUpdate]],
) -> Iterator[Entry]:
    """Yield the updates of each module; a module with a missing or unfit tensor is skipped.

    place: the directory of the adapter.
    prefix: what the names of its tensors begin with, after the module.
    parts: what follows the prefix; every module needs a tensor for each.
    fault: from the module's name and the shapes of its tensors by part, the reason why they do not
        fit, or None.
    updates: from the module's name, the weight file and the tensors in float64, its updates.
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
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf are reported later
            of_module = list(updates(module, str(file), values))
        dtype = coarsest(*(FLOATS[stored[part].dtype] for part in parts))
        yield from (replace(update, dtypes=(dtype, dtype)) for update in of_module)


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
