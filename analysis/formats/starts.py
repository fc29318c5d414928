"""Starts that change the base weights: PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA.

They put part of W0 into the factors and leave the rest as the base, so that at the start
W = (W0 − s·B0 A0) + s·B0 A0. What training did is ΔW = s·B A − s·B0 A0, which takes the adapter
as it was before its training: one factored update of rank 2r.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.formats.tensors import short
from analysis.update import LowRankUpdate, float64

# Those that leave the base weight as it was, so that B·A is all of ΔW.
PLAIN = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def refuse(config: dict[str, Any], where: str, initial: bool) -> None:
    """CheckpointError where ΔW needs the initial adapter and has none; DoRA, where it has one."""
    start = config.get("init_lora_weights", True)
    plain = start.lower() if isinstance(start, str) else start
    if plain not in PLAIN and not initial:
        raise CheckpointError(
            f"{where}: init_lora_weights is {short(start)}, a start that changes the base weights,"
            " so that B·A is not ΔW; pass the adapter as it was before its training, --initial DIR"
        )
    if initial and config.get("use_dora"):
        raise CheckpointError(f"{where}: DoRA with an initial adapter is not read; expected one")


def subtract(update: LowRankUpdate, start: LowRankUpdate | None) -> LowRankUpdate:
    """ΔW − ΔW_start as one factored update. CheckpointError where the two do not fit."""
    where = f"{update.source}: {update.name}"
    if start is None:
        raise CheckpointError(f"{where}: is not in the initial adapter")
    if start.shape != update.shape:
        raise CheckpointError(
            f"{where}: is {update.shape}, in the initial adapter {start.shape}; expected the same"
        )
    B = np.hstack([update.scale * float64(update.B), -start.scale * float64(start.B)])
    A = np.vstack([float64(update.A), float64(start.A)])
    return replace(update, B=B, A=A, scale=1.0)
