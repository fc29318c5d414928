"""Claims 5, 7 and 9: parameter count, settings of the grid, adapters in the wild."""

from collections.abc import Sequence

import numpy as np

from analysis import results
from analysis.numerics import statistics
from analysis.numerics.statistics import Claim, Difference, Outcome, paired
from analysis.results import Row
from multilora.reproduction.claims import runs, subspaces
from multilora.reproduction.claims.evidence import Evidence, Part, Supplement, between
from multilora.reproduction.claims.wording import count_text, listed, number_text, words_of
from multilora.reproduction.tables import SCORE, Tables

# Claim 5: llama_budget.csv. This is arithmetic: a table, no verdict.

SHARE = 0.025


def affordable(measured: Tables) -> Evidence:
    """Table for claim 5: the rank at which MultiLoRA with n = 3 has 2.5 % of the parameters."""
    rows = [row for row in measured.of("llama_budget") if row["n"] == 3]
    if not rows:
        return Evidence(notes=["There is no row with n = 3 in llama_budget.csv."])
    ranks = [f"{row['model']} r = {row['r']} ({100 * row['share']:.2f} %)" for row in rows]
    notes = ["All linear layers except the head, n = 3. This is a count, not a measurement."]
    return Evidence({}, notes, [_shares(rows)], result=f"n = 3: {'; '.join(ranks)}")


def _shares(rows: Sequence[Row]) -> Supplement:
    """Table of the ranks nearest to the share, one row per model."""
    cells = [["model", "n", "r", "parameters", "share", "share outside embeddings and head"]]
    for row in rows:
        shares = [row["share"], row.get("share_outside")]
        cells.append(
            [
                row["model"],
                str(row["n"]),
                str(row["r"]),
                count_text(row.get("parameters")),
                *("–" if share is None else f"{100 * share:.3f} %" for share in shares),
            ]
        )
    return Supplement("The r nearest to 2.5 % of all parameters", cells)


# Claim 7: grid.csv. Settings are counted; the runs of a setting are too few to test it.

# (claim, the part that decides it, its evidence at the usual setting, a, b).
OVER_GRID = (
    ("1a", runs.DOMINANCE[0], runs.dominance, "lora", "full"),
    ("3a", runs.HEAD[0], runs.head, "multilora", "lora"),
    ("3b", runs.TAIL[0], runs.tail, "multilora", "lora"),
    ("4b", subspaces.NEARER["left"][0], subspaces.nearer_left, "multilora", "lora"),
    ("4c", subspaces.NEARER["right"][0], subspaces.nearer_right, "multilora", "lora"),
    ("4d", subspaces.SHAPE[0], subspaces.nearer_in_shape, "multilora", "lora"),
    ("6a", runs.BETTER["lora", SCORE][0], runs.better_than_lora, "multilora", "lora"),
    ("6b", runs.BETTER["full", SCORE][0], runs.better_than_full, "multilora", "full"),
)


def holds(measured: Tables) -> Evidence:
    """Counts for claim 7: the settings in which a claim holds, of those that hold at the usual one.

    A claim holds in a setting if its mean difference lies beyond the bound on the claimed side. A
    setting that a claim's methods do not have, such as n for LoRA, repeats their runs and counts
    once.
    """
    rows = measured.of("grid")
    if not rows:
        return Evidence(notes=["There is no grid.csv."])
    settings = list(dict.fromkeys((row["setting"], row["value"]) for row in rows))
    counts, columns, headings = [], [], [""]
    for number, part, gather, a, b in OVER_GRID:
        measure = part.claim.primary
        by_setting = [_at(rows, setting, value, measure, a, b) for setting, value in settings]
        columns.append(["–" if d is None else number_text(d) for d in by_setting])
        headings.append(f"{number}: {words_of(measure)}, {a} − {b}")
        usual = statistics.verdict(part.claim, gather(measured).differences)
        if usual.outcome is Outcome.SUPPORTED:
            # By the values, so that runs that several settings share count once.
            held = {d.values: _beyond(d, part.claim) for d in by_setting if d is not None}
            if held:
                counts.append(f"{number} holds in {sum(held.values())} of {len(held)}")
    cells = [
        [f"{setting} {value}", *numbers]
        for (setting, value), *numbers in zip(settings, *columns, strict=True)
    ]
    notes = ["Two seeds of one base in each setting, at the learning rates of the usual setting."]
    table = Supplement("Mean differences by setting", [headings, *cells])
    result = "; ".join(counts) or "no claim holds at the usual setting"
    return Evidence({}, notes, [table], result=result)


