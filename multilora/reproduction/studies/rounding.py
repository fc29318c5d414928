"""Simulate a smaller full fine-tuning stored in bfloat16 and measure its spectrum.

Real fine-tuning moves weights by less than a hundredth of their size and is published in bfloat16,
so that ΔW is a difference of rounded numbers. Here the true ΔW is known.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from analysis import UserError, checkpoint
from analysis.base import weights as base_weights
from analysis.numerics import decompose, metrics, null
from analysis.numerics.denoise import denoised
from analysis.numerics.floor import noise_floor
from analysis.numerics.statistics import mean
from analysis.results import Row
from analysis.update import DenseUpdate, float64
from multilora.reproduction.trained import Trained

RATIOS = (0.3, 0.1, 0.03, 0.01, 0.003)
COLUMNS = (
    "method",
    "seed",
    "ratio",
    "own_ratio",
    "modules",
    "effective_rank",
    "effective_rank_true",
    "gini",
    "gini_true",
    "top_share_1",
    "top_share_1_true",
    "effective_rank_noise",
    "above_floor_share",
    "effective_rank_denoised",
    "gini_denoised",
    "top_share_1_denoised",
)


def table(runs: Iterable[Trained], base: Path, ratios: Sequence[float] = RATIOS) -> list[Row]:
    """Return rounding_floor.csv: one row per full fine-tuning and ratio, means over modules.

    ratio: the ‖ΔW‖_F/‖W0‖_F that the ΔW of every module is scaled to before W0 and W0 + ΔW are
    rounded to bfloat16; own_ratio: the ratio before. NAME_true: the measure of ΔW itself, which
    scaling does not change. effective_rank_noise: its mean for a matrix of noise;
    above_floor_share: the share of the min(d_out, d_in) singular values above the noise floor.
    NAME_denoised: the measure after the noise was estimated and taken out (`denoise.denoised`); a
    mean over the modules in which that is defined, None if there are none. Modules with ΔW = 0 are
    left out.

    Raises UserError for a run that is not a full fine-tuning or whose ΔW are all zero, and
    CheckpointError if `base` is not the base of the runs.
    """
    rows = []
    for run in runs:
        for ratio, modules in _by_ratio(run, base, ratios).items():
            if not modules:
                raise UserError(f"{run.path}: every ΔW is zero: nothing was trained")
            row = {"method": run.method, "seed": run.seed, "ratio": ratio, "modules": len(modules)}
            row |= {name: mean(m[name] for m in modules) for name in modules[0]}
            rows.append({column: row[column] for column in COLUMNS})
    return rows


def _by_ratio(run: Trained, base: Path, ratios: Sequence[float]) -> dict[float, list[Row]]:
    """Return the measures of every module that moved, by ratio."""
    by_ratio: dict[float, list[Row]] = {ratio: [] for ratio in ratios}
    updates = list(checkpoint.read(run.path))
    weights = base_weights.open_base(base, [update.name for update in updates])
    for update in updates:
        if not isinstance(update, DenseUpdate):
            raise UserError(f"{run.path}: {update.name} is low-rank; expected full fine-tuning")
        dW, W0 = update.dense(), weights.weight(update)
        if not dW.any():
            continue
        true = _measures(decompose.singular_values(update, "svd"))
        unscaled = {f"{name}_true": value for name, value in true.items()}
        unscaled["own_ratio"] = float(np.linalg.norm(dW) / np.linalg.norm(W0))
        for ratio in ratios:
            by_ratio[ratio].append(unscaled | rounded(dW, W0, ratio))
    return by_ratio


def rounded(dW: np.ndarray, W0: np.ndarray, ratio: float) -> Row:
    """Return the measures of ΔW computed from W0 and W0 + ΔW stored in bfloat16.

    dW (d_out, d_in), not zero, is first scaled to ‖ΔW‖_F = ratio · ‖W0‖_F.
    """
    start = W0.astype(ml_dtypes.bfloat16)
    size = ratio * np.linalg.norm(float64(start)) / np.linalg.norm(dW)
    tuned = (float64(start) + size * dW).astype(ml_dtypes.bfloat16)
    after = float64(tuned) - float64(start)
    s = decompose.singular_values(DenseUpdate("", after.shape, lambda: after), "svd")
    d_out, d_in = dW.shape
    floor = noise_floor(tuned)
    by_chance = null.chance(d_out, d_in, s.size, s.size, dense=True)
    without_noise = _measures(denoised(s, d_out, d_in, floor))
    noise = {
        "effective_rank_noise": by_chance["effective_rank_k"].mean,
        "above_floor_share": metrics.rank(s, floor) / s.size,
    }
    return (
        _measures(s) | noise | {f"{name}_denoised": value for name, value in without_noise.items()}
    )


def _measures(s: np.ndarray | None) -> Row:
    """Return the measures of a spectrum, all None for None."""
    if s is None:
        return dict.fromkeys(("effective_rank", "gini", "top_share_1"))
    return {
        "effective_rank": metrics.effective_rank(s),
        "gini": metrics.gini(s),
        "top_share_1": metrics.top_share(s, 1),
    }
