"""Merge the experts of a bank by every method, and score each merge on all of their tasks.

The question is whether a merge with a flatter spectrum scores better. Besides the published methods
the singular values of the plain sum are raised to a power, below 1 flatter and above it steeper, at
one Frobenius norm per module.
"""

import statistics
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis import UserError, checkpoint
from analysis.formats import Options
from analysis.merging import methods
from analysis.merging.methods import METHODS
from analysis.merging.settings import Settings
from analysis.numerics import decompose, metrics
from analysis.results import Row
from analysis.tables import text
from analysis.update import LowRankUpdate
from multilora import delta
from multilora.reproduction.tables import LOSS, SCORE
from multilora.reproduction.trained import Trained
from multilora.tasks.example import FAMILIES, Example
from multilora.tasks.scoring import score

WEIGHTS = (0.1, 0.2, 0.35, 0.6, 1.0)
POWERS = (0.0, 0.5, 2.0)  # of the singular values of the sum; 1 is the sum itself
RANKS = (None, 8)  # to which a merge is cut; None: not at all
TABLE = "merging.csv"
BASE, APART = "base", "apart"  # rows of the base, and of every expert on its own task
COLUMNS = (
    "seed", "merge", "rank", "weight", "effective_rank", "top_share_1", "frobenius_norm",
    SCORE, *(f"{SCORE}_{family}" for family in FAMILIES),
    LOSS, *(f"{LOSS}_{family}" for family in FAMILIES),
)  # fmt: skip
# Heading, column and format of what is printed.
PRINTED = (
    ("rank", "rank", "d"),
    ("weight", "weight", "g"),
    ("eff. rank", "effective_rank", ".2f"),
    ("top 1", "top_share_1", ".3f"),
    ("score", SCORE, ".3f"),
    *((family, f"{SCORE}_{family}", ".3f") for family in FAMILIES),
    ("nll", LOSS, ".3f"),
)
ALL = (*METHODS, *map("sum^{:g}".format, POWERS))
Merged = dict[str, LowRankUpdate]  # by module


def table(
    run: Trained,
    base: Path,
    per_task: int,
    weights: Sequence[float] = WEIGHTS,
    wanted: Container[str] = ALL,
) -> list[Row]:
    """Return merging.csv: one row per merge, those of the base and of the experts apart first.

    run: a bank of experts. base: its base. per_task: validation and test items of each task.
    weights: the factors of which each merge has the best by validation loss.
    wanted: the names of the merges to score.

    merge: a method of `methods.METHODS`, or "sum^p" with the singular values of the sum to the
    power p. rank: to which every module was cut, None for none. effective_rank, top_share_1: of the
    merge, means over modules; for the experts apart, over experts and modules. frobenius_norm: over
    all modules, after the weight. score: share of right answers in [0, 1]; nll: loss per token of
    the right answers, in nats. Raises UserError for a run that is not a bank of experts.
    """
    experts = _experts(run)
    model, tokenizer = delta.load_base(str(base))
    splits = {split: run.held_out(split, per_task) for split in ("validation", "test")}

    def of(updates: Sequence[LowRankUpdate], split: str, tasks: Sequence[str] = ()) -> Row:
        items = [item for item in splits[split] if not tasks or item.task in tasks]
        with added(model, updates):
            return _scores(model, tokenizer, items, decode=run.decodes and split == "test")

    rows: list[Row] = [{"merge": BASE} | of([], "test"), _apart(experts, of)]
    for (name, rank), merged in merges(experts, wanted):
        by_weight = {weight: of(scaled(merged, weight), "validation")[LOSS] for weight in weights}
        best = min(by_weight, key=lambda weight: by_weight[weight])
        chosen = scaled(merged, best)
        rows.append(
            {"merge": name, "rank": rank, "weight": best} | shape(chosen) | of(chosen, "test")
        )
    return [{column: ({"seed": run.seed} | row).get(column) for column in COLUMNS} for row in rows]


def merges(
    experts: dict[str, Merged], wanted: Container[str]
) -> Iterator[tuple[tuple[str, int | None], list[LowRankUpdate]]]:
    """Yield ((name, rank), updates) for each merge of the experts.

    experts: task → module → update. wanted: the names; the published methods are also cut to RANKS.
    """
    by_module = {
        module: [expert[module] for expert in experts.values() if module in expert]
        for module in dict.fromkeys(module for expert in experts.values() for module in expert)
    }
    for rank in RANKS:
        for method in (method for method in METHODS if method in wanted):
            settings = Settings(rank=rank)
            merged = [methods.merge(method, group, settings).update for group in by_module.values()]
            yield (method, rank), merged
    total = [methods.merge("sum", group, Settings()).update for group in by_module.values()]
    for power in POWERS:
        if f"sum^{power:g}" in wanted:
            yield (f"sum^{power:g}", None), [to_power(update, power) for update in total]


