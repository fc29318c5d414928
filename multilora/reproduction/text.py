"""Write the tables that a reproduction prints: concentration, scores and differences."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from analysis import results
from analysis.results import Row
from analysis.tables import text
from multilora.reproduction.tables import LOSS, SCORE
from multilora.tasks.example import FAMILIES

LEGEND = """\
top-k: share of the energy of ΔW in its k largest singular values. eff. rank, Gini: of the first {k}
values only, – if a method has fewer; held: the share of the energy in these values.
±: half the range over seeds."""


def method_tables(rows: Sequence[Row], base_scores: Mapping[str, Any]) -> str:
    """Return the tables of concentration, scores and losses, one line per method.

    rows: of methods.csv; base_scores: of the base, as `scoring.score` returns them. Means over
    seeds. There is no table of losses if the runs of an earlier version have none.
    """
    lines = ["How concentrated ΔW is, means over modules:", *text.aligned(_concentration(rows))]
    lines += ["", LEGEND.format(k=rows[0]["k"]), "", "Scores on held-out items, %:"]
    chance = ["chance", *_by_family(base_scores["chance"], ".1f", 100), ""]
    lines += text.aligned([*_means(rows, SCORE, base_scores, ".1f", 100), chance])
    if LOSS in rows[0]:
        lines += ["", "Loss per token of held-out answers, nats:"]
        lines += text.aligned(_means(rows, LOSS, base_scores.get("nll"), ".3f", 1))
    return "\n".join(lines)


def _concentration(rows: Sequence[Row]) -> list[list[str]]:
    formats = {
        "top_share_1": ".3f",
        "top_share_4": ".3f",
        "top_share_16": ".3f",
        "effective_rank_k": ".1f",
        "gini_k": ".3f",
        "held_k": ".3f",
    }
    cells = [["", "seeds", "parameters", "top-1", "top-4", "top-16", "eff. rank", "Gini", "held"]]
    for (method,), of_method in results.grouped(rows, "method").items():
        numbers = [_over_seeds(of_method, column, form) for column, form in formats.items()]
        parameters = f"{of_method[0]['parameters']:,}"
        cells.append([method, str(len(of_method)), parameters, *numbers])
    return cells


def _means(
    rows: Sequence[Row], by: str, base: Mapping[str, Any] | None, form: str, factor: float
) -> list[list[str]]:
    """Return scores or losses by family and their mean; base: those of the base, if known."""
    columns = [*(f"{by}_{family}" for family in FAMILIES), by]
    cells = [["", *FAMILIES, "mean"]]
    for (method,), of_method in results.grouped(rows, "method").items():
        cells.append([method, *(_over_seeds(of_method, c, form, factor=factor) for c in columns)])
    if base:
        mean = f"{factor * base['mean']:{form}}"
        cells.append(["before training", *_by_family(base["families"], form, factor), mean])
    return cells


def _by_family(values: Mapping[str, float], form: str, factor: float) -> list[str]:
    """Return the value of each family; "–" for one without."""
    return [f"{factor * values[family]:{form}}" if family in values else "–" for family in FAMILIES]


def _over_seeds(rows: Sequence[Row], column: str, form: str, factor: float = 1) -> str:
    """Return "mean ±half the range" over seeds, times `factor`; "–" if undefined for all."""
    values = [factor * row[column] for row in rows if row[column] is not None]
    if not values:
        return "–"
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):{form}} ±{half:{form}}"


# The measures of differences.csv that are printed.
HEADINGS = {
    "top_share_1": "top-1",
    "top_share_1_above_null": "beyond the null",
    "effective_rank_k": "eff. rank",
    "gini_k": "Gini",
    "score": "score, %",
    "nll": "loss, nats",
}


def difference_table(compared: Sequence[Row]) -> str:
    """Return the table of differences between methods; compared: rows of differences.csv.

    A measure that no run has, as the loss of earlier versions, has no column.
    """
    known = {row["measure"] for row in compared if row["mean"] is not None}
    shown = {measure: words for measure, words in HEADINGS.items() if measure in known}
    shown = shown or HEADINGS
    cells = [["", *shown.values()]]
    for (a, b), of_pair in results.grouped(compared, "method_a", "method_b").items():
        row_of = {row["measure"]: row for row in of_pair}
        cells.append([f"{a} − {b}", *(_difference(row_of[measure]) for measure in shown)])
    seeds = "–".join(map(str, sorted({row["seeds"] for row in compared if row["seeds"]})))
    title = (
        f"Differences paired by seed, mean, 95 % interval (Student, n = {seeds}), seeds above 0:"
    )
    return "\n".join([title, *text.aligned(cells)])


def _difference(row: Row) -> str:
    """Return "mean [low, high] above/seeds" of one row of differences.csv."""
    factor, form = (100, "+.1f") if row["measure"] == "score" else (1, "+.3f")
    form = "+.2f" if row["measure"] == "effective_rank_k" else form
    mean, low, high = (
        "–" if row[name] is None else format(factor * row[name], form)
        for name in ("mean", "low", "high")
    )
    return f"{mean} [{low}, {high}] {row['above']}/{row['seeds']}"
