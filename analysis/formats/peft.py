"""PEFT LoRA and its variants: adapter_config.json beside adapter_model.safetensors (or .bin).

    base_model.model.<module>.lora_A[.<adapter>].weight     (r, d_in), or (r, d_in, *kernel)
    base_model.model.<module>.lora_B[.<adapter>].weight     (d_out, r), or (d_out, r, 1, …)
    base_model.model.<module>.lora_embedding_A[.<adapter>]  (r, entries); _B (width, r)

ΔW = scale · B @ A, scale = α/r, or α/√r with rsLoRA (Kalajdzievski 2023). A and B have this
orientation over Conv1D too, whatever `fan_in_fan_out` says about the base's own weight; an
embedding is a matrix (width, entries), a convolution one (d_out, d_in·kernel). Several adapters
in one file are parts of a module.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.formats import (
    Options,
    adalora,
    base,
    dora,
    factors,
    merged_linear,
    shards,
    starts,
    through_peft,
)
from analysis.formats.rule import Rule
from analysis.formats.tensors import Stored, read_json, short
from analysis.update import Entry, LowRankUpdate, Other, Skipped

CONFIG = "adapter_config.json"
STEM = "adapter_model"
PREFIX = "base_model.model."

KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.(?P<tensor>lora_[^.]+)(?:\.(?P<tail>.+))?", re.DOTALL
)
# What PEFT puts into the names of tensors that are the base's own.
WRAPPING = re.compile(
    r"^base_model\.model\.|\.modules_to_save(\.default)?(?=\.)|\.original_module(?=\.)"
    r"|\.base_layer(?=\.)"
)
# Settings under which ΔW is made by a rule that only PEFT has.
VARIANTS = {
    "use_qalora": "QALoRA pools the inputs of A",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "kasa_config": "KaSA puts a diagonal between B and A and truncates the base",
    "arrow_config": "Arrow routes among several adapters",
    "monteclora_config": "MonteCLoRA samples its factors",
    "target_parameters": "LoRA on parameters (target_parameters) stacks several updates",
}


def recognises(path: Path) -> bool:
    """Whether `path` holds a PEFT adapter of any type; an adapter without its config counts."""
    return (path / CONFIG).exists() or shards.locate(path, STEM) is not None


def read(path: Path, options: Options) -> Iterator[Entry]:
    """The updates of an adapter; CheckpointError where the adapter as a whole has none."""
    config, where = read_json(path / CONFIG), str(path / CONFIG)
    foreign = _foreign(config)
    if config.get("layer_replication") and (foreign or _needs_base(config, options)):
        raise CheckpointError(
            f"{where}: layer_replication is set: a layer of the base stands for several; what needs"
            " W0 is not read"
        )
    if foreign:
        if options.base is None:
            raise CheckpointError(f"{where}: {foreign}; pass the model it belongs to, --base DIR")
        yield from through_peft.read(path, config, options.base)
        return
    starts.refuse(config, where, options.initial is not None)
    if _needs_base(config, options) and options.base is None:
        raise CheckpointError(
            f"{where}: use_dora is set: DoRA rescales the rows of W0 + B·A; pass the base weights,"
            " --base DIR, or look at B·A alone, --direction-only"
        )
    adapter = _open(path, config, options)
    for name in adapter.others:
        yield _other(name, adapter)
    for (module, part), parts in adapter.modules.items():
        try:
            for entry in _module(module, part, parts, adapter):
                if adapter.starts is not None and isinstance(entry, LowRankUpdate):
                    entry = starts.subtract(entry, adapter.starts.get((module, entry.part)))
                yield entry
        except CheckpointError as error:
            yield Skipped(module, str(error))


def _needs_base(config: dict[str, Any], options: Options) -> bool:
    return bool(config.get("use_dora")) and not options.direction_only


def _foreign(config: dict[str, Any]) -> str:
    """Why B and A do not tell ΔW; "" where they do."""
    peft_type = config.get("peft_type")
    if peft_type not in ("LORA", "ADALORA"):
        return f"peft_type is {short(peft_type)}; expected 'LORA', which has factors of ΔW"
    return next((f"{key} is set: {why}" for key, why in VARIANTS.items() if config.get(key)), "")


def weights(path: Path) -> Path:
    """The adapter's weight file, or the index of its shards; CheckpointError without."""
    file = shards.locate(path, STEM)
    if file is None:
        raise CheckpointError(
            f"{path}: has {CONFIG} but no weights; expected {STEM}.safetensors or {STEM}.bin"
        )
    return file


