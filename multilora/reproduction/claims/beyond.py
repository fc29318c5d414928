"""Claims 5, 7, 8 and 9: the count of parameters, the grid, cuts of ΔW, adapters in the wild."""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis import results
from analysis.numerics import statistics
from analysis.numerics.statistics import Claim, Difference, paired, paired_in_common
from analysis.results import Row
from multilora.reproduction.claims.evidence import (
    CUTS,
    MARGIN,
    Beside,
    Found,
    Part,
    between,
    count_text,
    listed,
    mean_text,
    methods,
    number_text,
    single,
    words_of,
)
from multilora.reproduction.tables import Tables
from multilora.tasks.example import FAMILIES

# Claim 5: llama_budget.csv

SHARE = 0.025
AFFORDABLE = (
    Part(
        Claim("2.5 % of additional parameters", "share_distance", -1, 0.0),
        "distance of the nearest n = 3, r from 2.5 %",
        "2.5 % is written to a tenth of a per cent",
        against=0.0005,
    ),
)


def affordable(measured: Tables) -> Found:
    """Claim 5: which r of n = 3 comes to 2.5 %."""
    rows = [row for row in measured.of("llama_budget") if row["n"] == 3]
    if not rows:
        return Found(notes=["There is no row of n = 3 in llama_budget.csv."])
    nearest = min(rows, key=lambda row: abs(row["share"] - SHARE))
    away = abs(nearest["share"] - SHARE)
    distance = away - AFFORDABLE[0].against
    # A count: it has no uncertainty.
    sides = int(distance > 0), int(distance < 0)
    exact = Difference((distance,), distance, distance, distance, *sides)
    of = [f"{row['model']} r = {row['r']} ({100 * row['share']:.2f} %)" for row in rows]
    cells = [["model", "n", "r", "parameters", "share", "outside embeddings and head"]]
    for row in rows:
        shares = [row["share"], row.get("share_outside")]
        cells.append(
            [
                *(row["model"], str(row["n"]), str(row["r"]), count_text(row.get("parameters"))),
                *("–" if share is None else f"{100 * share:.3f} %" for share in shares),
            ]
        )
    return Found(
        {"share_distance": exact},
        [f"All linear layers but the head, n = 3: {'; '.join(of)}. A count, not a measurement."],
        [Beside("The r nearest to 2.5 % of all parameters", cells)],
    )


# Claim 7: grid.csv

OVER_GRID = (
    ("1", "top_share_1", "lora", "full", +1),
    ("3", "effective_rank_k", "multilora", "lora", +1),
    ("4a", "overlap_above_chance", "multilora", None, -1),
    ("4b", "left_phi_k", "multilora", "lora", +1),
    ("4c", "right_phi_k", "multilora", "lora", +1),
)
HOLDS = tuple(
    Part(
        Claim(f"claim {number} holds over the grid", f"sign of {number}", +1, 0.0),
        f"sign of {number} over the grid, −1 to 1",
        "more settings with the claimed sign than without",
    )
    for number, *_ in OVER_GRID
)


def holds(measured: Tables) -> Found:
    """The sign of each claim's mean difference in each setting; the interval is the binomial's.

    A setting that a claim's methods do not have, as n is none of LoRA's, repeats their runs: it
    counts once.
    """
    rows = measured.of("grid")
    found = Found()
    if not rows:
        found.notes.append("There is no grid.csv.")
        return found
    settings = list(dict.fromkeys((row["setting"], row["value"]) for row in rows))
    shown: dict[tuple[str, str], list[str]] = {key: [] for key in settings}
    for number, column, a, b, direction in OVER_GRID:
        signs: dict[tuple[float, ...], float] = {}  # by the values, so that no run counts twice
        for setting, value in settings:
            where = {"setting": setting, "value": value}
            if b is None:
                differences, _ = single(rows, a, {column: MARGIN}, **where)
            else:
                differences, _ = between(rows, a, b, [column], **where)
            difference = differences.get(column)
            shown[setting, value].append("–" if difference is None else number_text(difference))
            if difference is not None:
                signs[difference.values] = 1.0 if direction * difference.mean > 0 else -1.0
        if signs:
            found.differences[f"sign of {number}"] = _signs([*signs.values()])
        else:
            found.notes.append(f"Claim {number} has no setting in grid.csv.")
    heading = ["", *(f"{n}: {words_of(column)}" for n, column, *_ in OVER_GRID)]
    heading[3] += f" − {MARGIN}"
    cells = [[f"{setting} {value}", *numbers] for (setting, value), numbers in shown.items()]
    found.beside.append(Beside("Mean differences by setting", [heading, *cells]))
    return found


