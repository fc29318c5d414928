"""Claims 1, 2, 3, 4 and 6: LoRA, MultiLoRA and full fine-tuning, from their runs' tables."""

from collections.abc import Mapping, Sequence

from analysis.numerics.statistics import Claim, Difference, mean
from analysis.results import Row, grouped
from multilora.reproduction.claims.evidence import (
    MARGIN,
    POINT,
    Beside,
    Found,
    Part,
    between,
    by_seed,
    count_text,
    listed,
    mean_text,
    measures,
    methods,
    number_text,
    over_seeds,
    says,
    single,
    words_of,
)
from multilora.reproduction.tables import Tables
from multilora.tasks.example import FAMILIES

# Claims 1, 2, 3 and 6: methods.csv

DOMINANCE = (
    Part(
        Claim(
            "LoRA is dominated",
            "top_share_1",
            +1,
            0.1,
            {
                **{"top_share_4": +1, "top_share_16": +1, "top_share_1_above_null": +1},
                **{"effective_rank_k": -1, "gini_k": +1},
            },
        ),
        "top-1 share, LoRA − full",
        "capacity alone makes less: a random update of rank 24 in 128 dimensions has a top-1 share"
        " 0.07 above that of a dense one",
    ),
)
MANY = (
    Part(
        Claim("no direction dominates full fine-tuning", "top_share_1", -1, 0.0),
        "top-1 share of full",
        "one direction that holds half of the energy outweighs all others together",
        against=0.5,
    ),
    Part(
        Claim("full fine-tuning has many directions", "above_floor_share", +1, 0.0),
        "values above rounding / min(d), full",
        "more than half of the directions that there are",
        against=0.5,
    ),
)
REDUCED = (
    Part(
        Claim(
            "MultiLoRA is less dominated",
            "effective_rank_k",
            +1,
            1.0,
            {"top_share_1": -1, "gini_k": -1},
        ),
        "effective rank, MultiLoRA − LoRA",
        "one direction more in even use",
    ),
)
BETTER = tuple(
    Part(
        Claim(
            f"MultiLoRA is better than {other}",
            f"score − {other}",
            +1,
            0.01,
            {f"score_{family} − {other}": +1 for family in FAMILIES},
        ),
        f"mean score, MultiLoRA − {name}",
        POINT,
    )
    for other, name in (("lora", "LoRA"), ("full", "full"))
)


def dominance(measured: Tables) -> Found:
    """Claim 1: what LoRA has that full fine-tuning has not."""
    rows = measured.of("methods")
    differences, notes = between(rows, "lora", "full", measures(DOMINANCE))
    found = Found(differences, notes)
    if differences:
        found.notes.append(_rests_on(DOMINANCE[0].claim, differences))
        found.beside.append(_concentration(rows))
    return found


KINDS = {
    "energy shares": ("top_share_1", "top_share_4", "top_share_16"),
    "the first k values": ("effective_rank_k", "gini_k"),
}


def _rests_on(claim: Claim, differences: Mapping[str, Difference]) -> str:
    """Of the two ways in which capacities may be compared, which say what is claimed."""
    directions = {claim.primary: claim.direction, **claim.secondary}
    agree = [
        kind
        for kind, names in KINDS.items()
        if any(says(differences[n], directions[n]) > 0 for n in names if n in differences)
        and not any(says(differences[n], directions[n]) < 0 for n in names if n in differences)
    ]
    if len(agree) == len(KINDS):
        return "Energy shares and the first k values both say what is claimed."
    if not agree:
        return "Neither energy shares nor the first k values say surely what is claimed."
    return f"Only {agree[0]} say what is claimed: it rests on one of two ways of comparing."


