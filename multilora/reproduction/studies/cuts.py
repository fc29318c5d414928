"""Score finished runs with every ΔW cut, to see if the top directions carry the skill.

With ΔW = U diag(s) Vᵀ, the cut "keep" k leaves the top k directions of every module and "remove" k
takes them away. Keep 0 is the base, and remove 0 the run as it was trained.
"""

import statistics
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from analysis import checkpoint
from analysis.formats import Options
from analysis.results import Row
from analysis.update import Update
from multilora import cuts, delta
from multilora.cuts import COUNTS
from multilora.reproduction.trained import Trained
from multilora.tasks.builtin import suite
from multilora.tasks.example import FAMILIES, Example
from multilora.tasks.scoring import score

PER_TASK = 50
SCORES = tuple(f"score_{family}" for family in FAMILIES)
COLUMNS = ("method", "seed", "kind", "k", *SCORES, "score")


def table(runs: Iterable[Trained], base: Path, per_task: int = PER_TASK) -> list[Row]:
    """Return cuts.csv: the curves of runs of one base, on `per_task` test items of each task."""
    model, tokenizer = delta.load_base(str(base))
    examples = suite.load("test", per_task)
    rows = []
    for run in runs:
        of_run = {"method": run.method, "seed": run.seed}
        updates = checkpoint.read(run.path, options=Options(base=base))
        rows += [of_run | row for row in curve(updates, model, tokenizer, examples)]
    return rows


def curve(
    updates: Iterable[Update],
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    counts: Sequence[int] = COUNTS,
) -> list[Row]:
    """Return the scores of a base with cut updates, as rows {kind, k, score_FAMILY, score}.

    updates: of one checkpoint, grouped by `cuts.by_part`.
    model, tokenizer: the base; it has its own weights again afterwards.
    examples: the items to score.
    counts: values of k, as for `cuts.curve`.

    Scores are in [0, 1]. Raises UserError as `cuts.curve` and `cuts.by_part`.
    """
    groups = [
        (group, partial(_by_task, model, tokenizer, items))
        for group, items in cuts.by_part(updates, examples)
    ]
    family_of = {example.task: example.family for example in examples}
    rows = cuts.curve(groups, model, counts)
    return [{"kind": row["kind"], "k": row["k"], **_means(row, family_of)} for row in rows]


def _by_task(model: Any, tokenizer: Any, examples: Sequence[Example]) -> dict[str, float]:
    """Return task → share of right answers."""
    return dict(score(model, tokenizer, examples)["tasks"])


def _means(row: Row, family_of: dict[str, str]) -> dict[str, float]:
    """Return the scores by family and their mean; row: has the score of each task."""
    families = {
        f"score_{family}": statistics.fmean(
            row[task] for task, of_task in family_of.items() if of_task == family
        )
        for family in dict.fromkeys(family_of.values())
    }
    return families | {"score": statistics.fmean(families.values())}
