"""File of kohya's sd-scripts: lora_down, lora_up and alpha of each module.

    lora_unet_<module_with_underscores>.lora_down.weight     (r, d_in), or (r, d_in, *kernel)
    lora_unet_<module_with_underscores>.lora_up.weight       (d_out, r), or (d_out, r, 1, 1)
    lora_unet_<module_with_underscores>.alpha                one number; r if it is missing

ΔW = alpha/r · up @ down. The dots of a module's path became underscores, which cannot be undone.
The numbers in it are taken for components of their own: `unet.down_blocks.0.attentions.1.…`. A
layer that has any other tensor but a bias is skipped, and so is one stored as a whole difference
(.diff of LyCORIS).
"""

import re
from collections.abc import Iterator

from analysis import CheckpointError
from analysis.formats import Options, factors, lycoris
from analysis.formats.place import Place
from analysis.update import Entry, Other, Skipped

KEY = re.compile(
    r"(?P<module>[^.]+)\.(?P<tensor>lora_down\.weight|lora_up\.weight|alpha|lora_mid\.weight"
    r"|dora_scale|diff|(?:hada|lokr|oft)_[^.]+)",
    re.DOTALL,
)
ROLES = {"lora_down.weight": "A", "lora_up.weight": "B"}
BIASES = ("bias", "diff_b")


def recognise(place: Place) -> bool:
    """Return whether the file has names of sd-scripts or LyCORIS; `alpha` alone is not enough."""
    matches = (KEY.fullmatch(name) for name in place.tensors())
    return any(match and match["tensor"] != "alpha" for match in matches)


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of the file; layers of LoKr, DoRA and the like are skipped."""
    file, tensors = place.path, place.tensors()
    modules: factors.Modules = {}
    origins: dict[str, str] = {}
    layers = {match["module"] for name in tensors if (match := KEY.fullmatch(name))}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".")
        if layer not in layers or part.endswith(BIASES):
            yield Other(name, "is not part of a pair of lora_down and lora_up")
            continue
        module = dotted(layer)
        if origins.setdefault(module, layer) != layer:
            raise CheckpointError(f"{file}: {layer} and {origins[module]} are both {module}")
        modules.setdefault(module, {})[ROLES.get(part, part)] = tensor
    for module, parts in modules.items():
        if lycoris.PARTS[0] not in parts:
            yield from factors.updates({module: parts}, file, "kohya", options.multiplier)
            continue
        try:
            yield lycoris.update(module, parts, str(file), options.multiplier)
        except CheckpointError as error:
            yield Skipped(module, str(error))


def dotted(module: str) -> str:
    """Return a module's name with dots around its numbers.

    >>> dotted("lora_unet_down_blocks_0_attn1_to_q")
    'unet.down_blocks.0.attn1_to_q'
    """
    module = re.sub(r"^lora_(unet|te[0-9]*|transformer)_", r"\1.", module)
    return re.sub(r"_([0-9]+)(?:_|$)", r".\1.", module).rstrip(".").replace("..", ".")