def _beyond(difference: Difference, claim: Claim) -> bool:
    """True if the mean lies beyond the bound on the claimed side."""
    return claim.direction * difference.mean > claim.delta


def _at(
    rows: Sequence[Row], setting: str, value: float, measure: str, a: str, b: str
) -> Difference | None:
    """Return a − b at one setting of the grid; None if not measured.

    rows: of grid.csv.
    setting, value: the setting that is changed, and its value.
    measure: the column that is compared.
    a, b: methods.
    """
    differences, _ = between(rows, a, b, [measure], setting=setting, value=value)
    return differences.get(measure)


# Claim 9: wild.csv

WILD = (
    Part(
        Claim(
            "adapters in the wild are dominated",
            "above_null",
            direction=+1,
            delta=0.1,
            secondary={"log2_ratio": +1},
        ),
        what="median top-1 share of an adapter above that of the null",
        why="as for claim 1",
    ),
)


def wild(measured: Tables) -> Evidence:
    """Evidence on claim 9: the top-1 share of published adapters above chance, by adapter."""
    rows = _last_steps([row for row in measured.of("wild") if row["top_share_1"] is not None])
    if not rows:
        return Evidence(notes=["There is no wild.csv."])
    usable = [row for row in rows if row["null_top_share_1"] < 1]
    notes = []
    if rank_1 := sorted({r["adapter"] for r in rows} - {r["adapter"] for r in usable}):
        notes.append(f"Left out, because an update of rank 1 has one direction: {listed(rank_1)}.")
    if not usable:
        return Evidence(notes=notes)
    by_origin: dict[str, list[Row]] = {}
    for row in usable:
        # Adapters in one directory, as NAME/rank2 and NAME/rank4, have one author and one task.
        by_origin.setdefault(row["adapter"].split("/")[0], []).append(row)
    above_null, log2_ratio = {}, {}
    for i, of_origin in enumerate(by_origin.values()):
        shares = [(row["top_share_1"], row["null_top_share_1"]) for row in of_origin]
        above_null[i] = float(np.median([share - null for share, null in shares]))
        log2_ratio[i] = float(np.median([np.log2(share / null) for share, null in shares]))
    notes.append(
        "The unit is the adapter at its last step; several adapters of one author for one task"
        " count as one. These adapters were at hand and are not a random sample."
    )
    # Each value is already a difference to the null of the same module.
    differences = {
        "above_null": paired(above_null, dict.fromkeys(above_null, 0.0)),
        "log2_ratio": paired(log2_ratio, dict.fromkeys(log2_ratio, 0.0)),
    }
    titles = {"r": "By rank", "kind": "By projection", "adapter": "By adapter"}
    supplements = [_medians(usable, column, title) for column, title in titles.items()]
    return Evidence(differences, notes, supplements)


def _medians(rows: Sequence[Row], column: str, title: str) -> Supplement:
    """Table of medians over modules, one row per value of `column`."""
    cells = [[column, "adapters", "modules", "top-1", "top-1 by chance"]]
    for (value,), of_value in results.grouped(rows, column).items():
        adapters = len({row["adapter"] for row in of_value})
        medians = [
            np.median([row[name] for row in of_value])
            for name in ("top_share_1", "null_top_share_1")
        ]
        cells.append(
            [str(value), str(adapters), str(len(of_value)), *(f"{m:.3f}" for m in medians)]
        )
    return Supplement(f"{title}, medians over modules", cells)


def _last_steps(rows: Sequence[Row]) -> list[Row]:
    """Return the rows at the last step of each adapter; all rows of an adapter without steps."""
    last: dict[str, int] = {}
    for row in rows:
        last[row["adapter"]] = max(last.get(row["adapter"], -1), _step(row))
    return [row for row in rows if _step(row) == last[row["adapter"]]]


def _step(row: Row) -> int:
    return -1 if row["step"] is None else row["step"]
