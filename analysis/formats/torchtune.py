"""torchtune adapter: adapter_<epoch>.pt or adapter_model.pt, with adapter_config.json or --scale.

    layers.<layer>.<module>.lora_a.weight     (r, d_in)
    layers.<layer>.<module>.lora_b.weight     (d_out, r)
    layers.<layer>.<module>.magnitude         (d_out,), DoRA

ΔW = α/r · lora_b @ lora_a, with r and lora_alpha of adapter_config.json; without it, pass --scale.
Modules have torchtune's names, and the rows of q and k torchtune's order: PEFT's copy of the same
adapter (adapter_model.safetensors, which is read instead where there is one) has equal singular
values, and left directions with permuted entries. DoRA is read as B·A alone, --direction-only.
"""

import re
from collections.abc import Iterator
from typing import Any

from analysis import CheckpointError
from analysis.files import shards
from analysis.files.place import Place
from analysis.files.tensors import Stored
from analysis.formats import Options, factors, orientation
from analysis.formats.rule import Rule
from analysis.update import Entry, LowRankUpdate, Other, Skipped

CONFIG = "adapter_config.json"
STEMS: tuple[str, ...] = ()
PEFT = "adapter_model"  # the stem of PEFT's copy
FILE = re.compile(r"adapter_(?:(?P<epoch>[0-9]+)|model)\.pt")
KEY = re.compile(
    r"(?P<module>.+)\.(?:(?P<role>lora_[ab])\.weight|(?P<magnitude>magnitude))", re.DOTALL
)
ROLES = {"lora_a": "A", "lora_b": "B"}


def recognise(place: Place) -> bool:
    """Return whether a directory or a file holds an adapter of torchtune."""
    if place.path.is_dir():
        return shards.locate(place.path, PEFT) is None and bool(_files(place))
    return any(match["role"] for name in place.tensors() if (match := KEY.fullmatch(name)))


def _files(place: Place) -> list[str]:
    """Return the names of the adapters in a directory, the last epoch first."""
    matches = [match for path in place.path.iterdir() if (match := FILE.fullmatch(path.name))]
    epochs = {match[0]: int(match["epoch"] or 0) for match in matches}
    return sorted(epochs, key=lambda name: epochs[name], reverse=True)


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of one file, with the config next to it; of a directory, its last epoch.

    Raises CheckpointError if there is no scale, or if the adapter is DoRA.
    """
    if place.path.is_file():
        yield from _read(place, Place(place.path.parent), options)
        return
    last, *earlier = _files(place)
    yield from _read(place.below(last), place, options)
    for name in earlier:
        yield Other(name, "an earlier epoch of this training; pass its path to read it")


def _read(place: Place, directory: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of a file; directory: where its config is, if it has one."""
    file = place.path
    modules: factors.Modules = {}
    for name, tensor in place.tensors().items():
        match = KEY.fullmatch(name)
        if match is None:
            yield factors.unpaired(name, file, "is not part of a pair of lora_a and lora_b")
        else:
            parts = modules.setdefault(match["module"], {})
            parts[ROLES.get(match["role"], "magnitude")] = tensor
    if any("magnitude" in parts for parts in modules.values()) and not options.direction_only:
        raise CheckpointError(
            f"{file}: is DoRA, which rescales the rows of W0 + B·A, in torchtune's order of rows;"
            f" pass PEFT's copy of it ({PEFT}.safetensors with {CONFIG}) and --base DIR, or look at"
            " B·A alone, --direction-only"
        )
    modules = orientation.oriented(modules, str(file), options, named=True)
    rule = _rule(directory, file, list(modules), options)
    for module, parts in modules.items():
        try:
            yield _update(module, parts, rule, place, options)
        except CheckpointError as error:
            yield Skipped(module, str(error))


def _rule(directory: Place, file: Any, modules: list[str], options: Options) -> Rule | None:
    """Return rank and scale by the config; None if only --scale gives the scale.

    Raises CheckpointError if neither does.
    """
    if (directory.path / CONFIG).is_file():
        return Rule(directory.json(CONFIG), directory.path / CONFIG, modules)
    if options.scale is None:
        raise CheckpointError(
            f"{file}: lora_a.weight and lora_b.weight of torchtune, without the {CONFIG} that gives"
            " the scale; expected that next to it, or --scale X, which is α/r"
        )
    return None


def _update(
    module: str, parts: dict[str, Stored], rule: Rule | None, place: Place, options: Options
) -> LowRankUpdate:
    """Return the update of one module."""
    where = f"{place.path}: {module}"
    B, A = factors.pair({p: x for p, x in parts.items() if p != "magnitude"}, where)
    if rule is not None and len(A) != rule.rank(module):
        raise CheckpointError(
            f"{where}: lora_b is {B.shape}, lora_a is {A.shape};"
            f" expected r = {rule.rank(module):g} by {rule.path}"
        )
    scale = rule.scale(module) if rule else options.scale_or_one
    return LowRankUpdate(module, B, A, scale, method="lora", source=str(place.path))
