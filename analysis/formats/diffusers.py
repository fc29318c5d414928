"""File of diffusers, with old or new names: pytorch_lora_weights.safetensors.

    <module>.lora_A.weight, .lora_B.weight               since PEFT; α may be in the metadata
    <module>.lora.down.weight, .lora.up.weight           between
    <module>.lora_linear_layer.down.weight, .up.weight   text encoders of that time
    <block>.processor.to_q_lora.down.weight, .up.weight  attention processors, the oldest

ΔW = α/r · B @ A. α is `<module>.alpha`, or else r, α and their patterns are in the metadata
(`lora_adapter_metadata`) by PEFT's rule: for each component (unet, text_encoder), or for the whole
file, as a model without a pipeline writes it. If α is in neither, α = r, as diffusers assumes.
ComfyUI's diffusion_model. before a module is left out. DoRA is read as B·A alone, --direction-only.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.formats import Options, dora, factors, orientation
from analysis.formats.rule import Rule
from analysis.update import Entry, Skipped

KEY = re.compile(
    r"(?P<module>.+?)\.(?:(?P<new>lora_[AB])|lora(?:_linear_layer)?\.(?P<between>down|up)"
    r"|processor\.(?P<layer>.+)_lora\.(?P<old>down|up))(?:\.[^.]+)?\.weight",
    re.DOTALL,
)
ALPHA = re.compile(
    r"(?P<module>.+?)(?:\.processor\.(?P<layer>.+)_lora|\.lora(?:_linear_layer|_[AB])?)?\.alpha",
    re.DOTALL,
)
ROLES = {"lora_A": "A", "lora_B": "B", "down": "A", "up": "B"}
METADATA = "lora_adapter_metadata"
ROOT = "diffusion_model."


def recognise(place: Place) -> bool:
    """Return whether the file has factors under diffusers' names."""
    return any(KEY.fullmatch(name) for name in place.tensors())


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of the file; a module with `alpha` and no factors is skipped.

    Raises CheckpointError if the metadata is broken, or if a module is DoRA without
    `direction_only`.
    """
    file = place.path
    modules: factors.Modules = {}
    for name, module, part in split(place):
        if not module:
            yield factors.unpaired(name, file, "is not part of a pair of factors")
            continue
        parts = modules.setdefault(module, {})
        if part in parts and part in ("A", "B"):
            raise CheckpointError(f"{file}: {name}: a second {part} of the same module")
        parts[part] = place.tensors()[name]
    modules = orientation.oriented(modules, str(file), options, named=True)
    rules = _rules(place, modules, options)
    for module, parts in modules.items():
        magnitude = parts.pop(dora.MAGNITUDE, None)
        if magnitude is not None and not options.direction_only:
            raise CheckpointError(f"{file}: {module}: {_refusal(dora.MAGNITUDE)}")
        scale = options.scale_or_one
        rule, name = rules.get(module, (None, module))
        if rule is not None and "alpha" not in parts:
            scale = rule.scale(name)
            A = parts.get("A")
            if A and A.shape and A.shape[0] != rule.rank(name):
                reason = f"A is {A.shape}; expected r = {rule.rank(name):g} by {METADATA}"
                yield Skipped(module, f"{file}: {module}: {reason}")
                continue
        yield from factors.updates({module: parts}, file, "diffusers", scale, options.blocks)


def split(place: Place) -> Iterator[tuple[str, str, str]]:
    """Yield each name of the file with its module and what it is of it: A, B, alpha or another.

    Module and part are "" for a tensor that belongs to none.
    """
    for name in place.tensors():
        match, alpha = KEY.fullmatch(name), ALPHA.fullmatch(name)
        variant = factors.VARIANT.fullmatch(name)
        if match:
            layer = f".{match['layer']}" if match["layer"] else ""
            role = ROLES[match["new"] or match["between"] or match["old"]]
            yield name, _module(match["module"] + layer), role
        elif alpha:
            layer = f".{alpha['layer']}" if alpha["layer"] else ""
            yield name, _module(alpha["module"] + layer), "alpha"
        elif variant:
            yield name, _module(variant["module"]), variant["part"]
        else:
            yield name, "", ""


def _module(name: str) -> str:
    """Return a module's name without ComfyUI's root."""
    return name.removeprefix(ROOT)


def _refusal(what: str) -> str:
    return (
        f"{what} is set: DoRA rescales the rows of W0 + B·A, which is not read for files of"
        " diffusers; look at B·A alone, --direction-only"
    )


def _rules(place: Place, modules: Iterable[str], options: Options) -> dict[str, tuple[Rule, str]]:
    """Return module → the rule of its component, and its name in that component.

    Modules without a rule are left out. The metadata of a whole pipeline has a component before
    every key, that of a single model has none.
    """
    file, text = place.path, place.metadata().get(METADATA)
    if text is None:
        return {}
    try:
        config: Any = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: {METADATA} is not a JSON object")
    config |= {
        f"{component}.{key}": value
        for component, settings in config.items()
        if isinstance(settings, dict) and "lora_alpha" in settings
        for key, value in settings.items()
    }
    dora_of = [key for key, value in config.items() if key.split(".")[-1] == "use_dora" and value]
    if dora_of and not options.direction_only:
        raise CheckpointError(f"{file}: {_refusal(dora_of[0])}")
    rules: dict[str, tuple[Rule, str]] = {}
    components = [key.rpartition(".")[0] for key in config if key.split(".")[-1] == "lora_alpha"]
    for component in sorted(components, key=len):
        start = f"{component}." if component else ""
        settings = {k.removeprefix(start): v for k, v in config.items() if k.startswith(start)}
        names = {
            module: module.removeprefix(start) for module in modules if module.startswith(start)
        }
        where = f"{file}: {component}" if component else file
        rule = Rule(settings, where, list(names.values()))
        rules |= {module: (rule, name) for module, name in names.items()}
    if components and not rules:
        raise CheckpointError(
            f"{file}: {METADATA} is about {', '.join(sorted(components)) or 'a model'}, and no"
            " module has a name of it; expected the metadata of these weights"
        )
    return rules