def _signs(signs: Sequence[float]) -> Difference:
    """The mean of signs, with the exact binomial interval (Clopper & Pearson 1934).

    Student's would have no width where all signs are equal. Six settings of one sign are enough
    for the side, five are not.
    """
    from scipy.special import betaincinv

    n, positive = len(signs), sum(sign > 0 for sign in signs)
    tail = (1 - statistics.CONFIDENCE) / 2
    low = betaincinv(positive, n - positive + 1, tail) if positive else 0.0
    high = betaincinv(positive + 1, n - positive, 1 - tail) if positive < n else 1.0
    return Difference(
        tuple(signs),
        float(np.mean(signs)),
        2 * float(low) - 1,
        2 * float(high) - 1,
        positive,
        n - positive,
    )


# Claim 8: cuts.csv

MATTERS = tuple(
    Part(
        Claim(
            f"dominance matters where the top directions are {past}",
            kind,
            direction,
            0.01,
            {f"{kind} {family}": direction for family in FAMILIES}
            | {f"{kind} of the whole": direction},
        ),
        f"area under the score where the top k are {past}, MultiLoRA − LoRA",
        "as of claim 6; an area is of some points of a curve, each over 750 of the test items",
    )
    for kind, past, direction in (("keep", "kept", -1), ("remove", "removed", +1))
)


def matters(measured: Tables) -> Found:
    """Claim 8: what of the score the top k directions carry."""
    rows = measured.of("cuts")
    found = Found()
    if not rows:
        found.notes.append("There is no cuts.csv.")
        return found
    families = [f"score_{family}" for family in FAMILIES if f"score_{family}" in rows[0]]
    cells = [["", "n", "kept", "removed"]]
    areas: dict[str, dict[str, list[float]]] = {}
    whole = {(r["method"], r["seed"]): r["score"] for r in rows if _is_whole(r)}
    for kind in CUTS:
        compared = [row for row in rows if row["kind"] == kind and row["k"] >= 1]
        pair = [row for row in compared if row["method"] in ("lora", "multilora")]
        cuts, dropped = _common_cuts(pair)
        if dropped:
            found.notes.append(
                f"{kind}: k = {listed(dropped)} is not there for every run, and left out."
            )
        if len(cuts) < 2:
            found.notes.append(f"{kind}: fewer than two k in common; an area needs two.")
            continue
        curves = _curves(compared, cuts, ["score", *families])
        for column in ("score", *families):
            name = kind if column == "score" else f"{kind} {column.removeprefix('score_')}"
            of = {m: {s: _area(c[column]) for s, c in by.items()} for m, by in curves.items()}
            _add(found, name, of)
            if column == "score":
                for method, by in of.items():
                    areas.setdefault(method, {})[kind] = list(by.values())
        # Relative to the score of the whole update: a method that is better in all is so at any k.
        own = {
            m: {s: _area(c["score"]) / whole[m, s] for s, c in by.items() if whole.get((m, s))}
            for m, by in curves.items()
        }
        _add(found, f"{kind} of the whole", own)
    for method, by_kind in areas.items():
        n = max(len(values) for values in by_kind.values())
        cells.append([method, str(n), *(mean_text(by_kind.get(kind, [])) for kind in CUTS)])
    found.beside.append(Beside("Areas, as mean scores over log₂ k", cells))
    return found


def _is_whole(row: Row) -> bool:
    """Whether nothing is cut."""
    return bool(row["kind"] == "remove" and row["k"] == 0)


Curve = list[tuple[int, float]]


