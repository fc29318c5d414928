"""A full fine-tuning → what would be left of its spectrum had it been smaller and stored rounded.

Real fine-tuning moves weights by less than a hundredth of their size and is published in bfloat16,
so that ΔW is a difference of rounded numbers; here the true ΔW is known.
"""

import statistics
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

from analysis import UserError, checkpoint
from analysis.base import weights as base_weights
from analysis.numerics import decompose, metrics, null
from analysis.numerics.floor import noise_floor
from analysis.results import Row
from analysis.update import DenseUpdate, float64
from multilora import record

RATIOS = (0.3, 0.1, 0.03, 0.01, 0.003)
MEASURES = ("effective_rank", "gini", "top_share_1")
COLUMNS = (
    *("method", "seed", "ratio", "own_ratio", "modules"),
    *(name for measure in MEASURES for name in (measure, f"{measure}_true")),
    *("effective_rank_noise", "above_floor_share"),
)


def table(runs: Iterable[Path], base: str | Path, ratios: Iterable[float] = RATIOS) -> list[Row]:
    """A row a run and ratio: means over the modules of full fine-tunings of one base, by COLUMNS.

    ratio: the ‖ΔW‖_F/‖W0‖_F that every module's ΔW is scaled to before W0 + ΔW is rounded to
    bfloat16, which W0 is too; own_ratio: what it was. _true: of ΔW as it is, which no scale
    changes. effective_rank_noise: the mean for a matrix of noise; above_floor_share: how many of
    the min(d_out, d_in) singular values stand above the noise floor. Raises ValueError for a run
    that is no full fine-tuning, CheckpointError where the base is another's.
    """
    ratios = tuple(ratios)
    rows = []
    for run in runs:
        facts = record.read_json(run / "run.json")
        updates = list(checkpoint.read(run))
        of_base = base_weights.open_base(base, [update.name for update in updates])
        by_ratio: dict[float, list[Row]] = {ratio: [] for ratio in ratios}
        for update in updates:
            if not isinstance(update, DenseUpdate):
                raise UserError(f"{run}: {update.name} is low-rank; expected full fine-tuning")
            true, W0 = update.dense(), of_base.weight(update)
            if not true.any():
                continue
            before = _numbers(decompose.singular_values(update, "svd"))
            own = float(np.linalg.norm(true) / np.linalg.norm(W0))
            for ratio in ratios:
                by_ratio[ratio].append(
                    {"own_ratio": own}
                    | {f"{name}_true": value for name, value in before.items()}
                    | rounded(true, W0, ratio)
                )
        for ratio, of_modules in by_ratio.items():
            if not of_modules:
                raise UserError(f"{run}: every ΔW is zero: nothing was trained")
            means = {n: statistics.fmean(row[n] for row in of_modules) for n in of_modules[0]}
            row = {"method": facts["method"], "seed": facts["seed"], "ratio": ratio} | means
            row["modules"] = len(of_modules)
            rows.append({column: row[column] for column in COLUMNS})
    return rows


def rounded(dW: np.ndarray, W0: np.ndarray, ratio: float) -> Row:
    """What the spectrum of ΔW is like after W0 and W0 + ΔW were stored in bfloat16.

    dW (d_out, d_in), not zero, is scaled to ‖ΔW‖_F = ratio · ‖W0‖_F first.
    """
    start = W0.astype(ml_dtypes.bfloat16)
    size = ratio * np.linalg.norm(float64(start)) / np.linalg.norm(dW)
    tuned = (float64(start) + size * dW).astype(ml_dtypes.bfloat16)
    after = float64(tuned) - float64(start)
    s = decompose.singular_values(DenseUpdate("", after.shape, lambda: after), "svd")
    return _numbers(s) | {
        "effective_rank_noise": null.null_effective_rank(*sorted(dW.shape), s.size),
        "above_floor_share": metrics.rank(s, noise_floor(tuned)) / s.size,
    }


def _numbers(s: np.ndarray) -> Row:
    return {
        "effective_rank": metrics.effective_rank(s),
        "gini": metrics.gini(s),
        "top_share_1": metrics.top_share(s, 1),
    }