def many(measured: Tables) -> Found:
    """Claim 2: full fine-tuning alone."""
    rows = measured.of("methods")
    differences, notes = single(rows, "full", {part.claim.primary: 0.5 for part in MANY})
    found = Found(differences, notes)
    if differences:
        values = [row["top_share_1"] for row in rows if row["method"] == "lora"]
        if values:
            found.notes.append(f"LoRA's top-1 share is {mean_text(values)}.")
        found.notes.append(
            "ΔW is taken from float32 weights here; from weights stored in bfloat16, part of a flat"
            " spectrum can be rounding."
        )
    if rounded := measured.of("rounding_floor"):
        found.beside.append(_rounded(rounded))
    return found


def _rounded(rows: Sequence[Row]) -> Beside:
    """What bfloat16 would leave of the spectrum, were the update smaller."""
    cells = [["‖ΔW‖/‖W0‖", "effective rank", "of ΔW itself", "values above the floor / min(d)"]]
    for (ratio,), of_ratio in grouped(rows, "ratio").items():
        columns = ("effective_rank", "effective_rank_true", "above_floor_share")
        numbers = [mean(row[column] for row in of_ratio) for column in columns]
        cells.append([f"{ratio:g}", *("–" if n is None else f"{n:.3g}" for n in numbers)])
    return Beside("Full fine-tuning's ΔW, made smaller and stored in bfloat16, means", cells)


def reduced(measured: Tables) -> Found:
    """Claim 3: MultiLoRA against LoRA, and the ablations of both."""
    rows = measured.of("methods")
    differences, notes = between(rows, "multilora", "lora", measures(REDUCED))
    found = Found(differences, notes)
    if not differences:
        return found
    found.notes.append(_rates(rows, measured.of("sweep")))
    others = [method for method in methods(rows) if method not in ("lora", "full")]
    there = set(methods(rows))
    compared = [(f"{method} − lora", method, "lora") for method in others]
    compared += [(f"{a} − {b}", a, b) for a, b in RATES_AND_SIZES if {a, b} <= there]
    found.beside.append(_compared("Adapters against one another", rows, compared))
    if pairs := [pair for pair in TWO_BY_TWO if {pair[1], pair[2]} <= there]:
        title = "n and the start of B at equal n·r (s = 1 with B zero, s = 0 with B Kaiming)"
        found.beside.append(_compared(title, rows, pairs))
    if swept := [row for row in measured.of("sweep") if row["method"] != "full"]:
        found.beside.append(_at_every_rate(swept))
    return found


# LoRA with more parameters than MultiLoRA; both with a ratio of learning rates to choose.
RATES_AND_SIZES = (("multilora", "lora r=26"), ("multilora s×5", "lora+"))
TWO_BY_TWO = (
    ("n = 3 − n = 1, B zero", "multilora zero", "multilora n=1 zero"),
    ("n = 3 − n = 1, B Kaiming", "multilora", "multilora n=1"),
    ("B Kaiming − zero, n = 1", "multilora n=1", "multilora n=1 zero"),
    ("B Kaiming − zero, n = 3", "multilora", "multilora zero"),
)


def better(measured: Tables) -> Found:
    """Claim 6: scores."""
    rows = measured.of("methods")
    columns = ["score", *(f"score_{family}" for family in FAMILIES)]
    found = Found()
    for other in ("lora", "full"):
        differences, notes = between(rows, "multilora", other, columns)
        found.differences.update({f"{name} − {other}": d for name, d in differences.items()})
        found.notes.extend(note for note in notes if note not in found.notes)
    if found.differences:
        found.notes.append(_rates(rows, measured.of("sweep")))
        tasks = [column for column in rows[0] if column.startswith("task_")]
        columns = ["score_validation", *columns[1:], "score"]
        found.beside.append(_scores("Scores, means over seeds", rows, columns, "score_"))
        if tasks:
            found.beside.append(_scores("By task", rows, tasks, "task_"))
    return found


