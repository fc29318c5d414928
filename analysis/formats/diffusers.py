"""diffusers, old and new: pytorch_lora_weights.safetensors without a config.

    <module>.lora_A.weight, .lora_B.weight               since PEFT; α may stand in the metadata
    <module>.lora.down.weight, .lora.up.weight           between
    <module>.lora_linear_layer.down.weight, .up.weight   text encoders, then
    <block>.processor.to_q_lora.down.weight, .up.weight  attention processors, the oldest

ΔW = α/r · B @ A. α stands in `<module>.alpha`, or else for the whole component in the
metadata (`lora_adapter_metadata`); where it stands nowhere, diffusers takes α = r, and so do we.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from analysis import CheckpointError
from analysis.formats import Options, factors
from analysis.formats.tensors import Stored, count, metadata, number
from analysis.update import Entry, Other

KEY = re.compile(
    r"(?P<module>.+?)\.(?:(?P<new>lora_[AB])|lora(?:_linear_layer)?\.(?P<between>down|up)"
    r"|processor\.(?P<layer>.+)_lora\.(?P<old>down|up))(?:\.[^.]+)?\.weight",
    re.DOTALL,
)
ALPHA = re.compile(r"(?P<module>.+)\.alpha", re.DOTALL)
ROLES = {"lora_A": "A", "lora_B": "B", "down": "A", "up": "B"}


def recognises(names: Collection[str]) -> bool:
    """Whether a file with tensors of these names is one of diffusers."""
    return any(KEY.fullmatch(name) for name in names)


def read(file: Path, tensors: Mapping[str, Stored], options: Options) -> Iterator[Entry]:
    """The updates of the file, the components (unet, text_encoder) one after another."""
    modules: factors.Modules = {}
    alphas: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        match, alpha = KEY.fullmatch(name), ALPHA.fullmatch(name)
        variant = factors.VARIANT.fullmatch(name)
        if match:
            role = ROLES[match["new"] or match["between"] or match["old"]]
            layer = f".{match['layer']}" if match["layer"] else ""
            parts = modules.setdefault(match["module"] + layer, {})
            if role in parts:
                raise CheckpointError(f"{file}: {name}: a second {role} of one module")
            parts[role] = tensor
        elif alpha:
            alphas[alpha["module"]] = tensor
        elif variant:
            modules.setdefault(variant["module"], {})[variant["part"]] = tensor
        else:
            yield Other(name, "belongs to no pair of factors")
    for module in modules.keys() & alphas.keys():
        modules[module]["alpha"] = alphas[module]
    scales = _scales(file)
    for module, parts in modules.items():
        component = next((c for c in scales if module.startswith(f"{c}.")), "")
        scale = options.scale * (1.0 if "alpha" in parts else scales.get(component, 1.0))
        yield from factors.updates({module: parts}, file, "diffusers", scale)


def _scales(file: Path) -> dict[str, float]:
    """Component → α/r, by the adapter's config that newer versions put into the metadata."""
    text = metadata(file).get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        config: Any = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: lora_adapter_metadata is no JSON object")
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
                raise CheckpointError(f"{file}: {component}: rank_pattern is not read here")
    return scales
