r"""The scale of a file of factors: by α and r among its settings, else by --scale, else 1.

{"state_dict": …, "hyper_parameters": {"lora_alpha": 32, "lora_r": 4}}     a pickled dict
{"__metadata__": {"lora_alpha": "32", "r": "4"}}                           safetensors
{"__metadata__": {"lora_config": "{\"lora_alpha\": 32, \"r\": 4}"}}
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.tensors import Stored
from analysis.formats import Options
from analysis.update import Remark

ALPHAS = ("lora_alpha", "alpha")
PATTERNS = ("alpha_pattern", "rank_pattern")  # by which modules have an α and r of their own
# What is said of a file that does not give α.
UNSCALED = "does not give α: its updates have scale 1 (see --scale)"
RANKS = ("r", "lora_r", "lora_rank", "rank", "lora_dim")


@dataclass(frozen=True)
class Stated:
    """α and r as a file states them.

    rslora: True if the scale is α/√r.
    """

    alpha: float
    r: float
    rslora: bool = False

    @property
    def scale(self) -> float:
        """α/r, or α/√r with rsLoRA."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    @property
    def remark(self) -> str:
        """What is said of the file that states it."""
        return (
            f"states α = {self.alpha:g} and r = {self.r:g}: its updates have scale {self.scale:g}"
        )


def decide(
    place: Place,
    modules: Iterable[Mapping[str, Stored]],
    options: Options,
    *,
    required: str = "",
) -> tuple[float, list[Remark]]:
    """Return the scale of the modules without an `alpha` of their own, and what is said of it.

    The file comes first, then --scale, then 1.
    modules: the tensors of each module; B as for `scale`.
    required: the words of the CheckpointError if 1 must not be taken; "" if it may.
    """
    listed = list(modules)
    given = scale(place, listed)
    if given is not None:
        return given.scale, [Remark(place.path.name, given.remark)]
    if options.scale is not None or all("alpha" in parts for parts in listed):
        return options.scale_or_one, []
    if required:
        raise CheckpointError(required)
    return options.scale_or_one, [Remark(place.path.name, UNSCALED)]


def scale(place: Place, modules: Iterable[Mapping[str, Stored]]) -> Stated | None:
    """Return the α and r that the settings in a file of factors give.

    modules: the tensors of each module, of which "B" is (d_out, r).
    Returns None if none or several are given, if r is not that of every pair, or if modules have an
    `alpha` of their own.
    """
    listed = list(modules)
    ranks = {parts["B"].shape[1] for parts in listed if "B" in parts and len(parts["B"].shape) > 1}
    found = {given for group in _groups(place.metadata()) if (given := _stated(group))}
    if len(found) != 1 or any("alpha" in parts for parts in listed):
        return None
    (given,) = found
    return given if ranks == {given.r} else None


def _groups(metadata: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the settings that are next to each other, of which strings may hold JSON objects."""
    yield metadata
    for value in metadata.values():
        group = value if isinstance(value, dict) else _object(value)
        yield group
        for below in group.values():
            yield below if isinstance(below, dict) else _object(below)


def _object(text: Any) -> dict[str, Any]:
    """Return the JSON object in a string; {} for anything else."""
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _stated(group: Mapping[str, Any]) -> Stated | None:
    """Return α and r of some settings; None if they are not those of every module."""
    if any(group.get(key) not in (None, "", "{}", {}) for key in PATTERNS):
        return None
    alphas = [x for x in (_number(group.get(key)) for key in ALPHAS) if x is not None]
    ranks = [x for x in (_number(group.get(key)) for key in RANKS) if x is not None and x >= 1]
    if not alphas or not ranks:
        return None
    rslora = str(group.get("use_rslora", False)).lower() in ("true", "1")
    return Stated(alphas[0], ranks[0], rslora)


def _number(value: Any) -> float | None:
    """Return a number or a string of one as a finite float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
