"""Evidence on claims 1 to 4 and 6, which compare LoRA, MultiLoRA and full fine-tuning."""

from collections.abc import Mapping, Sequence

from analysis.numerics.statistics import Claim, Difference, mean
from analysis.results import Row, grouped
from multilora.reproduction.claims.evidence import (
    Evidence,
    Part,
    Supplement,
    agreement,
    between,
    by_seed,
    measures,
    methods,
    single,
)
from multilora.reproduction.claims.wording import (
    MARGIN,
    count_text,
    listed,
    mean_text,
    number_text,
    over_seeds,
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
            direction=+1,
            delta=0.1,
            secondary={
                "top_share_4": +1,
                "top_share_16": +1,
                "top_share_1_above_null": +1,
                "effective_rank_k": -1,
                "gini_k": +1,
            },
        ),
        what="top-1 share, LoRA − full",
        why="capacity alone explains less: the top-1 share of a random update of rank 24 in 128"
        " dimensions is 0.07 above that of a random dense update",
    ),
)
MANY = (
    Part(
        Claim("no direction dominates full fine-tuning", "top_share_1", direction=-1, delta=0.0),
        what="top-1 share of full",
        why="a direction with half of the energy outweighs all others together",
        against=0.5,
    ),
    Part(
        Claim("full fine-tuning has many directions", "above_floor_share", direction=+1, delta=0.0),
        what="values above the noise floor / min(d_out, d_in), full",
        why="more than half of all directions",
        against=0.5,
    ),
)
REDUCED = (
    Part(
        Claim(
            "MultiLoRA is less dominated",
            "effective_rank_k",
            direction=+1,
            delta=1.0,
            secondary={"top_share_1": -1, "gini_k": -1},
        ),
        what="effective rank, MultiLoRA − LoRA",
        why="one more direction in even use",
    ),
)
BETTER = tuple(
    Part(
        Claim(
            f"MultiLoRA is better than {other}",
            f"score − {other}",
            direction=+1,
            delta=0.01,
            secondary={f"score_{family} − {other}": +1 for family in FAMILIES},
        ),
        what=f"mean score, MultiLoRA − {name}",
        why="a point is about the standard error of one run's mean over the 1,500 test items",
    )
    for other, name in (("lora", "LoRA"), ("full", "full"))
)


def dominance(measured: Tables) -> Evidence:
    """Evidence on claim 1: concentration of LoRA minus that of full fine-tuning."""
    rows = measured.of("methods")
    differences, notes = between(rows, "lora", "full", measures(DOMINANCE))
    if not differences:
        return Evidence(notes=notes)
    notes.append(_rests_on(DOMINANCE[0].claim, differences))
    return Evidence(differences, notes, [_concentration(rows)])


# The two ways to compare updates of different capacity, and the measures of each.
WAYS = {
    "energy shares": ("top_share_1", "top_share_4", "top_share_16"),
    "the first k values": ("effective_rank_k", "gini_k"),
}


def _rests_on(claim: Claim, differences: Mapping[str, Difference]) -> str:
    """Return a sentence that names the ways of comparing capacities that support the claim.

    A way supports the claim if at least one of its measures agrees with it and none contradicts.
    """
    directions = {claim.primary: claim.direction, **claim.secondary}
    supporting = []
    for way, names in WAYS.items():
        of_way = {
            agreement(differences[name], directions[name]) for name in names if name in differences
        }
        if 1 in of_way and -1 not in of_way:
            supporting.append(way)
    if len(supporting) == len(WAYS):
        return "Both energy shares and the first k values support the claim."
    if not supporting:
        return "Neither energy shares nor the first k values clearly support the claim."
    return f"Only {supporting[0]} support the claim: it rests on one of two ways of comparing."