@dataclass(frozen=True, eq=False)
class Adapter:
    """An opened adapter: what is needed to read each of its modules."""

    file: Path
    config: dict[str, Any]
    options: Options
    tensors: dict[str, Stored]
    others: list[str]
    modules: dict[tuple[str, str], dict[str, str]]  # module, part → "lora_A.weight" → name
    rule: Rule | None  # None for AdaLoRA, which has its own
    W0: dict[str, Stored]  # the base's weight by `_in_base` of our name
    conv1d: bool  # the base has Conv1D where the name says so
    turned: bool | None  # or else, whether W0 is stored as W0ᵀ; None: not known of a square one
    starts: dict[tuple[str, str], LowRankUpdate] | None


def _open(path: Path, config: dict[str, Any], options: Options) -> Adapter:
    file = weights(path)
    tensors = shards.open_located(file)
    others, modules = _sorted(tensors, file)
    names = list(dict.fromkeys(module for module, _ in modules))
    own = config.get("peft_type") == "ADALORA"
    rule = None if own else Rule(config, path / CONFIG, names)
    W0, conv1d = {}, False
    if options.base is not None:
        directory = base.directory(options.base)
        conv1d = base.has_conv1d(directory)
        _, stored = base.open_model(directory)
        ours = [*(f"{module}.weight" for module in names), *map(_in_base, others)]
        W0 = {our: stored[their] for our, their in base.align(ours, stored).items()}
    before = None if options.initial is None else _initial(options.initial)
    kinds = {shape == (A[1], B[0]) for B, A, shape in _rectangular(modules, tensors, W0)}
    by_config = bool(config.get("fan_in_fan_out"))
    # PEFT saves the setting of the last layer, which is that of all where all are of one kind.
    turned = by_config if kinds <= {by_config} else None
    return Adapter(
        file, config, options, tensors, others, modules, rule, W0, conv1d, turned, before
    )


