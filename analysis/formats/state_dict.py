"""State dict of a model with PEFT's LoRA layers, without its config (Lightning, torch.save).

    <any prefix>.base_model.model.<module>.lora_A[.<adapter>].weight     (r, d_in)
    <any prefix>.base_model.model.<module>.lora_B[.<adapter>].weight     (d_out, r)
    <module>.lora_A[.<adapter>].weight, …                                of layers put into a model

ΔW = scale · B @ A. The scale α/r comes from adapter_config.json in the same directory, from α and r
among the settings in the file (`hyper_parameters`, metadata), or from an `alpha` of each module;
else --scale is needed. The base's own weights may be in the file too.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.tensors import Stored
from analysis.formats import Options, dora, factors, orientation, peft, stated
from analysis.update import Entry, LowRankUpdate

PAIR = re.compile(
    r"(?:.+\.)?lora_(?:[AB](?:\.[^.]+)?\.weight|embedding_[AB](?:\.[^.]+)?)", re.DOTALL
)
OF_PEFT = re.compile(r"(?:.+\.)?(?:base_model\.model|base_layer)\..+", re.DOTALL)
ALPHA = re.compile(r"(?P<module>.+)\.alpha", re.DOTALL)
# How the parts of other methods begin, below PEFT's root.
FOREIGN = (
    "lora_", "hada_", "lokr_", "oft_", "boft_", "vera_", "ia3_", "hra_", "vblora_", "randlora_",
    "multilora_", "rlora_", "mtllora_",
)  # fmt: skip
# How names begin in a file of diffusers, which assumes α = r.
COMPONENT = re.compile(
    r"(?:unet|text_encoder(?:_\d)?|prior|controlnet|diffusion_model|down_blocks|mid_block|up_blocks"
    r"|(?:single_)?transformer_blocks"
    r"|transformer(?:_\d)?(?=.*(?:transformer_blocks|\.to_(?:q|k|v|out)|\.attn\d|\.ff\.net)))\."
)
ROLES = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
}


def recognise(place: Place) -> bool:
    """Return whether a file has tensors under PEFT's names, and is not one of diffusers."""
    names = place.tensors()
    pairs = [name for name in names if PAIR.fullmatch(name)]
    if not pairs:
        below = (name.partition(peft.PREFIX)[2] for name in names)
        return any(part.startswith(FOREIGN) for rest in below for part in rest.split("."))
    if "lora_adapter_metadata" in place.metadata():
        return False
    return any(OF_PEFT.fullmatch(name) for name in names) or not any(
        COMPONENT.match(name) for name in pairs
    )


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of the file.

    Raises CheckpointError if nothing gives the scale, or if the pairs have no common orientation.
    """
    file = place.path
    directory = Place(file.parent)
    if (file.parent / peft.CONFIG).is_file() and "peft_type" in directory.json(peft.CONFIG):
        yield from peft.read(directory, options, file)
        return
    if not any(PAIR.fullmatch(name) for name in place.tensors()):
        raise CheckpointError(
            f"{file}: PEFT's weights without their {peft.CONFIG}, of a type whose ΔW they alone do"
            f" not give; expected both in one directory, the weights as {peft.STEM}.safetensors"
        )
    modules, others = _modules(place, options)
    yield from (factors.unpaired(name, file, "is not part of a pair of factors") for name in others)
    oriented = orientation.oriented(modules, str(file), options)
    yield from orientation.remark(modules, oriented, file.name, options)
    unknown = (
        f"{file}: PEFT's weights without their {peft.CONFIG}, and no α in the file: the scale is"
        f" not known; put {peft.CONFIG} into the same directory, or pass α/r, --scale X"
    )
    scale, remarks = stated.decide(place, oriented.values(), options, required=unknown)
    yield from remarks
    for (module, part), parts in oriented.items():
        for entry in factors.updates({module: parts}, file, "lora", scale, options.blocks):
            if part and isinstance(entry, LowRankUpdate):
                entry = replace(entry, part=".".join(filter(None, (part, entry.part))))
            yield entry


def _modules(
    place: Place, options: Options
) -> tuple[dict[tuple[str, str], dict[str, Stored]], list[str]]:
    """Return (module, part) → "A", "B", "alpha" and any other tensor; and the names of the rest."""
    tensors = place.tensors()
    others, by_key = peft.by_module(tensors, place.path)
    modules: dict[tuple[str, str], dict[str, Stored]] = {}
    for key, names in by_key.items():
        parts = modules.setdefault(key, {})
        for tensor, name in names.items():
            role = ROLES.get(tensor, tensor)
            if tensor == "lora_B.bias" or (options.direction_only and dora.MAGNITUDE in tensor):
                others.append(name)
            else:
                parts[tensor if role in parts else role] = tensors[name]
    alphas = {
        match["module"]: name
        for name, short in peft.below_root(others).items()
        if (match := ALPHA.fullmatch(short))
    }
    for (module, _), parts in modules.items():
        if module in alphas:
            parts["alpha"] = tensors[alphas[module]]
    used = {name for module, name in alphas.items() if any(module == key[0] for key in modules)}
    return modules, [name for name in others if name not in used]