def _rates(rows: Sequence[Row], swept: Sequence[Row]) -> str:
    """Which learning rates were used, where the table says it, and what chose them."""
    rates: dict[str, set[float]] = {}
    for row in rows:
        if row.get("learning_rate") is not None:
            rates.setdefault(row["method"], set()).add(row["learning_rate"])
    if not rates:
        return "The table does not tell the learning rates."
    said = "; ".join(
        f"{m} {' and '.join(f'{rate:g}' for rate in sorted(of))}" for m, of in rates.items()
    )
    chosen = {row["method"]: row["learning_rate"] for row in swept if row["chosen"]}
    by_default = [method for method, of in rates.items() if of != {chosen.get(method)}]
    tried: dict[str, list[float]] = {}
    for row in swept:
        tried.setdefault(row["method"], []).append(row["learning_rate"])
    at_end = [m for m in rates if m in chosen and chosen[m] in (min(tried[m]), max(tried[m]))]
    notes = [f"Learning rates: {said}."]
    if by_default:
        notes.append(f"Not chosen by a sweep of its own: {listed(by_default)}.")
    if at_end:
        notes.append(
            f"Chosen at an end of the rates that were tried, so that a better one may lie beyond:"
            f" {listed(at_end)}."
        )
    return " ".join(notes)


def _concentration(rows: Sequence[Row]) -> Beside:
    headings = ["", "seeds", "parameters", "top-1", "by chance", "top-4", "top-16"]
    headings += ["eff. rank", "Gini", "held", "democracy"]
    columns = (
        *("top_share_1", "null_top_share_1", "top_share_4", "top_share_16"),
        *("effective_rank_k", "gini_k", "held_k", "democracy"),
    )
    cells = [headings]
    for method in methods(rows):
        of = [row for row in rows if row["method"] == method]
        numbers = [over_seeds(rows, method, column) for column in columns]
        cells.append([method, str(len(of)), count_text(of[0].get("parameters")), *numbers])
    title = (
        f"Concentration, means over seeds ± half their range; eff. rank, Gini and held of the"
        f" first {rows[0]['k']} values; democracy within each one's own capacity"
    )
    return Beside(title, cells)


def _compared(title: str, rows: Sequence[Row], pairs: Sequence[tuple[str, str, str]]) -> Beside:
    """Differences of pairs of methods; pairs: what they are called, a, b."""
    columns = ("effective_rank_k", "top_share_1", "gini_k", "score")
    cells = [["", "n", "parameters", *(words_of(column) for column in columns)]]
    for name, a, b in pairs:
        differences, _ = between(rows, a, b, columns)
        n = max((len(d.values) for d in differences.values()), default=0)
        parameters = " / ".join(
            count_text(next(iter(by_seed(rows, method).values())).get("parameters"))
            for method in (a, b)
        )
        found = [differences.get(column) for column in columns]
        numbers = ["–" if difference is None else number_text(difference) for difference in found]
        cells.append([name, str(n), parameters, *numbers])
    return Beside(title, cells)


def _at_every_rate(swept: Sequence[Row]) -> Beside:
    """Concentration by method and learning rate, where methods can be compared at equal rates."""
    of_place = {(row["method"], row["learning_rate"]): row for row in swept}
    rates = sorted({row["learning_rate"] for row in swept})
    cells = [["", *(f"{rate:g}" for rate in rates)]]
    for method in methods(swept):
        of_method = [of_place.get((method, rate)) for rate in rates]
        cells.append([method, *("–" if row is None else _concentrated(row) for row in of_method)])
    title = (
        "Effective rank of s[:k] and top-1 share at every learning rate of the sweep, one seed;"
        " in brackets what is not the chosen rate"
    )
    return Beside(title, cells)


def _concentrated(row: Row) -> str:
    rank = row.get("effective_rank_k")
    text = f"{'–' if rank is None else f'{rank:.1f}'}, {row['top_share_1']:.2f}"
    return text if row["chosen"] else f"({text})"


def _scores(title: str, rows: Sequence[Row], columns: Sequence[str], prefix: str) -> Beside:
    columns_of = methods(rows)
    cells = [["", *columns_of]]
    for column in columns:
        name = column.removeprefix(prefix) if column != "score" else "mean"
        cells.append([name, *(over_seeds(rows, method, column) for method in columns_of)])
    return Beside(title, cells)