def _rectangular(
    modules: dict[tuple[str, str], dict[str, str]],
    tensors: dict[str, Stored],
    W0: dict[str, Stored],
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """The shapes of B, A and W0 of the layers whose W0 shows which way it lies."""
    for (module, _), names in modules.items():
        stored = W0.get(f"{module}.weight")
        if stored and {"lora_B.weight", "lora_A.weight"} <= names.keys():
            B, A = (tensors[names[f"lora_{f}.weight"]].shape for f in "BA")
            if len(stored.shape) == len(A) == len(B) == 2 and B[0] != A[1]:
                yield B, A, stored.shape


def _initial(path: Path) -> dict[tuple[str, str], LowRankUpdate]:
    """The updates of the adapter as it was before its training, whatever its start."""
    if not recognises(path):
        raise CheckpointError(f"{path}: no adapter here; --initial expected {CONFIG}")
    config = read_json(path / CONFIG) | {"init_lora_weights": True}
    if _foreign(config):
        raise CheckpointError(f"{path / CONFIG}: {_foreign(config)}")
    adapter = _open(path, config, Options())
    entries = (e for key, parts in adapter.modules.items() for e in _module(*key, parts, adapter))
    return {(e.name, e.part): e for e in entries if isinstance(e, LowRankUpdate)}


def _sorted(
    tensors: Iterable[str], file: Path
) -> tuple[list[str], dict[tuple[str, str], dict[str, str]]]:
    """The names that belong to no update, and those that do by module, part and what they are."""
    matches = {name: KEY.fullmatch(name) for name in tensors}
    several = len({_tail(match)[0] for match in matches.values() if match}) > 1
    others: list[str] = []
    modules: dict[tuple[str, str], dict[str, str]] = {}
    for name, match in matches.items():
        if match is None:
            others.append(name)
            continue
        adapter, leaf = _tail(match)
        parts = modules.setdefault((match["module"], adapter if several else ""), {})
        what = match["tensor"] + leaf
        if what in parts:
            raise CheckpointError(f"{file}: {name} and {parts[what]} are one tensor of one module")
        parts[what] = name
    return others, modules


def _tail(match: re.Match[str]) -> tuple[str, str]:
    """The adapter's name, "" where it was left out, and ".weight", ".bias" or ""."""
    tail = match["tail"] or ""
    adapter, _, leaf = tail.rpartition(".")
    return (adapter, f".{leaf}") if leaf in ("weight", "bias") else (tail, "")


def _in_base(name: str) -> str:
    """What the base calls a tensor that PEFT wraps."""
    return WRAPPING.sub("", name)


def what(name: str) -> str:
    """What a tensor is that belongs to no update."""
    if "trainable_tokens_" in name:
        return "trained rows of an embedding (trainable_token_indices)"
    return "bias" if name.endswith(".bias") else "saved weight (modules_to_save)"


def _other(name: str, adapter: Adapter) -> Other:
    if adapter.options.base is None:
        return Other(name, what(name))
    W0 = adapter.W0.get(_in_base(name))
    return Other(name, f"{what(name)}, {base.change(adapter.tensors[name], W0)}")


def _module(module: str, part: str, names: dict[str, str], adapter: Adapter) -> Iterator[Entry]:
    """The update of one module, or several where its layer is fused; and the bias of its B."""
    where, source = f"{adapter.file}: {module}", str(adapter.file)
    parts = {what: adapter.tensors[name] for what, name in names.items()}
    config, rule = adapter.config, adapter.rule
    if rule is None:
        B, A = adalora.factors(parts, where)
        scale = adalora.scale(config, str(adapter.file.parent / CONFIG))
        yield LowRankUpdate(module, B, A, scale, part, "peft:ADALORA", source)
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
    """B (d_out, r) and A (r, d_in·kernel), of the rank that the config says."""
    factors.check(B.shape, A.shape, where)
    if A.shape[0] != rule.rank(module):
        raise CheckpointError(
            f"{where}: B is {B.shape}, A is {A.shape};"
            f" expected r = {rule.rank(module):g} by {rule.path}"
        )
    return factors.matrices(B.load(), A.load())


def _magnitude(parts: dict[str, Stored], where: str) -> Stored:
    names = [name for name in parts if name.removesuffix(".weight") == dora.MAGNITUDE]
    if not names:
        raise CheckpointError(
            f"{where}: has no {dora.MAGNITUDE}; expected it where use_dora is set"
        )
    return parts.pop(names[0])


def _pair(parts: dict[str, Stored], where: str) -> tuple[Stored, Stored]:
    """B and A of a layer; CheckpointError where there is less, or more."""
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    names = [f"lora_embedding_{f}" if embedding else f"lora_{f}.weight" for f in "BA"]
    rest = [name for name in parts if name not in names]
    if rest:
        raise CheckpointError(
            f"{where}: {', '.join(rest)} is not read beside {' and '.join(names)}"
        )
    missing = [name.removesuffix(".weight") for name in names if name not in parts]
    if len(missing) == 2:
        raise CheckpointError(f"{where}: has no {missing[0]} and no {missing[1]}; expected both")
    if missing:
        have = next(name.removesuffix(".weight") for name in names if name in parts)
        raise CheckpointError(f"{where}: has {have} but no {missing[0]}; expected both")
    return parts[names[0]], parts[names[1]]
