"""PEFT AdaLoRA adapter (Zhang et al. 2023), whose rank differs between modules.

    base_model.model.<module>.lora_A     (r, d_in)
    base_model.model.<module>.lora_B     (d_out, r)
    base_model.model.<module>.lora_E     (r, 1)

ΔW = scale · B diag(E) A, scale = α/(initial rank + 1e-5) for every module. Pruned directions are
not in the file; a module that lost all of them has ΔW = 0.
"""

from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.files.tensors import FLOATS, Stored, count, number
from analysis.update import coarsest, float64

PARTS = ("lora_A", "lora_B", "lora_E")


def scale(config: dict[str, Any], where: str) -> float:
    """Return the number that B diag(E) A is multiplied by, the same for all modules, as in PEFT."""
    r, alpha = count(config, "init_r", where), number(config, "lora_alpha", where)
    return (alpha if alpha > 0 else r) / (r + 1e-5)


def factors(parts: dict[str, Stored], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return B (d_out, r) and diag(E) A (r, d_in); one row and column of zeros if r = 0.

    Raises CheckpointError if a tensor is missing, unknown, or of a shape that does not fit.
    """
    missing = [part for part in PARTS if part not in parts]
    extra = [part for part in parts if part not in PARTS]
    if missing or extra:
        raise CheckpointError(
            f"{where}: has {', '.join(parts)}; expected {', '.join(PARTS)} and no more"
        )
    A, B, E = (parts[part] for part in PARTS)
    shapes_fit = len(A.shape) == len(B.shape) == 2 and A.shape[0] == B.shape[1]
    if not shapes_fit or E.shape != (A.shape[0], 1) or 0 in (A.shape[1], B.shape[0]):
        raise CheckpointError(
            f"{where}: A is {A.shape}, B is {B.shape}, E is {E.shape};"
            " expected A (r, d_in), B (d_out, r), E (r, 1)"
        )
    if A.shape[0] == 0:
        return np.zeros((B.shape[0], 1)), np.zeros((1, A.shape[1]))
    with np.errstate(invalid="ignore"):  # Inf · 0, which is reported later
        return float64(B.load()), float64(E.load()) * float64(A.load())


def dtypes(parts: dict[str, Stored]) -> tuple[np.dtype, np.dtype]:
    """Return the dtypes that B and diag(E) A are stored in, the coarser one of E and A."""
    A, B, E = (FLOATS[parts[part].dtype] for part in PARTS)
    return B, coarsest(A, E)