# Claims 4a, 4b, 4c: overlap.csv, nearness.csv

# The two that the primary measure is the mean of, less the same margin.
OVERLAP_SIDES = tuple(f"{side}_above_margin" for side in ("left", "right"))
INDEPENDENT = (
    Part(
        Claim(
            "MultiLoRA's modules are independent",
            "overlap_above_chance",
            -1,
            0.0,
            dict.fromkeys(OVERLAP_SIDES, -1),
        ),
        "φ(r, r) between modules above chance, MultiLoRA",
        "random modules have 0, equal ones 1 − chance; 0.1 is less than one of eight directions",
        against=MARGIN,
    ),
)
NEARER = {
    side: (
        Part(
            Claim(
                f"MultiLoRA is nearer to full fine-tuning, {side}",
                f"{side}_phi_k",
                +1,
                0.04,
                {f"{side}_above_chance": +1, "log_distance": -1},
            ),
            f"φ(k, k) with full, {side}, MultiLoRA − LoRA",
            "one direction of k = 24",
        ),
    )
    for side in ("left", "right")
}


def independent(measured: Tables) -> Found:
    """Claim 4a: what the modules of one MultiLoRA share."""
    rows = measured.of("overlap")
    rows = [
        row | {name: row.get(name.replace("margin", "chance")) for name in OVERLAP_SIDES}
        for row in rows
    ]
    measured_by = ("overlap_above_chance", *OVERLAP_SIDES)
    differences, notes = single(rows, "multilora", dict.fromkeys(measured_by, MARGIN))
    found = Found(differences, notes)
    if rows:
        columns = (
            *("left_phi_k", "left_chance_k", "right_phi_k", "right_chance_k"),
            *("overlap_above_chance", "cosine"),
        )
        headings = ["", "n", "r", "left", "by chance", "right", "by chance", "above", "abs. cosine"]
        cells = [headings]
        for method in methods(rows):
            first = next(row for row in rows if row["method"] == method)
            numbers = [over_seeds(rows, method, column) for column in columns]
            cells.append([method, str(first["n"]), str(first.get("r", "–")), *numbers])
        found.beside.append(Beside("φ(r, r) over pairs of modules of one run", cells))
    if differences:
        above = single(rows, "multilora", {"overlap_above_chance": 0.0})[0]
        if says(above["overlap_above_chance"], +1) > 0:
            found.notes.append("The overlap is surely above chance, whatever its size.")
    return found


def left(measured: Tables) -> Found:
    """Claim 4b."""
    return _nearer(measured, "left")


def right(measured: Tables) -> Found:
    """Claim 4c."""
    return _nearer(measured, "right")


def _nearer(measured: Tables, side: str) -> Found:
    rows = measured.of("nearness")
    differences, notes = between(
        rows, "multilora", "lora", measures(NEARER[side]), reference="full"
    )
    if not rows:
        notes = ["There is no nearness.csv: it takes two seeds of a method."]
    found = Found(differences, notes)
    if differences:
        found.beside.append(_repeatability(rows, side))
    return found


def _repeatability(rows: Sequence[Row], side: str) -> Beside:
    cells = [["", "k", "with full", "with its own other seeds", "by chance", "log distance"]]
    for method in methods(rows):
        of = {
            reference: [row for row in rows if _is(row, method, reference)]
            for reference in ("full", method)
        }
        chance = [row.get(f"{side}_chance_k") for row in of["full"]]
        numbers = [
            mean_text(row[f"{side}_phi_k"] for row in of["full"]),
            mean_text(row[f"{side}_phi_k"] for row in of[method]),
            mean_text(chance[:1]),
            mean_text(row.get("log_distance") for row in of["full"]),
        ]
        k = of["full"][0]["k"] if of["full"] else "–"
        cells.append([method, str(k), *numbers])
    return Beside(
        f"φ(k, k), {side}, and log distance of the spectra, pairs of different seeds", cells
    )


def _is(row: Row, method: str, reference: str) -> bool:
    return bool(row["method"] == method and row["reference"] == reference)
