"""State dict of loralib: lora_A and lora_B of each module; the scale is not in it, see --scale.

    <module>.lora_A     (r, d_in), or (m·r, d_in) of a MergedLinear with m slices enabled
    <module>.lora_B     (d_out, r), or (m·rows, r)

ΔW = scale · B @ A. Pass --scale α/r; without it the scale is 1, and a remark says so. The file does
not say which slices of a MergedLinear are enabled: they are the parts block0, block1, … in their
order. A convolution looks like a linear layer in such a file, and is read as the product that
loralib reshapes.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.formats import Options, factors
from analysis.formats.place import Place
from analysis.formats.tensors import Stored
from analysis.update import Entry, LowRankUpdate, Other, Skipped

KEY = re.compile(r"(?P<module>.+)\.lora_(?P<role>[AB])", re.DOTALL)


def recognise(place: Place) -> bool:
    """Return whether the file has factors under loralib's names."""
    return any(KEY.fullmatch(name) for name in place.tensors())


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of the file; a merged layer has one for each block."""
    file = place.path
    if options.scale is None:
        yield Other(str(file.name), "does not give α: its updates have scale 1 (see --scale)")
    modules: factors.Modules = {}
    for name, tensor in place.tensors().items():
        match, variant = KEY.fullmatch(name), factors.VARIANT.fullmatch(name)
        if match:
            modules.setdefault(match["module"], {})[match["role"]] = tensor
        elif variant:
            modules.setdefault(variant["module"], {})[variant["part"]] = tensor
        else:
            yield Other(name, "is not part of a pair of factors")
    for module, parts in modules.items():
        try:
            yield from _updates(module, parts, file, options.multiplier)
        except CheckpointError as error:
            yield Skipped(module, str(error))


def _updates(
    module: str, parts: Mapping[str, Stored], file: Path, scale: float
) -> Iterator[LowRankUpdate]:
    """Yield the update of a module, or one for each block of a merged layer."""
    where = f"{file}: {module}"
    factors.require_pair(parts, where)
    blocks = _blocks(parts["B"].shape, parts["A"].shape)
    if not blocks:
        B, A = factors.pair(parts, where)
        yield LowRankUpdate(module, B, A, scale, method="loralib", source=str(file))
        return
    rows = np.split(parts["B"].load(), blocks), np.split(parts["A"].load(), blocks)
    for i, (B, A) in enumerate(zip(*rows, strict=True)):
        yield LowRankUpdate(module, B, A, scale, f"block{i}", "loralib", str(file), of_rows=True)


def _blocks(B: tuple[int, ...], A: tuple[int, ...]) -> int:
    """Return the number of updates in a merged pair of these shapes; 0 for any other pair."""
    if len(A) != 2 or len(B) != 2 or 0 in (*A, *B) or A[0] == B[1]:
        return 0
    m = A[0] // B[1]
    return m if m * B[1] == A[0] and B[0] % m == 0 else 0
