"""MergedLinear of PEFT 0.2: several updates of a fused layer in one pair of factors.

    base_model.model.<module>.lora_A.weight     (m·r, d_in)        m slices are enabled
    base_model.model.<module>.lora_B.weight     (m·d_out/n, r, 1)  of the n that enable_lora lists

The pair is a grouped convolution: the j-th enabled slice has ΔW = scale · Bⱼ Aⱼ from its own blocks
of rows, and plain B·A has no meaning. Each slice is a part of the module. In a fused
query_key_value, slice0 and slice2 are the query and the value, d_out/n rows each, if the model
orders its rows so.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.formats.tensors import Stored, short


def slices(
    B: Stored, A: Stored, enabled: Any, r: float, where: str
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield part, Bⱼ (d_out/n, r) and Aⱼ (r, d_in) of each enabled slice.

    B: lora_B, (m·d_out/n, r, 1).
    A: lora_A, (m·r, d_in).
    enabled: enable_lora of the config, a list of n booleans, m of them true.
    r: the rank of one slice.
    where: file and module, for messages.

    Raises CheckpointError if the shapes do not fit `enabled` and r.
    """
    if not isinstance(enabled, list) or not all(isinstance(x, bool) for x in enabled):
        raise CheckpointError(
            f"{where}: enable_lora is {short(enabled)}; expected a list of true and false"
        )
    m = max(1, sum(enabled))
    matrices = len(A.shape) == 2 and B.shape[2] == 1 and 0 not in (*A.shape, *B.shape)
    if not matrices or A.shape[0] != m * r or B.shape[1] != r or B.shape[0] % m or not any(enabled):
        raise CheckpointError(
            f"{where}: B is {B.shape}, A is {A.shape}; expected B ({m}·rows, {r:g}, 1) and"
            f" A ({m * r:g}, d_in) for {sum(enabled)} of {len(enabled)} slices enabled"
        )
    blocks_B = np.split(B.load()[:, :, 0], m)
    blocks_A = np.split(A.load(), m)
    positions = [i for i, on in enumerate(enabled) if on]
    for i, block_B, block_A in zip(positions, blocks_B, blocks_A, strict=True):
        yield f"slice{i}", block_B, block_A
