"""PEFT LoRA adapter: adapter_config.json and adapter_model.safetensors (or .bin).

    base_model.model.<module>.lora_A[.<adapter>].weight     (r, d_in), or (r, d_in, *kernel)
    base_model.model.<module>.lora_B[.<adapter>].weight     (d_out, r), or (d_out, r, 1, …)
    base_model.model.<module>.lora_embedding_A[.<adapter>]  (r, entries); _B (width, r)

ΔW = scale · B @ A, scale = α/r, or α/√r with rsLoRA (Kalajdzievski 2023). A and B have this
orientation for Conv1D too: `fan_in_fan_out` is about the base's own weight. ΔW of an embedding is
(width, entries), that of a convolution (d_out, d_in·kernel). Several adapters in one file are parts
of a module.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.files import shards
from analysis.files.place import Place
from analysis.files.tensors import Stored
from analysis.formats import (
    Options,
    adalora,
    base,
    dora,
    factors,
    merged_linear,
    orientation,
    starts,
    target_parameters,
    through_peft,
)
from analysis.formats.rule import Rule
from analysis.update import Entry, LowRankUpdate, Other, Skipped

CONFIG = "adapter_config.json"
STEM = "adapter_model"
STEMS = (STEM,)
PREFIX = "base_model.model."  # of every name in a model that PEFT has wrapped

# A tensor of a module is named by the last component that is a known one: modules of the base may
# have names that begin with lora_ too.
KEY = re.compile(
    r"(?P<module>.+)\.(?P<tensor>lora_(?:A|B|E|embedding_A|embedding_B|magnitude_vector))"
    r"(?:\.(?P<tail>.+))?",
    re.DOTALL,
)
UNKNOWN = re.compile(r"(?P<module>.+)\.(?P<tensor>lora_[^.]+)(?:\.(?P<tail>[^.]+))?", re.DOTALL)
ROOT = re.compile(r"(?:(?P<before>.*?)\.)??base_model\.model\.(?P<rest>.+)", re.DOTALL)
# What PEFT adds to the names of the base's own tensors.
WRAPPING = re.compile(
    r"^base_model\.model\.|\.modules_to_save(\.default)?(?=\.)|\.original_module(?=\.)"
    r"|\.base_layer(?=\.)"
)


def recognise(place: Place) -> bool:
    """Return whether the directory holds a PEFT adapter of any type, or only its weights."""
    return (place.path / CONFIG).exists() or shards.locate(place.path, STEM) is not None


def read(place: Place, options: Options, file: Path | None = None) -> Iterator[Entry]:
    """Yield the updates of an adapter.

    place: its directory; file: its weights, by default those under PEFT's name. Raises
    CheckpointError if the adapter as a whole cannot be read, or not with these options.
    """
    config, where = place.json(CONFIG), str(place.path / CONFIG)
    reason = through_peft.reason(config)
    if reason:
        through_peft.refuse(config, where)
    if config.get("layer_replication") and (reason or _needs_base(config, options)):
        raise CheckpointError(
            f"{where}: layer_replication is set: several layers share one layer of the base; an"
            " adapter that needs W0 is not read then"
        )
    if reason:
        if file is not None:
            raise CheckpointError(f"{where}: {reason}; expected the weights as {STEM}.safetensors")
        if options.base is None:
            raise CheckpointError(f"{where}: {reason}; {through_peft.advice(config)}")
        _check_weights(place)
        yield from through_peft.read(place.path, config, options.base)
        return
    starts.refuse(config, where, options.initial is not None)
    if _needs_base(config, options) and options.base is None:
        raise CheckpointError(
            f"{where}: use_dora is set: DoRA rescales the rows of W0 + B·A; pass the base weights,"
            " --base DIR, or look at B·A alone, --direction-only"
        )
    adapter = _open(place, config, options, file or weights(place))
    for name in adapter.others:
        yield _other(name, adapter)
    stacks = _stacks(adapter, where)
    if stacks:
        yield from target_parameters.read(
            stacks, adapter.tensors, config, where, str(adapter.file), options.experts_first
        )
    for (module, part), parts in adapter.modules.items():
        if (module, part) in stacks:
            continue
        try:
            for entry in _module(module, part, parts, adapter):
                if adapter.starts is not None and isinstance(entry, LowRankUpdate):
                    entry = starts.subtract(entry, adapter.starts.get((module, entry.part)))
                yield entry
        except CheckpointError as error:
            yield Skipped(module, str(error))


def _stacks(adapter: "Adapter", where: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return those of `Adapter.modules` that are about parameters (target_parameters)."""
    targets = target_parameters.targets(adapter.config, where)
    wrapped = target_parameters.wrapped({module for module, _ in adapter.modules}, targets)
    return {key: parts for key, parts in adapter.modules.items() if key[0] in wrapped}