def _common_cuts(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """(the k that every run has, the others)."""
    of_runs: dict[tuple[str, int], set[int]] = {}
    for row in rows:
        of_runs.setdefault((row["method"], row["seed"]), set()).add(row["k"])
    every = set.intersection(*of_runs.values()) if of_runs else set()
    return sorted(every), sorted(set().union(*of_runs.values()) - every)


def _curves(
    rows: Sequence[Row], cuts: Sequence[int], columns: Sequence[str]
) -> dict[str, dict[int, dict[str, Curve]]]:
    """method -> seed -> column -> (k, score), of the runs that have all the cuts."""
    curves: dict[str, dict[int, dict[str, Curve]]] = {}
    for method in methods(rows):
        for seed in dict.fromkeys(row["seed"] for row in rows if row["method"] == method):
            at = {r["k"]: r for r in rows if r["method"] == method and r["seed"] == seed}
            if set(cuts) <= at.keys():
                of = {column: [(k, at[k][column]) for k in cuts] for column in columns}
                curves.setdefault(method, {})[seed] = of
    return curves


def _area(curve: Curve) -> float:
    """Area under a score over log₂ k, divided by the range of log₂ k: a mean score."""
    k, score = zip(*curve, strict=True)
    x = np.log2(k)
    return float(np.trapezoid(score, x) / (x[-1] - x[0]))


def _add(found: Found, name: str, of: Mapping[str, Mapping[int, float]]) -> None:
    """MultiLoRA − LoRA of a value by method and seed."""
    difference, lost = paired_in_common(of.get("multilora", {}), of.get("lora", {}))
    if difference:
        found.differences[name] = difference
    note = f"Seeds {listed(lost)} were not cut for both LoRA and MultiLoRA."
    if lost and note not in found.notes:
        found.notes.append(note)


# Claim 9: wild.csv

WILD = (
    Part(
        Claim("adapters in the wild are dominated", "above_null", +1, 0.1, {"log2_ratio": +1}),
        "median top-1 share of an adapter above the null's",
        "as of claim 1",
    ),
)


def wild(measured: Tables) -> Found:
    """Claim 9: the unit is the adapter."""
    rows = _last_steps([r for r in measured.of("wild") if r["top_share_1"] is not None])
    found = Found()
    if not rows:
        found.notes.append("There is no wild.csv.")
        return found
    told = {row["adapter"] for row in rows if row["null_top_share_1"] < 1}
    if single_value := sorted({row["adapter"] for row in rows} - told):
        found.notes.append(
            f"Left out, since an update of rank 1 has nothing to share: {listed(single_value)}."
        )
    rows = [row for row in rows if row["null_top_share_1"] < 1]
    if not rows:
        return found
    # One author's adapters of one task, in one directory, are one unit: NAME/rank2, NAME/rank4.
    by_origin: dict[str, list[Row]] = {}
    for row in rows:
        by_origin.setdefault(row["adapter"].split("/")[0], []).append(row)
    above = {
        i: float(np.median([row["top_share_1"] - row["null_top_share_1"] for row in of]))
        for i, of in enumerate(by_origin.values())
    }
    ratio = {
        i: float(np.median([np.log2(row["top_share_1"] / row["null_top_share_1"]) for row in of]))
        for i, of in enumerate(by_origin.values())
    }
    for name, values in (("above_null", above), ("log2_ratio", ratio)):
        found.differences[name] = paired(values, dict.fromkeys(values, 0.0))
    found.notes.append(
        "The unit is the adapter, at its last step, where several of one author's for one task are"
        " one; these were at hand, and are no random sample."
    )
    for column, title in (("r", "By rank"), ("kind", "By projection"), ("adapter", "By adapter")):
        cells = [[column, "adapters", "modules", "top-1", "by chance"]]
        for (value,), of in results.grouped(rows, column).items():
            columns = ("top_share_1", "null_top_share_1")
            medians = [np.median([row[name] for row in of]) for name in columns]
            adapters = len({row["adapter"] for row in of})
            shown = [str(value), str(adapters), str(len(of)), *(f"{m:.3f}" for m in medians)]
            cells.append(shown)
        found.beside.append(Beside(f"{title}, medians over modules", cells))
    return found


def _last_steps(rows: Sequence[Row]) -> list[Row]:
    """The rows of each adapter's last step; those of all, where it has no steps."""
    last: dict[str, int] = {}
    for row in rows:
        last[row["adapter"]] = max(last.get(row["adapter"], -1), _step(row))
    return [row for row in rows if _step(row) == last[row["adapter"]]]


def _step(row: Row) -> int:
    return -1 if row["step"] is None else row["step"]
