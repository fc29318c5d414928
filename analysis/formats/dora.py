"""PEFT DoRA adapter (Liu et al. 2024), LoRA with rescaled rows; needs --base or --direction-only.

    base_model.model.<module>.lora_magnitude_vector[.weight]     m, (d_out,)

next to LoRA's A and B. ΔW = diag(m / ‖W0 + scale·B A‖) (W0 + scale·B A) − W0, with the norm of each
row of the matrix (d_out, d_in), has full rank. With --direction-only, scale·B A is read alone: the
update before the rows are rescaled.
"""

import numpy as np

from analysis import CheckpointError
from analysis.formats import base
from analysis.formats.tensors import Stored
from analysis.update import DenseUpdate, LowRankUpdate, float64

MAGNITUDE = "lora_magnitude_vector"


def update(
    direction: LowRankUpdate, magnitude: Stored, W0: Stored | None, transposed: bool | None
) -> DenseUpdate:
    """Return the update of a layer.

    direction: scale·B A of the layer.
    magnitude: m, d_out numbers.
    W0: the weight of the layer in the base; None if it is missing.
    transposed: True if the base stores W0ᵀ; None if unknown, so that the shape has to tell.

    Raises CheckpointError if W0 is missing, quantised, or square with unknown `transposed`.
    """
    where = f"{direction.source}: {direction.name}"
    if W0 is None:
        raise CheckpointError(f"{where}: its weight is not in the base")
    if W0.scaled:
        raise CheckpointError(
            f"{where}: its weight in the base is scaled by another tensor (quantised); expected"
            " floating point"
        )
    if int(np.prod(magnitude.shape)) != direction.shape[0]:
        raise CheckpointError(
            f"{where}: {MAGNITUDE} is {magnitude.shape}; expected ({direction.shape[0]},)"
        )

    d_out, d_in = direction.shape
    if transposed is None and len(W0.shape) == 2 and d_out == d_in:
        raise CheckpointError(f"{where}: cannot tell Conv1D from Linear: W0 is square")
    turned = bool(transposed) and len(W0.shape) == 2  # a kernel is never stored transposed

    def load() -> np.ndarray:
        try:
            W = base.as_matrix(float64(W0.load()), direction.shape, turned)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None
        m = float64(magnitude.load()).reshape(-1, 1)
        with np.errstate(all="ignore"):  # a row of zeros has no direction: NaN, reported later
            V = W + direction.dense()
            V *= m / np.linalg.norm(V, axis=1, keepdims=True)
        return V - W

    return DenseUpdate(
        direction.name,
        direction.shape,
        load,
        part=direction.part,
        method="dora",
        source=direction.source,
    )