def _needs_base(config: dict[str, Any], options: Options) -> bool:
    """Return whether ΔW of this LoRA depends on W0."""
    return bool(config.get("use_dora")) and not options.direction_only


def weights(place: Place) -> Path:
    """Return the adapter's weight file, or the index of its shards.

    Raises CheckpointError if there is neither.
    """
    file = shards.locate(place.path, STEM)
    if file is None:
        raise CheckpointError(
            f"{place.path}: has {CONFIG} but no weights; expected {STEM}.safetensors or {STEM}.bin"
        )
    return file


def _check_weights(place: Place) -> None:
    """Raise CheckpointError if PEFT would not find the weights here: it would ask the hub then."""
    names = (f"{STEM}.safetensors", f"{STEM}.bin")
    if not any((place.path / name).is_file() for name in names):
        raise CheckpointError(f"{place.path}: has no weights; expected {' or '.join(names)}")


@dataclass(frozen=True, eq=False)
class Adapter:
    """An opened adapter: what is needed to read each of its modules.

    file: its weight file or index.
    config: its config.
    options: those of the user.
    tensors: name → tensor.
    others: the names that belong to no update.
    modules: (module, part) → what a tensor is, as "lora_A.weight" → its name.
    rule: rank and scale of each module; None for AdaLoRA, which has a rule of its own.
    W0: the base's tensors, by `_in_base` of the adapter's names; {} without a base.
    conv1d: True if the base has Conv1D layers, which their names tell.
    turned: without that, True if the base stores W0ᵀ; None if a square W0 could be either.
    starts: (module, part) → its update before the training; None without an initial adapter.
    """

    file: Path
    config: dict[str, Any]
    options: Options
    tensors: dict[str, Stored]
    others: list[str]
    modules: dict[tuple[str, str], dict[str, str]]
    rule: Rule | None
    W0: dict[str, Stored]
    conv1d: bool
    turned: bool | None
    starts: dict[tuple[str, str], LowRankUpdate] | None


def _open(place: Place, config: dict[str, Any], options: Options, file: Path) -> Adapter:
    """Open an adapter, and the base and the initial adapter if the options name them."""
    tensors = place.tensors(file)
    others, modules = by_module(tensors, file)
    names = list(dict.fromkeys(module for module, _ in modules))
    is_adalora = config.get("peft_type") == "ADALORA"
    W0, conv1d = {}, False
    if options.base is not None:
        base_place = Place(base.directory(options.base))
        conv1d = base.has_conv1d(base_place)
        _, stored = base.open_model(base_place)
        ours = [*(f"{module}.weight" for module in names), *map(_in_base, others)]
        W0 = {our: stored[their] for our, their in base.align(ours, stored).items()}
    kinds = {shape == (A[1], B[0]) for B, A, shape in _rectangular(modules, tensors, W0)}
    by_config = bool(config.get("fan_in_fan_out"))
    return Adapter(
        file=file,
        config=config,
        options=options,
        tensors=tensors,
        others=others,
        modules=modules,
        rule=None if is_adalora else Rule(config, place.path / CONFIG, names),
        W0=W0,
        conv1d=conv1d,
        # PEFT saves fan_in_fan_out of the last layer only; it holds for all if they are alike.
        turned=by_config if kinds <= {by_config} else None,
        starts=None if options.initial is None else _initial(Place(options.initial)),
    )


