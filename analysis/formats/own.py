"""The tensors of this project's own adapters: adapter_config.json beside adapter_model.safetensors.

    base_model.model.<module>.<prefix><part>[.<adapter>]

MultiLoRA, R-LoRA and MTL-LoRA have a file each, which says what the parts are and what ΔW is.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.formats import peft, shards
from analysis.formats.tensors import Stored, read_json
from analysis.update import Entry, LowRankUpdate, Other, Skipped, float64

Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, np.ndarray]


def has_type(path: Path, peft_type: str) -> bool:
    """Whether `path` holds a PEFT adapter whose config says `peft_type`."""
    try:
        return read_json(path / peft.CONFIG).get("peft_type") == peft_type
    except CheckpointError:
        return False


def read(
    path: Path,
    prefix: str,
    parts: tuple[str, ...],
    fault: Callable[[str, Shapes], str | None],
    updates: Callable[[str, str, Tensors], Iterator[LowRankUpdate]],
) -> Iterator[Entry]:
    """The updates of each module: `updates` of its name, the file's and its tensors in float64.

    fault: why the shapes of a module's tensors, by part, do not fit one another; None where they
    do. A module with a fault is Skipped.
    """
    file, key = peft.weights(path), _key(prefix, parts)
    modules: dict[str, dict[str, Stored]] = {}
    for name, tensor in shards.open_located(file).items():
        match = key.fullmatch(name)
        if match is None:
            yield Other(name, peft.what(name))
        elif match["part"] in modules.setdefault(match["module"], {}):
            raise CheckpointError(f"{file}: {name}: stands there twice, under two names")
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
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf, which are found later
            found = list(updates(module, str(file), values))
        yield from found


def modules(path: Path, prefix: str, parts: tuple[str, ...]) -> list[str]:
    """The names of the modules that the adapter changes."""
    key = _key(prefix, parts)
    matches = (key.fullmatch(name) for name in shards.open_located(peft.weights(path)))
    return list(dict.fromkeys(match["module"] for match in matches if match))


def _key(prefix: str, parts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(
        rf"(?:base_model\.model\.)?(?P<module>.+)\.{prefix}(?P<part>{'|'.join(parts)})(?:\..+)?",
        re.DOTALL,
    )


def against(shapes: Shapes, expected: Mapping[str, tuple[int | str, ...]]) -> str | None:
    """Why `shapes` are not the expected ones, in which a word stands for one free size."""
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
    found = ", ".join(f"{part} is {shapes[part]}" for part in expected)
    return f"{found}; expected " + ", ".join(
        f"{part} ({', '.join(map(str, wanted))})" for part, wanted in expected.items()
    )