def many(measured: Tables) -> Evidence:
    """Evidence on claim 2: the spectrum of full fine-tuning alone."""
    rows = measured.of("methods")
    differences, notes = single(rows, "full", {part.claim.primary: 0.5 for part in MANY})
    if differences:
        values = [row["top_share_1"] for row in rows if row["method"] == "lora"]
        if values:
            notes.append(f"For comparison, the top-1 share of LoRA is {mean_text(values)}.")
        notes.append(
            "ΔW is computed from float32 weights here; if weights are stored in bfloat16, part of"
            " a flat spectrum can be rounding noise."
        )
    rounded = measured.of("rounding_floor")
    return Evidence(differences, notes, [_rounded(rounded)] if rounded else [])


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
    for (ratio,), of_ratio in grouped(rows, "ratio").items():
        means = [mean(row[column] for row in of_ratio) for column in columns]
        cells.append([f"{ratio:g}", *("–" if n is None else f"{n:.3g}" for n in means)])
    title = "ΔW of full fine-tuning, scaled down and stored in bfloat16, means over seeds"
    return Supplement(title, cells)


# LoRA with more parameters than MultiLoRA, and the two methods with a ratio of learning rates.
RATES_AND_SIZES = (("multilora", "lora r=26"), ("multilora s×5", "lora+"))
TWO_BY_TWO = (
    ("n = 3 − n = 1, B zero", "multilora zero", "multilora n=1 zero"),
    ("n = 3 − n = 1, B Kaiming", "multilora", "multilora n=1"),
    ("B Kaiming − zero, n = 1", "multilora n=1", "multilora n=1 zero"),
    ("B Kaiming − zero, n = 3", "multilora", "multilora zero"),
)


def reduced(measured: Tables) -> Evidence:
    """Evidence on claim 3: concentration of MultiLoRA minus LoRA, and ablations of both."""
    rows, sweep = measured.of("methods"), measured.of("sweep")
    differences, notes = between(rows, "multilora", "lora", measures(REDUCED))
    if not differences:
        return Evidence(notes=notes)
    present = methods(rows)
    pairs = [(f"{a} − lora", a, "lora") for a in present if a not in ("lora", "full")]
    pairs += [(f"{a} − {b}", a, b) for a, b in RATES_AND_SIZES if {a, b} <= set(present)]
    supplements = [_compared("Adapters compared with one another", rows, pairs)]
    crossed = [(name, a, b) for name, a, b in TWO_BY_TWO if {a, b} <= set(present)]
    if crossed:
        title = "n and the start of B at equal n·r (s = 1 if B starts at zero, s = 0 if Kaiming)"
        supplements.append(_compared(title, rows, crossed))
    if swept := [row for row in sweep if row["method"] != "full"]:
        supplements.append(_at_every_rate(swept))
    return Evidence(differences, [*notes, _rates(rows, sweep)], supplements)


def better(measured: Tables) -> Evidence:
    """Evidence on claim 6: scores of MultiLoRA minus those of LoRA and of full fine-tuning."""
    rows = measured.of("methods")
    columns = ["score", *(f"score_{family}" for family in FAMILIES)]
    differences: dict[str, Difference] = {}
    notes: list[str] = []
    for other in ("lora", "full"):
        of_other, notes_of_other = between(rows, "multilora", other, columns)
        differences |= {f"{name} − {other}": of_other[name] for name in of_other}
        notes += [note for note in notes_of_other if note not in notes]
    if not differences:
        return Evidence(notes=notes)
    notes.append(_rates(rows, measured.of("sweep")))
    columns = ["score_validation", *columns[1:], "score"]
    supplements = [_scores("Scores, means over seeds", rows, columns, prefix="score_")]
    tasks = [column for column in rows[0] if column.startswith("task_")]
    if tasks:
        supplements.append(_scores("Scores by task", rows, tasks, prefix="task_"))
    return Evidence(differences, notes, supplements)


def _rates(rows: Sequence[Row], swept: Sequence[Row]) -> str:
    """Return sentences on the learning rates that were used, and on how they were chosen."""
    rates: dict[str, set[float]] = {}
    for row in rows:
        if row.get("learning_rate") is not None:
            rates.setdefault(row["method"], set()).add(row["learning_rate"])
    if not rates:
        return "The table does not give the learning rates."
    used = "; ".join(
        f"{method} {' and '.join(f'{rate:g}' for rate in sorted(of_method))}"
        for method, of_method in rates.items()
    )
    chosen = {row["method"]: row["learning_rate"] for row in swept if row["chosen"]}
    not_swept = [method for method, of_method in rates.items() if of_method != {chosen.get(method)}]
    tried: dict[str, list[float]] = {}
    for row in swept:
        tried.setdefault(row["method"], []).append(row["learning_rate"])
    at_end = [m for m in rates if m in chosen and chosen[m] in (min(tried[m]), max(tried[m]))]
    notes = [f"Learning rates: {used}."]
    if not_swept:
        notes.append(f"Not chosen by a sweep of the same method: {listed(not_swept)}.")
    if at_end:
        notes.append(
            "Chosen at the lowest or highest rate of the sweep, so that a better one may lie"
            f" outside it: {listed(at_end)}."
        )
    return " ".join(notes)


