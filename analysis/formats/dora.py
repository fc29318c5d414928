"""PEFT DoRA adapter (Liu et al. 2024), LoRA with rescaled rows; needs --base or --direction-only.

    base_model.model.<module>.lora_magnitude_vector[.weight]     m, (d_out,)

next to LoRA's A and B. ΔW = diag(m / ‖W0 + scale·B A‖) (W0 + scale·B A) − W0, with the norm of each
row of the matrix (d_out, d_in), has full rank. With --direction-only, scale·B A is read alone: the
update before the rows are rescaled.
"""

import math
from collections.abc import Sequence

import numpy as np

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.tensors import Stored
from analysis.formats import Options, base
from analysis.update import DenseUpdate, Update, float64

MAGNITUDE = "lora_magnitude_vector"


def weights(options: Options, modules: Sequence[str]) -> dict[str, Stored]:
    """Return module → its weight in the base of `options`; modules without one are left out."""
    assert options.base is not None
    _, stored = base.open_model(Place(base.directory(options.base)))
    aligned = base.align([f"{module}.weight" for module in modules], stored)
    return {our.removesuffix(".weight"): stored[their] for our, their in aligned.items()}


def update(
    direction: Update,
    magnitude: Stored,
    W0: Stored | None,
    transposed: bool | None,
    *,
    of_inputs: bool = False,
    eps: float = 0.0,
) -> DenseUpdate:
    """Return the update of a layer.

    direction: scale·B A of the layer, or what another method has in its place.
    magnitude: m, d_out numbers; d_in of them if `of_inputs`.
    W0: the weight of the layer in the base; None if it is missing.
    transposed: True if the base stores W0ᵀ; None if unknown, so that the shape has to tell.
    of_inputs: True if m rescales the columns instead of the rows; the entries of a kernel that
        belong to one input are rescaled together.
    eps: what is added to each norm before m is divided by it.

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
    d_out, d_in = direction.shape
    kernel = math.prod(W0.shape[2:]) if of_inputs else 1
    size = d_in // max(kernel, 1) if of_inputs else d_out
    if int(np.prod(magnitude.shape)) != size:
        raise CheckpointError(f"{where}: {MAGNITUDE} is {magnitude.shape}; expected ({size},)")

    if transposed is None and len(W0.shape) == 2 and d_out == d_in:
        raise CheckpointError(f"{where}: cannot tell Conv1D from Linear: W0 is square")
    turned = bool(transposed) and len(W0.shape) == 2  # a kernel is never stored transposed

    def load() -> np.ndarray:
        try:
            W = base.as_matrix(float64(W0.load()), direction.shape, turned)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None
        m = float64(magnitude.load()).reshape(-1)
        with np.errstate(all="ignore"):  # a row of zeros has no direction: NaN, reported later
            V = (W + direction.dense()).reshape(d_out, -1, kernel)
            if of_inputs:
                V *= (m / (np.linalg.norm(V, axis=(0, 2)) + eps))[:, None]
            else:
                V *= (m / (np.linalg.norm(V, axis=(1, 2)) + eps))[:, None, None]
            return V.reshape(d_out, d_in) - W

    return DenseUpdate(
        direction.name,
        direction.shape,
        load,
        part=direction.part,
        method="dora",
        source=direction.source,
    )
