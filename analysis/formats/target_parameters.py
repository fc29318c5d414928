"""PEFT LoRA on parameters (target_parameters), such as the stacked experts of a layer.

    …mlp.experts[.base_layer].lora_A.weight   (E·r, d_in)    block of rows e is A of expert e
    …mlp.experts[.base_layer].lora_B.weight   (d_out, r·E)   columns e, e + E, … are B of expert e

ΔWₑ = scale · Bₑ @ Aₑ, one part for each of the E experts: `expert0`, … A parameter with two
dimensions has E = 1. The names do not say which parameter of a layer is meant: a layer with several
is wrapped several times, `base_layer` for the first. Two parameters are told by their shapes
(gate_up_proj has the outputs of both gate and up) or else by the order in which models define them.
Unsloth, until September 2026, trained with the columns of B grouped by expert, in a file that looks
the same: pass --experts-first for it.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.files.tensors import Stored, short
from analysis.formats.rule import Rule
from analysis.update import LowRankUpdate, Remark, Skipped

BASE_LAYER = ".base_layer"  # what PEFT adds to the name of a layer for each of its wrappers
MOST = 4  # parameters of a layer; their names are not told if there are more
# The order in which the layers of Transformers define their parameters.
ORDER = ("gate_up_proj", "gate_proj", "w1", "up_proj", "v1", "w3", "down_proj", "w2", "weight")
Shape = tuple[int, int]


@dataclass(frozen=True)
class Parameter:
    """A targeted parameter: the path of its name, and whether A and B act on its transpose.

    by_order: True if only the usual order of such names tells it from another one.
    """

    name: str
    turned: bool = False
    by_order: bool = False


def targets(config: Mapping[str, Any], where: str) -> list[str]:
    """Return the paths of target_parameters; raise CheckpointError unless it is a list of them."""
    listed = config.get("target_parameters") or []
    if not isinstance(listed, list) or not all(isinstance(t, str) and t for t in listed):
        raise CheckpointError(
            f"{where}: target_parameters is {short(listed)}; expected a list of names"
        )
    return listed


def wrapped(modules: Collection[str], targets: Sequence[str]) -> set[str]:
    """Return those of the modules whose factors are about a parameter, not about a layer.

    modules: as the adapter names them.
    targets: the ends of the parameters' paths; without a dot, the name of the parameter alone.
    """
    by_path = _by_path(targets)
    return {module for module in modules if _candidates(_layer(module), by_path)}


def _layer(module: str) -> str:
    """Return the path of a layer, without the base_layer of its wrappers."""
    while module.endswith(BASE_LAYER):
        module = module.removesuffix(BASE_LAYER)
    return module


def _by_path(targets: Sequence[str]) -> dict[str, list[str]]:
    """Return the end of a layer's path → the names of its parameters that are targeted."""
    found: dict[str, list[str]] = {}
    for target in targets:
        path, _, parameter = target.rpartition(".")
        found.setdefault(path, []).append(parameter)
    return found


