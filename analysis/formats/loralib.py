"""State dict of loralib: lora_A and lora_B of each module; the scale is not in it, see --scale.

    <module>.lora_A     (r, d_in), or (m·r, d_in) of a MergedLinear with m blocks enabled
    <module>.lora_B     (d_out, r), or (rows of all these blocks, r)

ΔW = scale · B @ A. Pass --scale α/r; without it the scale is 1, and a remark says so, unless α and
r are among the settings in the file (`stated`). The rows of the blocks of a MergedLinear are not in
the file: LitGPT's are unequal, loralib's equal, under the same names and shapes. --blocks gives
them; they are the parts block0, block1, … A convolution looks like a linear layer in such a file,
and is read as the product that loralib reshapes. Layers of one's own that compute x @ A @ B have
the same names too: see `orientation`.
"""

import re
from collections.abc import Iterator

from analysis.files.place import Place
from analysis.formats import Options, factors, orientation, stated
from analysis.update import Entry

KEY = re.compile(r"(?P<module>.+)\.lora_(?P<role>[AB])", re.DOTALL)
ALPHA = re.compile(r"(?P<module>.+)\.(?:lora_)?alpha", re.DOTALL)


def recognise(place: Place) -> bool:
    """Return whether the file has factors under loralib's names."""
    return any(KEY.fullmatch(name) for name in place.tensors())


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of the file; a merged layer has one for each block.

    Raises CheckpointError if its pairs have no common orientation.
    """
    file, tensors = place.path, place.tensors()
    modules: factors.Modules = {}
    for name, tensor in tensors.items():
        if match := KEY.fullmatch(name):
            modules.setdefault(match["module"], {})[match["role"]] = tensor
    for name, tensor in tensors.items():
        alpha, variant = ALPHA.fullmatch(name), factors.VARIANT.fullmatch(name)
        if KEY.fullmatch(name):
            continue
        if alpha and alpha["module"] in modules:
            modules[alpha["module"]]["alpha"] = tensor
        elif variant:
            modules.setdefault(variant["module"], {})[variant["part"]] = tensor
        else:
            yield factors.unpaired(name, file, "is not part of a pair of factors")
    oriented = orientation.oriented(modules, str(file), options)
    yield from orientation.remark(modules, oriented, file.name, options)
    scale, remarks = stated.decide(place, oriented.values(), options)
    yield from remarks
    yield from factors.updates(oriented, file, "loralib", scale, options.blocks)
