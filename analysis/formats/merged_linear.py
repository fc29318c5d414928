"""MergedLinear of PEFT 0.2: several updates of a fused layer in one pair of factors.

    base_model.model.<module>.lora_A.weight     (m·r, d_in)          m slices are enabled
    base_model.model.<module>.lora_B.weight     (m·d_out/n, r, 1)    of the n that enable_lora lists

The pair is a grouped convolution, and plain B·A has no meaning. PEFT 0.2 has two groups whatever m
is, so that B is (m·d_out/n, m·r/2, 1); its forks have m. The two are alike for query and value. A
slice is d_out/n rows of the layer, by PEFT's own rule also where queries are grouped and its rows
are not those of a query or a value. Each slice is a part of the module. In a fused query_key_value,
slice0 and slice2 are the query and the value, if the model orders its rows so.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.files.tensors import Stored, short

GROUPS = 2  # of every convolution in PEFT 0.2


def slices(
    B: Stored, A: Stored, enabled: Any, r: float, where: str
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield part, Bⱼ and Aⱼ of each enabled slice, (d_out/n, d_in) each.

    B: lora_B, (m·d_out/n, m·r/groups, 1).
    A: lora_A, (m·r, d_in).
    enabled: enable_lora of the config, a list of n booleans, m of them true.
    r: the rank of one slice.
    where: file and module, for messages.

    Aⱼ has the rows of the groups that the slice meets. Raises CheckpointError if the shapes do not
    fit `enabled` and r.
    """
    if not isinstance(enabled, list) or not all(isinstance(x, bool) for x in enabled):
        raise CheckpointError(
            f"{where}: enable_lora is {short(enabled)}; expected a list of true and false"
        )
    m = max(1, sum(enabled))
    matrices = len(A.shape) == 2 and B.shape[2] == 1 and 0 not in (*A.shape, *B.shape)
    groups = A.shape[0] // B.shape[1] if matrices else 0
    fits = matrices and A.shape[0] == m * r == groups * B.shape[1] and groups in (m, GROUPS)
    if not fits or B.shape[0] % math.lcm(m, groups) or not any(enabled):
        raise CheckpointError(
            f"{where}: B is {B.shape}, A is {A.shape}; expected B ({m}·rows, {r:g}, 1) and"
            f" A ({m * r:g}, d_in) for {sum(enabled)} of {len(enabled)} slices enabled"
        )
    whole, columns = B.load()[:, :, 0], B.shape[1]
    rows, of_group = B.shape[0] // m, B.shape[0] // groups
    stacked = np.split(A.load(), groups)
    positions = [i for i, on in enumerate(enabled) if on]
    for j, i in enumerate(positions):
        met = range(j * rows // of_group, -(-(j + 1) * rows // of_group))
        of_slice = np.zeros((rows, len(met) * columns), whole.dtype)
        for k, group in enumerate(met):
            first = max(j * rows, group * of_group)
            last = min((j + 1) * rows, (group + 1) * of_group)
            block = whole[first:last]
            of_slice[first - j * rows : last - j * rows, k * columns : (k + 1) * columns] = block
        yield f"slice{i}", of_slice, np.vstack([stacked[group] for group in met])