def _candidates(layer: str, by_path: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names of the parameters of a layer that are targeted; by_path: of `_by_path`."""
    components = layer.split(".")
    ends = [".".join(components[i:]) for i in range(len(components))]
    if components[-1] == "experts":
        ends.append("")
    return list(dict.fromkeys(name for end in ends for name in by_path.get(end, ())))


def names(
    modules: Collection[str], shapes: Mapping[str, Shape], targets: Sequence[str]
) -> dict[str, Parameter]:
    """Return module → its Parameter.

    modules: those that `wrapped` gave.
    shapes: module → (d_out, d_in) of its factors.

    A layer whose parameters cannot be told keeps the names of the file.
    """
    layers: dict[str, list[str]] = {}
    for module in sorted(modules, key=len, reverse=True):  # the innermost was wrapped first
        layers.setdefault(_layer(module), []).append(module)
    by_path = _by_path(targets)
    found: dict[str, Parameter] = {}
    for layer, wrappers in layers.items():
        told = _told(_candidates(layer, by_path), [shapes[module] for module in wrappers])
        if told is None:
            found |= {module: Parameter(module) for module in wrappers}
            continue
        for module, parameter in zip(wrappers, told, strict=True):
            path = f"{layer}.{parameter.name}".removesuffix(".weight")
            found[module] = replace(parameter, name=path)
    return found


def _told(parameters: Sequence[str], shapes: Sequence[Shape]) -> list[Parameter] | None:
    """Return the parameter of each wrapper of a layer, the first one first; None if unclear.

    parameters: the candidates; shapes: (d_out, d_in) of each wrapper.
    """
    if len(parameters) != len(shapes) or len(shapes) > MOST:
        return None
    if len(parameters) == 1:
        return [Parameter(parameters[0])]
    known = all(parameter in ORDER for parameter in parameters)
    in_order = sorted(parameters, key=ORDER.index) if known else list(parameters)
    for turned in (False, True):
        oriented = [(b, a) if turned else (a, b) for a, b in shapes]
        fitting = [
            order
            for order in itertools.permutations(in_order)
            if _fit(dict(zip(order, oriented, strict=True)))
        ]
        if tuple(in_order) in fitting and (known or len(fitting) == 1):
            return [Parameter(name, turned, by_order=len(fitting) > 1) for name in in_order]
        if len(fitting) == 1:
            return [Parameter(name, turned) for name in fitting[0]]
    return None


def _fit(shapes: Mapping[str, Shape]) -> bool:
    """Return whether parameters of these names have shapes (d_out, d_in) that fit together."""
    wide, down = shapes.get("gate_up_proj"), shapes.get("down_proj") or shapes.get("w2")
    if wide and down and (wide[0] != 2 * down[1] or wide[1] != down[0]):
        return False
    inner = [shapes[n] for n in ("gate_proj", "up_proj", "w1", "w3", "v1") if n in shapes]
    return all(shape == inner[0] for shape in inner) and not (
        down and inner and inner[0] != (down[1], down[0])
    )


def read(
    modules: Mapping[tuple[str, str], Mapping[str, str]],
    tensors: Mapping[str, Stored],
    config: dict[str, Any],
    where: str,
    file: str,
    experts_first: bool,
) -> Iterator[LowRankUpdate | Remark | Skipped]:
    """Yield the updates of the wrapped modules, one for each expert.

    modules: (module, adapter) → what a tensor is, as "lora_A.weight" → its name.
    tensors: name → tensor.
    config: the adapter's config.
    where, file: the config and the weight file, for messages.
    experts_first: True if the columns of B are grouped by expert.
    """
    if not modules:
        return
    shapes: dict[str, Shape] = {}
    for (module, _), parts in modules.items():
        fault = _fault(parts, tensors)
        if fault:
            yield Skipped(module, f"{file}: {module}: {fault}")
        else:
            A, B = (tensors[parts[f"lora_{f}.weight"]] for f in "AB")
            shapes[module] = (B.shape[0], A.shape[1])
    parameters = names(list(shapes), shapes, targets(config, where))
    if any(parameter.by_order for parameter in parameters.values()):
        order = ", ".join(n for n in ORDER if any(t.endswith(n) for t in targets(config, where)))
        what = f"parameters of one shape are told apart by their usual order: {order}"
        yield Remark(Path(file).name, what)
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        for module in [m for m, parameter in parameters.items() if parameter.name == m]:
            del parameters[module]
            yield Skipped(
                module,
                f"{file}: {module}: which of several parameters it changes cannot be told, and"
                f" {where} has rank_pattern or alpha_pattern, which need its name",
            )
    rule = Rule(config, where, [parameter.name for parameter in parameters.values()])
    for (module, adapter), parts in modules.items():
        if module in parameters:
            A, B = (tensors[parts[f"lora_{f}.weight"]] for f in "AB")
            yield from _updates(parameters[module], adapter, A, B, rule, file, experts_first)


def _fault(parts: Mapping[str, str], tensors: Mapping[str, Stored]) -> str:
    """Return what is wrong with the tensors of a module, in words; "" if nothing is."""
    expected = {"lora_A.weight", "lora_B.weight"}
    if parts.keys() != expected:
        return f"has {', '.join(sorted(parts))}; expected {' and '.join(sorted(expected))}"
    A, B = (tensors[parts[f"lora_{f}.weight"]].shape for f in "AB")
    if len(A) != 2 or len(B) != 2 or A[0] != B[1] or 0 in (*A, *B):
        return f"B is {B}, A is {A}; expected B (d_out, r·experts) and A (experts·r, d_in)"
    return ""


def _updates(
    parameter: Parameter,
    adapter: str,
    A: Stored,
    B: Stored,
    rule: Rule,
    file: str,
    experts_first: bool,
) -> Iterator[LowRankUpdate | Skipped]:
    """Yield the update of each expert; `expert0` … are their parts unless there is one only.

    adapter: the adapter's name, which goes in front; "" if the file has one only. The other
    arguments are as for `read`.
    """
    name, r = parameter.name, int(rule.rank(parameter.name))
    E, rest = divmod(A.shape[0], r)
    if rest:
        yield Skipped(
            name,
            f"{file}: {name}: A is {A.shape}; expected a multiple of r = {r} rows by {rule.path}",
        )
        return
    try:
        left, right = B.load(), A.load()
    except CheckpointError as error:
        yield Skipped(name, str(error))
        return
    right = right.reshape(E, r, -1)
    left = left.reshape(len(left), E, r) if experts_first else _by_expert(left, E)
    for e in range(E):
        of_expert = f"expert{e}" if E > 1 else ""
        part = ".".join(filter(None, (adapter, of_expert)))
        B_e, A_e = left[:, e], right[e]
        if parameter.turned:
            B_e, A_e = A_e.T, B_e.T
        yield LowRankUpdate(name, B_e, A_e, rule.scale(name), part, "lora", file)


def _by_expert(B: np.ndarray, E: int) -> np.ndarray:
    """Return B (d_out, r·E), whose columns run through the experts first, as (d_out, E, r).

    >>> _by_expert(np.array([[0, 1, 10, 11, 20, 21]]), 2).tolist()
    [[[0, 10, 20], [1, 11, 21]]]
    """
    return B.reshape(len(B), -1, E).swapaxes(1, 2)
