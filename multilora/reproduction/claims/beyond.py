"""Evidence on claims 5, 7, 8 and 9: parameter count, grid, cut updates, adapters in the wild."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from analysis import results
from analysis.numerics import statistics
from analysis.numerics.statistics import Claim, Difference, paired, paired_in_common
from analysis.results import Row
from multilora.reproduction.claims.evidence import (
    Evidence,
    Part,
    Supplement,
    between,
    single,
)
from multilora.reproduction.claims.wording import (
    CUTS,
    MARGIN,
    count_text,
    listed,
    mean_text,
    number_text,
    words_of,
)
from multilora.reproduction.tables import Tables
from multilora.tasks.example import FAMILIES

# Claim 5: llama_budget.csv

SHARE = 0.025
AFFORDABLE = (
    Part(
        Claim("2.5 % of additional parameters", "share_distance", direction=-1, delta=0.0),
        what="distance of the nearest r at n = 3 from 2.5 %",
        why="2.5 % is given to a tenth of a per cent",
        against=0.0005,
    ),
)


def affordable(measured: Tables) -> Evidence:
    """Evidence on claim 5: the rank at which MultiLoRA with n = 3 has 2.5 % of the parameters."""
    rows = [row for row in measured.of("llama_budget") if row["n"] == 3]
    if not rows:
        return Evidence(notes=["There is no row with n = 3 in llama_budget.csv."])
    nearest = min(rows, key=lambda row: abs(row["share"] - SHARE))
    distance = abs(nearest["share"] - SHARE) - AFFORDABLE[0].against
    exact = Difference(  # a count has no uncertainty
        values=(distance,),
        mean=distance,
        low=distance,
        high=distance,
        positive=int(distance > 0),
        negative=int(distance < 0),
    )
    ranks = [f"{row['model']} r = {row['r']} ({100 * row['share']:.2f} %)" for row in rows]
    notes = [
        f"All linear layers except the head, n = 3: {'; '.join(ranks)}."
        " This is a count, not a measurement."
    ]
    return Evidence({"share_distance": exact}, notes, [_shares(rows)])


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


# Claim 7: grid.csv

# (claim, measure, a, b, claimed sign of a − b); without b, of a − MARGIN.
OVER_GRID = (
    ("1", "top_share_1", "lora", "full", +1),
    ("3", "effective_rank_k", "multilora", "lora", +1),
    ("4a", "overlap_above_chance", "multilora", None, -1),
    ("4b", "left_phi_k", "multilora", "lora", +1),
    ("4c", "right_phi_k", "multilora", "lora", +1),
)
HOLDS = tuple(
    Part(
        Claim(f"claim {number} holds over the grid", f"sign of {number}", direction=+1, delta=0.0),
        what=f"mean sign of claim {number} over the grid, −1 to 1",
        why="more settings with the claimed sign than without",
    )
    for number, *_ in OVER_GRID
)


def holds(measured: Tables) -> Evidence:
    """Evidence on claim 7: in how many settings the mean difference has the claimed sign.

    A setting that a claim's methods do not have, such as n for LoRA, repeats their runs and counts
    once.
    """
    rows = measured.of("grid")
    if not rows:
        return Evidence(notes=["There is no grid.csv."])
    settings = list(dict.fromkeys((row["setting"], row["value"]) for row in rows))
    differences, notes = {}, []
    columns = []
    for number, measure, a, b, direction in OVER_GRID:
        by_setting = [_at(rows, setting, value, measure, a, b) for setting, value in settings]
        columns.append(["–" if d is None else number_text(d) for d in by_setting])
        # By the values, so that runs that several settings share count once.
        signs = {
            d.values: 1.0 if direction * d.mean > 0 else -1.0 for d in by_setting if d is not None
        }
        if signs:
            differences[f"sign of {number}"] = _signs([*signs.values()])
        else:
            notes.append(f"Claim {number} has no setting in grid.csv.")
    heading = ["", *(_heading(number, measure) for number, measure, *_ in OVER_GRID)]
    cells = [
        [f"{setting} {value}", *numbers]
        for (setting, value), *numbers in zip(settings, *columns, strict=True)
    ]
    return Evidence(
        differences, notes, [Supplement("Mean differences by setting", [heading, *cells])]
    )


def _at(
    rows: Sequence[Row], setting: str, value: float, measure: str, a: str, b: str | None
) -> Difference | None:
    """Return a − b, or a − MARGIN if b is None, at one setting of the grid; None if not measured.

    rows: of grid.csv.
    setting, value: the setting that is changed, and its value.
    measure: the column that is compared.
    a, b: methods.
    """
    if b is None:
        differences, _ = single(rows, a, {measure: MARGIN}, setting=setting, value=value)
    else:
        differences, _ = between(rows, a, b, [measure], setting=setting, value=value)
    return differences.get(measure)


def _heading(number: str, measure: str) -> str:
    margin = f" − {MARGIN}" if measure == "overlap_above_chance" else ""
    return f"{number}: {words_of(measure)}{margin}"


def _signs(signs: Sequence[float]) -> Difference:
    """Mean of signs with the exact binomial interval (Clopper & Pearson 1934).

    Student's interval would have no width if all signs are equal. Six equal signs are enough for
    the interval to lie on one side of zero, five are not.
    """
    from scipy.special import betaincinv

    n, positive = len(signs), sum(sign > 0 for sign in signs)
    tail = (1 - statistics.CONFIDENCE) / 2
    low = betaincinv(positive, n - positive + 1, tail) if positive else 0.0
    high = betaincinv(positive + 1, n - positive, 1 - tail) if positive < n else 1.0
    return Difference(
        values=tuple(signs),
        mean=float(np.mean(signs)),
        low=2 * float(low) - 1,
        high=2 * float(high) - 1,
        positive=positive,
        negative=n - positive,
    )


# Claim 8: cuts.csv

MATTERS = tuple(
    Part(
        Claim(
            f"dominance matters if the top directions are {past}",
            kind,
            direction=direction,
            delta=0.01,
            secondary={f"{kind} {family}": direction for family in FAMILIES}
            | {f"{kind} of the whole": direction},
        ),
        what=f"area under the score with the top k {past}, MultiLoRA − LoRA",
        why="as for claim 6; an area is a mean over some points of a curve, each scored on 750 of"
        " the test items",
    )
    for kind, past, direction in (("keep", "kept", -1), ("remove", "removed", +1))
)

Curve = list[tuple[int, float]]  # (k, score)
ByRun = dict[str, dict[int, float]]  # method -> seed -> value


def matters(measured: Tables) -> Evidence:
    """Evidence on claim 8: how much of the score the top k directions carry."""
    rows = measured.of("cuts")
    if not rows:
        return Evidence(notes=["There is no cuts.csv."])
    areas: dict[str, ByRun] = {}  # by measure
    notes = []
    for kind in CUTS:
        of_kind, notes_of_kind = _areas(rows, kind)
        areas |= of_kind
        notes += notes_of_kind
    differences = {}
    for measure, by_run in areas.items():
        difference, lost = paired_in_common(by_run.get("multilora", {}), by_run.get("lora", {}))
        if difference:
            differences[measure] = difference
        if lost:
            notes.append(f"Seeds {listed(lost)} were not cut for both LoRA and MultiLoRA.")
    cells = [["", "n", "kept", "removed"]]
    for method in dict.fromkeys(chain.from_iterable(areas.get(kind, {}) for kind in CUTS)):
        of_method = [list(areas.get(kind, {}).get(method, {}).values()) for kind in CUTS]
        cells.append([method, str(max(map(len, of_method))), *map(mean_text, of_method)])
    supplement = Supplement("Areas, as mean scores over log₂ k", cells)
    return Evidence(differences, list(dict.fromkeys(notes)), [supplement])


def _areas(rows: Sequence[Row], kind: str) -> tuple[dict[str, ByRun], list[str]]:
    """Return ({measure: areas by method and seed}, notes) of one kind of cut.

    The measures are KIND for the mean score, "KIND FAMILY" for each family, and "KIND of the
    whole" for the mean score relative to that of the uncut update, since a method that scores
    higher as a whole does so at any k. Only those k count that every run of LoRA and MultiLoRA has.
    """
    families = [f"score_{family}" for family in FAMILIES if f"score_{family}" in rows[0]]
    cut = [row for row in rows if row["kind"] == kind and row["k"] >= 1]
    ks, dropped = _common_ks([row for row in cut if row["method"] in ("lora", "multilora")])
    notes = []
    if dropped:
        notes.append(f"{kind}: k = {listed(dropped)} is missing for some runs and left out.")
    if len(ks) < 2:
        return {}, [*notes, f"{kind}: fewer than two k in common; an area needs two."]
    areas: dict[str, ByRun] = {}
    for column in ("score", *families):
        measure = kind if column == "score" else f"{kind} {column.removeprefix('score_')}"
        areas[measure] = {
            method: {seed: _area(curve) for seed, curve in by_seed.items()}
            for method, by_seed in _curves(cut, ks, column).items()
        }
    uncut = {(row["method"], row["seed"]): row["score"] for row in rows if _is_uncut(row)}
    areas[f"{kind} of the whole"] = {
        method: {
            seed: area / uncut[method, seed]
            for seed, area in by_seed.items()
            if uncut.get((method, seed))
        }
        for method, by_seed in areas[kind].items()
    }
    return areas, notes


def _is_uncut(row: Row) -> bool:
    """True if the row holds the score of the whole update."""
    return bool(row["kind"] == "remove" and row["k"] == 0)


def _common_ks(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Return (the k that every run has, the other k)."""
    of_runs: dict[tuple[str, int], set[int]] = {}
    for row in rows:
        of_runs.setdefault((row["method"], row["seed"]), set()).add(row["k"])
    common = set.intersection(*of_runs.values()) if of_runs else set()
    return sorted(common), sorted(set().union(*of_runs.values()) - common)


def _curves(rows: Sequence[Row], ks: Sequence[int], column: str) -> dict[str, dict[int, Curve]]:
    """Return method -> seed -> curve of a score, for the runs that have all of `ks`."""
    curves: dict[str, dict[int, Curve]] = {}
    for (method, seed), of_run in results.grouped(rows, "method", "seed").items():
        score_at = {row["k"]: row[column] for row in of_run}
        if set(ks) <= score_at.keys():
            curves.setdefault(method, {})[seed] = [(k, score_at[k]) for k in ks]
    return curves


def _area(curve: Curve) -> float:
    """Area under a score over log₂ k, divided by the range of log₂ k: a mean score."""
    k, score = zip(*curve, strict=True)
    x = np.log2(k)
    return float(np.trapezoid(score, x) / (x[-1] - x[0]))


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