def _concentration(rows: Sequence[Row]) -> Supplement:
    """Table of the measures of concentration, one row per method."""
    headings = {
        "top_share_1": "top-1",
        "null_top_share_1": "top-1 by chance",
        "top_share_4": "top-4",
        "top_share_16": "top-16",
        "effective_rank_k": "eff. rank",
        "gini_k": "Gini",
        "held_k": "held",
        "democracy": "democracy",
    }
    cells = [["", "seeds", "parameters", *headings.values()]]
    for method in methods(rows):
        of_method = [row for row in rows if row["method"] == method]
        numbers = [over_seeds(rows, method, column) for column in headings]
        parameters = count_text(of_method[0].get("parameters"))
        cells.append([method, str(len(of_method)), parameters, *numbers])
    title = (
        "Concentration, means over seeds ± half their range; eff. rank, Gini and held (the share"
        f" of the energy) of the first {rows[0]['k']} values; democracy relative to each method's"
        " own capacity"
    )
    return Supplement(title, cells)


def _compared(title: str, rows: Sequence[Row], pairs: Sequence[tuple[str, str, str]]) -> Supplement:
    """Table of differences between methods, one row per pair.

    title: of the table.
    rows: of methods.csv.
    pairs: (name of the row, a, b) for the difference a − b.
    """
    columns = ("effective_rank_k", "top_share_1", "gini_k", "score")
    cells = [["", "n", "parameters", *(words_of(column) for column in columns)]]
    for name, a, b in pairs:
        differences, _ = between(rows, a, b, columns)
        n = max((len(d.values) for d in differences.values()), default=0)
        parameters = " / ".join(
            count_text(next(iter(by_seed(rows, method).values())).get("parameters"))
            for method in (a, b)
        )
        numbers = [
            number_text(differences[column]) if column in differences else "–" for column in columns
        ]
        cells.append([name, str(n), parameters, *numbers])
    return Supplement(title, cells)


def _at_every_rate(swept: Sequence[Row]) -> Supplement:
    """Table of concentration by method and learning rate, to compare methods at equal rates."""
    row_at = {(row["method"], row["learning_rate"]): row for row in swept}
    rates = sorted({row["learning_rate"] for row in swept})
    cells = [["", *(f"{rate:g}" for rate in rates)]]
    for method in methods(swept):
        of_method = [row_at.get((method, rate)) for rate in rates]
        cells.append([method, *("–" if row is None else _concentrated(row) for row in of_method)])
    title = (
        "Effective rank of s[:k] and top-1 share at every learning rate of the sweep, one seed;"
        " rates that were not chosen in brackets"
    )
    return Supplement(title, cells)


def _concentrated(row: Row) -> str:
    """Return effective rank and top-1 share, in brackets if the learning rate was not chosen."""
    rank = row.get("effective_rank_k")
    text = f"{'–' if rank is None else f'{rank:.1f}'}, {row['top_share_1']:.2f}"
    return text if row["chosen"] else f"({text})"


def _scores(title: str, rows: Sequence[Row], columns: Sequence[str], prefix: str) -> Supplement:
    """Table of scores, one row per column of methods.csv and one column per method.

    title: of the table.
    rows: of methods.csv.
    columns: the scores; "score" is called "mean".
    prefix: what is removed from the other columns' names.
    """
    of_methods = methods(rows)
    cells = [["", *of_methods]]
    for column in columns:
        name = column.removeprefix(prefix) if column != "score" else "mean"
        cells.append([name, *(over_seeds(rows, method, column) for method in of_methods)])
    return Supplement(title, cells)


# Claims 4a, 4b, 4c: overlap.csv, nearness.csv

