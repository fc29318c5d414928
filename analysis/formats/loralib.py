"""loralib: a state dict of lora_A and lora_B, ΔW = scale · B @ A, the scale being nowhere in it.

    <module>.lora_A     (r, d_in), or (m·r, d_in) of a MergedLinear with m slices enabled
    <module>.lora_B     (d_out, r), or (m·rows, r)

Pass --scale α/r; without, 1 is taken and said. Which slices a MergedLinear has enabled stands
nowhere either: they are parts block0, block1, … in their order. A convolution looks like a linear
layer in such a file, and is read as the product that loralib reshapes.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.formats import Options, factors
from analysis.formats.tensors import Stored
from analysis.update import Entry, LowRankUpdate, Other, Skipped

KEY = re.compile(r"(?P<module>.+)\.lora_(?P<role>[AB])", re.DOTALL)


def recognises(names: Collection[str]) -> bool:
    """Whether a file with tensors of these names is one of loralib."""
    return any(KEY.fullmatch(name) for name in names)


def read(file: Path, tensors: Mapping[str, Stored], options: Options) -> Iterator[Entry]:
    """The updates of the file, those of a merged layer one by one."""
    if options.scale == 1.0:
        yield Other(str(file.name), "says nothing of α: its updates are taken times 1 (--scale)")
    modules: factors.Modules = {}
    for name, tensor in tensors.items():
        match, variant = KEY.fullmatch(name), factors.VARIANT.fullmatch(name)
        if match:
            modules.setdefault(match["module"], {})[match["role"]] = tensor
        elif variant:
            modules.setdefault(variant["module"], {})[variant["part"]] = tensor
        else:
            yield Other(name, "belongs to no pair of factors")
    for module, parts in modules.items():
        try:
            yield from _updates(module, parts, file, options.scale)
        except CheckpointError as error:
            yield Skipped(module, str(error))


def _updates(
    module: str, parts: dict[str, Stored], file: Path, scale: float
) -> Iterator[LowRankUpdate]:
    factors.refuse_more(parts, f"{file}: {module}")
    stored_B, stored_A = parts.get("B"), parts.get("A")
    merged = stored_A and stored_B and _blocks(stored_B.shape, stored_A.shape)
    if not merged or not stored_A or not stored_B:
        B, A = factors.pair(stored_B, stored_A, f"{file}: {module}")
        yield LowRankUpdate(module, B, A, scale, method="loralib", source=str(file))
        return
    blocks = zip(np.split(stored_B.load(), merged), np.split(stored_A.load(), merged), strict=True)
    for i, (B, A) in enumerate(blocks):
        yield LowRankUpdate(module, B, A, scale, f"block{i}", "loralib", str(file), of_rows=True)


def _blocks(B: tuple[int, ...], A: tuple[int, ...]) -> int:
    """How many updates a merged pair holds; 0 where it is a plain one, or none."""
    if len(A) != 2 or len(B) != 2 or 0 in (*A, *B) or A[0] == B[1]:
        return 0
    m = A[0] // B[1]
    return m if m * B[1] == A[0] and B[0] % m == 0 else 0
