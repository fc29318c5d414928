"""Evidence on claims 1b, 2 and 8: what the top directions of an update do for score or loss.

The gain of a cut update is its score less that of the base, or by how much its loss is lower than
that of the base, as a share of what the whole update gains: 0 for the base, 1 for the whole update.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis import results
from analysis.numerics.statistics import Claim, paired_in_common
from analysis.results import Row
from multilora.reproduction.claims.evidence import Evidence, Part, Supplement
from multilora.reproduction.claims.wording import listed, mean_text
from multilora.reproduction.tables import LOSS, SCORE, Tables

TOP, REST = 8, 24  # directions that are kept, and that are removed
METHODS = ("full", "lora", "multilora")
CARRIED = (
    Part(
        Claim("few directions carry what LoRA gains", "carried", direction=+1, delta=0.1),
        what=f"share of the gain that the top {TOP} directions carry, LoRA − full",
        why="a tenth of the gain",
    ),
)
MANY = {
    by: (
        Part(
            Claim("full fine-tuning rests on many directions", "left", direction=+1, delta=delta),
            what=what,
            why=why,
        ),
    )
    for by, what, delta, why in (
        (SCORE, f"score of full without its top {REST} directions − score of the base", 0.01,
         "a point"),
        (LOSS, f"loss of the base − loss of full without its top {REST} directions", 0.05,
         "a twentieth of a nat per token of an answer"),
    )
}  # fmt: skip
MATTERS = {
    (a, b): tuple(
        Part(
            Claim(
                f"dominance matters if the top directions are {past}, {a} and {b}",
                kind,
                direction=direction * sign,
                delta=0.05,
            ),
            what=f"mean gain with the top k {past}, {what}",
            why="a twentieth of the gain, averaged over log₂ k",
        )
        for kind, past, sign in (("keep", "kept", +1), ("remove", "removed", -1))
    )
    for a, b, what, direction in (
        ("multilora", "lora", "MultiLoRA − LoRA", -1),
        ("lora", "full", "LoRA − full", +1),
    )
}
Worths = Mapping[int, float]  # k -> score, or −loss
BySeed = dict[int, float]


def carried(measured: Tables) -> Evidence:
    """Evidence on claim 1b: the share of the gain that the top directions carry, LoRA − full."""
    rows = _worths(measured)
    if not rows:
        return Evidence(notes=["There is no cuts.csv."])
    shares = {method: _gains(rows, method, "keep", TOP) for method in METHODS}
    difference, lost = paired_in_common(shares["lora"], shares["full"])
    differences = {"carried": difference} if difference else {}
    return Evidence(differences, _lost(lost), [_carried_table(rows)])


def many(measured: Tables) -> Evidence:
    """Evidence on claim 2: what is left of full fine-tuning without its top directions."""
    rows = _worths(measured)
    if not rows:
        return Evidence(notes=["There is no cuts.csv."])
    cut, base = {}, {}
    for seed, (keep, remove) in _curves(rows, "full").items():
        if REST in remove and 0 in keep:
            cut[seed], base[seed] = remove[REST], keep[0]
    difference, lost = paired_in_common(cut, base)
    carries = mean_text(_gains(rows, "full", "keep", TOP).values(), ".2f")
    spectra = [row for row in measured.of("methods") if row["method"] == "full"]
    needed = mean_text((row.get("energy_rank_90") for row in spectra), ".1f")
    notes = [
        f"The top {TOP} directions of full carry {carries} of its gain; 90 % of its energy lies in"
        f" {needed} directions.",
        *_lost(lost),
    ]
    rounded = measured.of("rounding_floor")
    supplements = [_rounded(rounded)] if rounded else []
    return Evidence({"left": difference} if difference else {}, notes, supplements)


def matters_between_adapters(measured: Tables) -> Evidence:
    """Evidence on claim 8a: gains of cut updates, MultiLoRA − LoRA."""
    return _matters(measured, "multilora", "lora")


def matters_against_full(measured: Tables) -> Evidence:
    """Evidence on claim 8b: gains of cut updates, LoRA − full fine-tuning."""
    return _matters(measured, "lora", "full")


def _matters(measured: Tables, a: str, b: str) -> Evidence:
    rows = _worths(measured)
    if not rows:
        return Evidence(notes=["There is no cuts.csv."])
    ks = _common_ks(rows, (a, b))
    differences, notes = {}, [f"Means over log₂ k, k = {listed(ks)}."]
    cells = [["", "n", "kept", "removed"]]
    areas = {m: {kind: _areas(rows, m, kind, ks) for kind in ("keep", "remove")} for m in (a, b)}
    for kind in ("keep", "remove"):
        difference, lost = paired_in_common(areas[a][kind], areas[b][kind])
        if difference:
            differences[kind] = difference
        notes += _lost(lost)
    for method, of_method in areas.items():
        numbers = [mean_text(of_kind.values()) for of_kind in of_method.values()]
        cells.append([method, str(len(of_method["keep"])), *numbers])
    return Evidence(
        differences, list(dict.fromkeys(notes)), [Supplement("Mean gain of cut updates", cells)]
    )


def _worths(measured: Tables) -> list[Row]:
    """Return the rows of cuts.csv with "worth", the more the better: the score, or −loss."""
    by_loss = measured.judged_by == LOSS
    return [row | {"worth": -row[LOSS] if by_loss else row[SCORE]} for row in measured.of("cuts")]


def _lost(seeds: Sequence[int]) -> list[str]:
    return [f"Seeds {listed(seeds)} were not cut for both."] if seeds else []


def _curves(rows: Sequence[Row], method: str) -> dict[int, tuple[Worths, Worths]]:
    """Return seed -> (worths with the top k kept, with the top k removed) of a method."""
    of_method = [row for row in rows if row["method"] == method]
    return {
        seed: (
            {row["k"]: row["worth"] for row in of_seed if row["kind"] == "keep"},
            {row["k"]: row["worth"] for row in of_seed if row["kind"] == "remove"},
        )
        for (seed,), of_seed in results.grouped(of_method, "seed").items()
    }


def _gain(worth: float, keep: Worths, remove: Worths) -> float:
    """Return the gain as a share of that of the whole update; nan if that is 0."""
    whole = remove[0] - keep[0]
    return (worth - keep[0]) / whole if whole else float("nan")


def _gains(rows: Sequence[Row], method: str, kind: str, k: int) -> BySeed:
    """Return seed -> gain of a method with its top k directions kept or removed."""
    gains = {}
    for seed, (keep, remove) in _curves(rows, method).items():
        of_kind = keep if kind == "keep" else remove
        if k in of_kind and 0 in keep and 0 in remove:
            gain = _gain(of_kind[k], keep, remove)
            if np.isfinite(gain):
                gains[seed] = gain
    return gains


def _common_ks(rows: Sequence[Row], methods: Sequence[str]) -> list[int]:
    """Return the k ≥ 1 that every run of the methods has."""
    sets = [
        set(scores) for m in methods for curves in _curves(rows, m).values() for scores in curves
    ]
    common = set.intersection(*sets) if sets else set()
    return sorted(k for k in common if k >= 1)


def _areas(rows: Sequence[Row], method: str, kind: str, ks: Sequence[int]) -> BySeed:
    """Return seed -> mean gain over log₂ k (trapezoids) of a method; needs two k."""
    if len(ks) < 2:
        return {}
    by_k = [_gains(rows, method, kind, k) for k in ks]
    x = np.log2(ks)
    return {
        seed: float(np.trapezoid([gains[seed] for gains in by_k], x) / (x[-1] - x[0]))
        for seed in by_k[0]
        if all(seed in gains for gains in by_k)
    }


def _carried_table(rows: Sequence[Row]) -> Supplement:
    """Table of the gain with the top k directions kept, one row per method."""
    ks = sorted({row["k"] for row in rows if row["kind"] == "keep" and row["k"] >= 1})
    cells = [["", *(f"k = {k}" for k in ks)]]
    for method in METHODS:
        cells.append(
            [method, *(mean_text(_gains(rows, method, "keep", k).values(), ".2f") for k in ks)]
        )
    return Supplement("Share of the gain with the top k directions kept", cells)


def _rounded(rows: Sequence[Row]) -> Supplement:
    """Table of the spectrum that would be left of a smaller update stored in bfloat16."""
    columns = ("effective_rank", "effective_rank_true", "above_floor_share")
    cells = [
        [
            "‖ΔW‖/‖W0‖",
            "effective rank",
            "effective rank of ΔW itself",
            "values above the floor / min(d_out, d_in)",
        ]
    ]
    for (ratio,), of_ratio in results.grouped(rows, "ratio").items():
        means = [mean_text([row[column] for row in of_ratio], ".3g") for column in columns]
        cells.append([f"{ratio:g}", *means])
    title = "ΔW of full fine-tuning, scaled down and stored in bfloat16, means over seeds"
    return Supplement(title, cells)
