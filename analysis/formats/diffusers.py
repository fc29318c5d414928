"""File of diffusers, with old or new names: pytorch_lora_weights.safetensors.

    <module>.lora_A.weight, .lora_B.weight               since PEFT; α may be in the metadata
    <module>.lora.down.weight, .lora.up.weight           between
    <module>.lora_linear_layer.down.weight, .up.weight   text encoders of that time
    <block>.processor.to_q_lora.down.weight, .up.weight  attention processors, the oldest

ΔW = α/r · B @ A. α is `<module>.alpha`, or else one number for the whole component (unet,
text_encoder) in the metadata (`lora_adapter_metadata`). If it is given in neither, α = r, as
diffusers assumes.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from analysis import CheckpointError
from analysis.formats import Options, factors
from analysis.formats.place import Place
from analysis.formats.tensors import count, number
from analysis.update import Entry, Other

KEY = re.compile(
    r"(?P<module>.+?)\.(?:(?P<new>lora_[AB])|lora(?:_linear_layer)?\.(?P<between>down|up)"
    r"|processor\.(?P<layer>.+)_lora\.(?P<old>down|up))(?:\.[^.]+)?\.weight",
    re.DOTALL,
)
ALPHA = re.compile(r"(?P<module>.+)\.alpha", re.DOTALL)
ROLES = {"lora_A": "A", "lora_B": "B", "down": "A", "up": "B"}


def recognise(place: Place) -> bool:
    """Return whether the file has factors under diffusers' names."""
    return any(KEY.fullmatch(name) for name in place.tensors())


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of the file; a module with `alpha` and no factors is skipped."""
    file = place.path
    modules: factors.Modules = {}
    for name, tensor in place.tensors().items():
        match, alpha = KEY.fullmatch(name), ALPHA.fullmatch(name)
        variant = factors.VARIANT.fullmatch(name)
        if match:
            role = ROLES[match["new"] or match["between"] or match["old"]]
            layer = f".{match['layer']}" if match["layer"] else ""
            parts = modules.setdefault(match["module"] + layer, {})
            if role in parts:
                raise CheckpointError(f"{file}: {name}: a second {role} of the same module")
            parts[role] = tensor
        elif alpha:
            modules.setdefault(alpha["module"], {})["alpha"] = tensor
        elif variant:
            modules.setdefault(variant["module"], {})[variant["part"]] = tensor
        else:
            yield Other(name, "is not part of a pair of factors")
    scales = _scales(place)
    for module, parts in modules.items():
        component = next((c for c in scales if module.startswith(f"{c}.")), "")
        scale = options.multiplier * (1.0 if "alpha" in parts else scales.get(component, 1.0))
        yield from factors.updates({module: parts}, file, "diffusers", scale)


def _scales(place: Place) -> dict[str, float]:
    """Return component → α/r, from the config that newer versions put into the metadata."""
    file, text = place.path, place.metadata().get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        config: Any = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: lora_adapter_metadata is not a JSON object")
    scales = {}
    for key in config:
        component, _, setting = key.rpartition(".")
        if setting == "use_dora" and config[key]:
            raise CheckpointError(f"{file}: {key} is set: DoRA is not read without its base")
        if setting == "lora_alpha":
            r, alpha = count(config, f"{component}.r", file), number(config, key, file)
            root = config.get(f"{component}.use_rslora")
            scales[component] = alpha / (math.sqrt(r) if root else r)
            if config.get(f"{component}.rank_pattern") or config.get(f"{component}.alpha_pattern"):
                raise CheckpointError(
                    f"{file}: {component}: rank_pattern and alpha_pattern are not read in a file"
                    " of diffusers; expected one rank and one α"
                )
    return scales