# Left and right overlap minus the margin; the primary measure is their mean.
OVERLAP_SIDES = tuple(f"{side}_above_margin" for side in ("left", "right"))
INDEPENDENT = (
    Part(
        Claim(
            "MultiLoRA's modules are independent",
            "overlap_above_chance",
            direction=-1,
            delta=0.0,
            secondary=dict.fromkeys(OVERLAP_SIDES, -1),
        ),
        what="φ(r, r) between modules above chance, MultiLoRA",
        why="random modules have 0, equal ones 1 − chance; 0.1 is less than one direction of eight",
        against=MARGIN,
    ),
)
NEARER = {
    side: (
        Part(
            Claim(
                f"MultiLoRA is nearer to full fine-tuning, {side}",
                f"{side}_phi_k",
                direction=+1,
                delta=0.04,
                secondary={f"{side}_above_chance": +1, "log_distance": -1},
            ),
            what=f"φ(k, k) with full, {side}, MultiLoRA − LoRA",
            why="one direction of k = 24",
        ),
    )
    for side in ("left", "right")
}


def independent(measured: Tables) -> Evidence:
    """Evidence on claim 4a: the overlap between the modules of one MultiLoRA."""
    rows = [
        row | {name: row.get(name.replace("margin", "chance")) for name in OVERLAP_SIDES}
        for row in measured.of("overlap")
    ]
    against = dict.fromkeys(("overlap_above_chance", *OVERLAP_SIDES), MARGIN)
    differences, notes = single(rows, "multilora", against)
    if differences:
        above_zero, _ = single(rows, "multilora", {"overlap_above_chance": 0.0})
        if agreement(above_zero["overlap_above_chance"], +1) > 0:
            notes.append("The whole interval lies above chance, however small the overlap is.")
    return Evidence(differences, notes, [_overlaps(rows)] if rows else [])


def _overlaps(rows: Sequence[Row]) -> Supplement:
    """Table of the overlap between modules on both sides, one row per method."""
    headings = {
        "left_phi_k": "left",
        "left_chance_k": "left by chance",
        "right_phi_k": "right",
        "right_chance_k": "right by chance",
        "overlap_above_chance": "above chance",
        "cosine": "abs. cosine",
    }
    cells = [["", "n", "r", *headings.values()]]
    for method in methods(rows):
        first = next(row for row in rows if row["method"] == method)
        numbers = [over_seeds(rows, method, column) for column in headings]
        cells.append([method, str(first["n"]), str(first.get("r", "–")), *numbers])
    return Supplement("φ(r, r) between the modules of one run, means over pairs", cells)


def nearer_left(measured: Tables) -> Evidence:
    """Evidence on claim 4b: how near the output directions are to those of full fine-tuning."""
    return _nearer(measured, "left")


def nearer_right(measured: Tables) -> Evidence:
    """Evidence on claim 4c: how near the input directions are to those of full fine-tuning."""
    return _nearer(measured, "right")


def _nearer(measured: Tables, side: str) -> Evidence:
    rows = measured.of("nearness")
    if not rows:
        return Evidence(notes=["There is no nearness.csv; it needs two seeds of a method."])
    differences, notes = between(
        rows, "multilora", "lora", measures(NEARER[side]), reference="full"
    )
    return Evidence(differences, notes, [_repeatability(rows, side)] if differences else [])


def _repeatability(rows: Sequence[Row], side: str) -> Supplement:
    """Table of φ(k, k) with full fine-tuning and with a method's own other seeds."""
    cells = [["", "k", "with full", "with its own other seeds", "by chance", "log distance"]]
    for method in methods(rows):
        of_method = [row for row in rows if row["method"] == method]
        with_full = [row for row in of_method if row["reference"] == "full"]
        with_itself = [row for row in of_method if row["reference"] == method]
        chance = [row.get(f"{side}_chance_k") for row in with_full]
        cells.append(
            [
                method,
                str(with_full[0]["k"] if with_full else "–"),
                mean_text(row[f"{side}_phi_k"] for row in with_full),
                mean_text(row[f"{side}_phi_k"] for row in with_itself),
                mean_text(chance[:1]),
                mean_text(row.get("log_distance") for row in with_full),
            ]
        )
    title = f"φ(k, k), {side}, and log distance of the spectra, over pairs of different seeds"
    return Supplement(title, cells)