def to_power(update: LowRankUpdate, power: float) -> LowRankUpdate:
    """Return U diag(c·s^power) Vᵀ of ΔW = U diag(s) Vᵀ, with c such that ‖ΔW‖_F stays.

    Singular values that are rounding stay out. ΔW = 0 comes back.
    """
    found = decompose.decomposition(update, "svd")
    s = found.s[: found.rank]
    if not s.size:
        return update
    other = (s / s[0]) ** power
    other *= metrics.frobenius_norm(s) / np.linalg.norm(other)
    B = found.left.vectors(s.size) * other
    return replace(update, B=B, A=found.right.vectors(s.size).T, scale=1.0)


def scaled(updates: Sequence[LowRankUpdate], weight: float) -> list[LowRankUpdate]:
    """Return the updates times a weight."""
    return [replace(update, scale=weight * update.scale) for update in updates]


def shape(updates: Sequence[LowRankUpdate]) -> Row:
    """Return effective_rank and top_share_1, means over modules, and frobenius_norm over all."""
    spectra = [decompose.singular_values(update) for update in updates]
    nonzero = [s for s in spectra if s[0] > 0]
    if not nonzero:
        return {"frobenius_norm": 0.0}
    return {
        "effective_rank": statistics.fmean(metrics.effective_rank(s) for s in nonzero),
        "top_share_1": statistics.fmean(metrics.top_share(s, 1) for s in nonzero),
        "frobenius_norm": float(np.linalg.norm([metrics.frobenius_norm(s) for s in nonzero])),
    }


@contextmanager
def added(model: Any, updates: Sequence[LowRankUpdate]) -> Iterator[None]:
    """Add updates to the linear layers of a model, and restore its weights on exit."""
    before: dict[Any, torch.Tensor] = {}
    try:
        for update in updates:
            weight = model.get_submodule(update.name).weight
            before.setdefault(weight, weight.data)
            W = weight.data.double() + torch.from_numpy(update.dense())
            weight.data = W.to(before[weight].dtype)
        yield
    finally:
        for weight, W0 in before.items():
            weight.data = W0


def _experts(run: Trained) -> dict[str, Merged]:
    """Return task → module → update of a bank; UserError if the run is not one."""
    experts: dict[str, Merged] = {}
    if run.plain_method == "expert":
        for update in checkpoint.read(run.path, options=Options()):
            assert isinstance(update, LowRankUpdate)
            experts.setdefault(update.part, {})[update.name] = replace(update, part="")
    if len(experts) < 2:
        raise UserError(
            f"{run.path}: {run.method}; expected a run of --method expert, on two tasks"
        )
    return experts


Scored = Callable[[Sequence[LowRankUpdate], str, Sequence[str]], Row]


def _apart(experts: dict[str, Merged], of: Scored) -> Row:
    """Return the row of every expert on its own task."""
    updates = [update for expert in experts.values() for update in expert.values()]
    by_task = {}
    for task, expert in experts.items():
        by_task[task] = of(list(expert.values()), "test", [task])
    row: Row = {"merge": APART} | shape(updates)
    for name in (SCORE, LOSS):
        means = {}
        for family in FAMILIES:
            values = [r[f"{name}_{family}"] for r in by_task.values() if f"{name}_{family}" in r]
            if values:
                means[family] = statistics.fmean(values)
        row |= {f"{name}_{family}": mean for family, mean in means.items()}
        row[name] = statistics.fmean(means.values())
    return row


def _scores(model: Any, tokenizer: Any, items: Sequence[Example], decode: bool) -> Row:
    """Return score and nll, and those of each family."""
    found = score(model, tokenizer, items, decode)
    row: Row = {SCORE: found["mean"], LOSS: found["nll"]["mean"]}
    for name, families in ((SCORE, found["families"]), (LOSS, found["nll"]["families"])):
        row |= {f"{name}_{family}": value for family, value in families.items()}
    return row


def as_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table to print, by falling score."""
    cells = [["merge", *(heading for heading, _, _ in PRINTED)]]
    for row in sorted(rows, key=lambda row: -row[SCORE]):
        cells.append([row["merge"], *(text.cell(row[c], form) for _, c, form in PRINTED)])
    return "\n".join(text.aligned(cells))
