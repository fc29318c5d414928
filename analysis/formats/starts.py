"""PEFT LoRA whose start changes W0 (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA); needs --initial.

Part of W0 is put into the factors at the start, and the rest is the base of the training: W = (W0 −
s·B0 A0) + s·B0 A0. The training then made ΔW = s·B A − s·B0 A0, which needs the adapter as it was
before its training: one factored update of rank 2r.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.files.tensors import short
from analysis.update import LowRankUpdate, coarsest, float64

# Values of init_lora_weights that leave the base weight as it was, so that B·A is all of ΔW.
PLAIN = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def refuse(config: dict[str, Any], where: str, initial: bool) -> None:
    """Raise CheckpointError if ΔW needs the initial adapter, and for DoRA if it is given.

    config: the adapter's config; where: its file, for messages; initial: True if it is given.
    """
    start = config.get("init_lora_weights", True)
    plain = start.lower() if isinstance(start, str) else start
    if plain not in PLAIN and not initial:
        raise CheckpointError(
            f"{where}: init_lora_weights is {short(start)}, a start that changes the base weights,"
            " so that B·A is not ΔW; pass the adapter as it was before its training, --initial DIR"
        )
    if initial and config.get("use_dora"):
        raise CheckpointError(
            f"{where}: use_dora is set and --initial is given; DoRA is not read with an initial"
            " adapter"
        )


def subtract(update: LowRankUpdate, start: LowRankUpdate | None) -> LowRankUpdate:
    """Return ΔW − ΔW_start as one factored update, each with its own scale.

    update: ΔW of the trained adapter; start: that of the initial one, None if it lacks the module.
    Raises CheckpointError if there is no start or if its shape differs.
    """
    where = f"{update.source}: {update.name}"
    if start is None:
        raise CheckpointError(f"{where}: is not in the initial adapter")
    if start.shape != update.shape:
        raise CheckpointError(
            f"{where}: is {update.shape}, in the initial adapter {start.shape}; expected the same"
        )
    B = np.hstack([update.scale * float64(update.B), -start.scale * float64(start.B)])
    A = np.vstack([float64(update.A), float64(start.A)])
    dtypes = [coarsest(*pair) for pair in zip(update.stored, start.stored, strict=True)]
    return replace(update, B=B, A=A, scale=1.0, dtypes=(dtypes[0], dtypes[1]))