def _rectangular(
    modules: dict[tuple[str, str], dict[str, str]],
    tensors: dict[str, Stored],
    W0: dict[str, Stored],
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Yield the shapes of B, A and W0 of the layers whose shape tells W0 from W0ᵀ."""
    for (module, _), names in modules.items():
        stored = W0.get(f"{module}.weight")
        if stored and {"lora_B.weight", "lora_A.weight"} <= names.keys():
            B, A = (tensors[names[f"lora_{f}.weight"]].shape for f in "BA")
            if len(stored.shape) == len(A) == len(B) == 2 and B[0] != A[1]:
                yield B, A, stored.shape


def _initial(place: Place) -> dict[tuple[str, str], LowRankUpdate]:
    """Return the updates of the adapter as it was before its training, with any start."""
    if not recognise(place):
        raise CheckpointError(f"{place.path}: no adapter here; --initial expected {CONFIG}")
    config = place.json(CONFIG) | {"init_lora_weights": True}
    if reason := through_peft.reason(config):
        raise CheckpointError(f"{place.path / CONFIG}: {reason}")
    adapter = _open(place, config, Options(), weights(place))
    entries = (e for key, parts in adapter.modules.items() for e in _module(*key, parts, adapter))
    return {(e.name, e.part): e for e in entries if isinstance(e, LowRankUpdate)}


def by_module(
    tensors: Iterable[str], file: Path
) -> tuple[list[str], dict[tuple[str, str], dict[str, str]]]:
    """Return the names that belong to no update, and the others as in `Adapter.modules`."""
    rest = below_root(tensors)
    matches = {name: KEY.fullmatch(short) for name, short in rest.items()}
    known = {match["module"] for match in matches.values() if match}
    for name, match in matches.items():
        unknown = None if match else UNKNOWN.fullmatch(rest[name])
        if unknown and unknown["module"] in known:
            matches[name] = unknown
    several = len({_tail(match)[0] for match in matches.values() if match}) > 1
    others: list[str] = []
    modules: dict[tuple[str, str], dict[str, str]] = {}
    for name, match in matches.items():
        if match is None:
            others.append(name)
            continue
        adapter, leaf = _tail(match)
        parts = modules.setdefault((match["module"], adapter if several else ""), {})
        tensor = match["tensor"] + leaf
        if tensor in parts:
            raise CheckpointError(
                f"{file}: {name} and {parts[tensor]} are the same tensor of one module"
            )
        parts[tensor] = name
    return others, modules


def below_root(names: Iterable[str]) -> dict[str, str]:
    """Return name → its part below PEFT's root, base_model.model.

    What is in front of the root is kept if it differs between names: a file can hold two models.

    >>> below_root(["net.base_model.model.q.lora_A.weight", "net.b.weight"])
    {'net.base_model.model.q.lora_A.weight': 'q.lora_A.weight', 'net.b.weight': 'net.b.weight'}
    """
    matches = {name: ROOT.fullmatch(name) for name in names}
    several = len({match["before"] for match in matches.values() if match}) > 1
    return {
        name: name
        if match is None
        else ".".join(filter(None, (match["before"] if several else "", match["rest"])))
        for name, match in matches.items()
    }


def _tail(match: re.Match[str]) -> tuple[str, str]:
    """Return the adapter's name, "" if it was left out, and ".weight", ".bias" or ""."""
    tail = match["tail"] or ""
    adapter, _, leaf = tail.rpartition(".")
    return (adapter, f".{leaf}") if leaf in ("weight", "bias") else (tail, "")


def _in_base(name: str) -> str:
    """Return the base's name of a tensor that PEFT wraps."""
    return WRAPPING.sub("", name)


def describe(name: str) -> str:
    """Describe a tensor that belongs to no update, by its name."""
    if UNKNOWN.fullmatch(name):
        return "saved weight, or a part of an adapter that is not read"
    if "trainable_tokens_" in name:
        return "trained rows of an embedding (trainable_token_indices)"
    return "bias" if name.endswith(".bias") else "saved weight (modules_to_save)"


def _other(name: str, adapter: Adapter) -> Other | Skipped:
    """Return the entry of a tensor that belongs to no update, with its change if W0 is known.

    A matrix of the base that was saved whole and has changed is skipped: ΔW has more than factors.
    """
    if adapter.options.base is None:
        return Other(name, describe(name))
    stored, own = adapter.tensors[name], _in_base(name)
    W0 = adapter.W0.get(own)
    what = f"{describe(name)}, {base.change(stored, W0)}"
    if W0 is not None and len(stored.shape) == 2 and not what.endswith("change of norm 0"):
        return Skipped(own.removesuffix(".weight"), f"{adapter.file}: {name}: {what}; not analysed")
    return Other(name, what)


def _module(module: str, part: str, names: dict[str, str], adapter: Adapter) -> Iterator[Entry]:
    """Yield the update of one module, or several if its layer is fused; and the bias of its B.

    module, part: a key of `Adapter.modules`; names: its value.
    """
    where, source = f"{adapter.file}: {module}", str(adapter.file)
    parts = {tensor: adapter.tensors[name] for tensor, name in names.items()}
    if adapter.options.transposed:
        parts |= {
            f: orientation.turned(parts[f])
            for f in ("lora_A.weight", "lora_B.weight")
            if f in parts
        }
    config, rule = adapter.config, adapter.rule
    if rule is None:
        B, A = adalora.factors(parts, where)
        scale = adalora.scale(config, str(adapter.file.parent / CONFIG))
        dtypes = adalora.dtypes(parts)
        yield LowRankUpdate(
            module,
            B,
            A,
            scale,
            part,
            "peft:ADALORA",
            source,
            dtypes=dtypes,
            inner=np.eye(len(A)),
        )
        return
    scale = rule.scale(module)
    if parts.pop("lora_B.bias", None):
        yield Other(names["lora_B.bias"], f"bias of lora_B (lora_bias), times {scale:g}")
    magnitude = _magnitude(parts, where) if config.get("use_dora") else None
    stored_B, stored_A = _pair(parts, where)
    if config.get("enable_lora") and len(stored_B.shape) == 3:
        enabled, r = config["enable_lora"], rule.rank(module)
        for piece, B, A in merged_linear.slices(stored_B, stored_A, enabled, r, where):
            of_part = f"{part}.{piece}" if part else piece
            yield LowRankUpdate(module, B, A, scale, of_part, "lora", source, of_rows=True)
        return
    B, A = _factors(stored_B, stored_A, rule, module, where)
    update = LowRankUpdate(module, B, A, scale, part, "lora", source)
    if magnitude is not None and not adapter.options.direction_only:
        turned = adapter.turned
        if adapter.conv1d:
            turned = module.rpartition(".")[2] in base.CONV1D
        if "lora_embedding_A" in parts:
            turned = True
        yield dora.update(update, magnitude, adapter.W0.get(f"{module}.weight"), turned)
    else:
        yield update


def _factors(
    B: Stored, A: Stored, rule: Rule, module: str, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return B (d_out, r) and A (r, d_in·kernel); raise CheckpointError for another rank r.

    B, A: the stored tensors; rule: gives the rank that the config says; where: for messages.
    """
    factors.check(B.shape, A.shape, where)
    r = rule.rank(module)
    if A.shape[0] != r:
        turned = B.shape[0] == r and A.shape[1:] == (r,)
        advice = "; pass --transposed if the layer computes x @ A @ B" if turned else ""
        raise CheckpointError(
            f"{where}: B is {B.shape}, A is {A.shape}; expected r = {r:g} by {rule.path}{advice}"
        )
    return factors.matrices(B.load(), A.load())


def _magnitude(parts: dict[str, Stored], where: str) -> Stored:
    """Take DoRA's magnitude out of the tensors of a module."""
    names = [name for name in parts if name.removesuffix(".weight") == dora.MAGNITUDE]
    if not names:
        raise CheckpointError(f"{where}: has no {dora.MAGNITUDE}; use_dora is set, expected it")
    return parts.pop(names[0])


def _pair(parts: dict[str, Stored], where: str) -> tuple[Stored, Stored]:
    """Return B and A of a layer; raise CheckpointError unless it has both, and no more."""
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    names = [f"lora_embedding_{f}" if embedding else f"lora_{f}.weight" for f in "BA"]
    rest = [name for name in parts if name not in names]
    if rest:
        raise CheckpointError(
            f"{where}: {', '.join(rest)} is not read next to {' and '.join(names)}"
        )
    missing = [name.removesuffix(".weight") for name in names if name not in parts]
    if len(missing) == 2:
        raise CheckpointError(f"{where}: has no {missing[0]} and no {missing[1]}; expected both")
    if missing:
        have = next(name.removesuffix(".weight") for name in names if name in parts)
        raise CheckpointError(f"{where}: has {have} but no {missing[0]}; expected both")
    return parts[names[0]], parts[names[1]]
