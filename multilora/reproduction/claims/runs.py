"""Evidence on claims 1a, 3 and 6: concentration and scores of LoRA, MultiLoRA and full."""

from collections.abc import Sequence

import numpy as np

from analysis.numerics.statistics import CONFIDENCE, Claim, Difference
from analysis.results import Row, grouped
from multilora.reproduction.claims.evidence import (
    Evidence,
    Part,
    Supplement,
    between,
    by_seed,
    measures,
    methods,
)
from multilora.reproduction.claims.wording import (
    AT_EQUAL_LOSS,
    count_text,
    listed,
    mean_text,
    number_text,
    over_seeds,
    words_of,
)
from multilora.reproduction.tables import LOSS, SCORE, Tables
from multilora.tasks.example import FAMILIES

# Claims 1a, 3a, 3b, 6a and 6b: methods.csv, dynamics.csv

DOMINANCE = tuple(
    Part(
        Claim(
            f"LoRA is dominated, {how}",
            measure,
            direction=+1,
            delta=0.1,
            secondary=secondary,
        ),
        what=f"top-1 share{how}, LoRA − full",
        why="a tenth of the energy",
    )
    for measure, how, secondary in (
        (
            "top_share_1_above_null",
            " beyond the null",
            {
                "top_share_4_above_null": +1,
                "top_share_16_above_null": +1,
                "effective_rank_k_of_null": -1,
                "gini_k_above_null": +1,
            },
        ),
        ("top_share_1", "", {}),
    )
)
HEAD, TAIL = (
    tuple(
        Part(
            Claim(
                f"MultiLoRA is less dominated: {end}{when}",
                f"{measure}{when}",
                direction=direction,
                delta=delta,
                secondary={f"{name}{when}": sign for name, sign in secondary.items()},
            ),
            what=f"{words_of(measure)}{when}, MultiLoRA − LoRA",
            why=why,
        )
        for when in ("", AT_EQUAL_LOSS)
    )
    for end, measure, direction, delta, secondary, why in (
        ("head", "top_share_1", -1, 0.02, {"top_share_4": -1}, "a fiftieth of the energy"),
        ("tail", "effective_rank_k", +1, 1.0, {"gini_k": -1}, "one more direction in even use"),
    )
)
BETTER = {
    (other, by): (
        Part(
            Claim(
                f"MultiLoRA is better than {other}",
                by,
                direction=direction,
                delta=0.01,
                secondary={f"{by}_{family}": direction for family in FAMILIES} | beside,
            ),
            what=f"{what}, MultiLoRA − {name}",
            why=why,
        ),
    )
    for other, name in (("lora", "LoRA"), ("full", "full"))
    for by, direction, beside, what, why in (
        (SCORE, +1, {}, "mean score",
         "a point is about the standard error of one run's mean over the 1,500 test items"),
        (LOSS, -1, {SCORE: +1}, "loss per token of held-out answers, mean over families",
         "one per cent of the likelihood of a token"),
    )
}  # fmt: skip


def dominance(measured: Tables) -> Evidence:
    """Evidence on claim 1a: concentration of LoRA minus that of full fine-tuning."""
    rows = measured.of("methods")
    differences, notes = between(rows, "lora", "full", measures(DOMINANCE))
    supplements = [_concentration(rows)] if differences else []
    return Evidence(differences, notes, supplements)


# LoRA with more parameters than MultiLoRA, and the two methods with a ratio of learning rates.
RATES_AND_SIZES = (("multilora", "lora r=26"), ("multilora s×5", "lora+"))
TWO_BY_TWO = (
    ("n = 3 − n = 1, B zero", "multilora zero", "multilora n=1 zero"),
    ("n = 3 − n = 1, B Kaiming", "multilora", "multilora n=1"),
    ("B Kaiming − zero, n = 1", "multilora n=1", "multilora n=1 zero"),
    ("B Kaiming − zero, n = 3", "multilora", "multilora zero"),
)


def head(measured: Tables) -> Evidence:
    """Evidence on claim 3a: the top-1 share of MultiLoRA minus that of LoRA."""
    return _reduced(measured, HEAD)


def tail(measured: Tables) -> Evidence:
    """Evidence on claim 3b: the evenness of the first k values, and ablations of both methods."""
    evidence = _reduced(measured, TAIL)
    rows, sweep = measured.of("methods"), measured.of("sweep")
    if not evidence.differences:
        return evidence
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
    notes = [*evidence.notes, _rates(rows, sweep)]
    return Evidence(evidence.differences, notes, supplements)


def _reduced(measured: Tables, parts: Sequence[Part]) -> Evidence:
    """MultiLoRA − LoRA by the measures of the parts, after equal steps and at equal loss."""
    columns = [name for name in measures(parts) if not name.endswith(AT_EQUAL_LOSS)]
    differences, notes = between(measured.of("methods"), "multilora", "lora", columns)
    rows, notes_on_loss = at_equal_loss(measured.of("dynamics"))
    at_loss, notes_of_rows = between(rows, "multilora", "lora", columns) if rows else ({}, [])
    differences |= {f"{name}{AT_EQUAL_LOSS}": at_loss[name] for name in at_loss}
    return Evidence(differences, [*notes, *notes_on_loss, *notes_of_rows])


def at_equal_loss(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Return ({method, seed, k, measures} of LoRA and MultiLoRA at equal validation loss, notes).

    rows: of dynamics.csv. The loss of a seed is the lowest that both methods reach. Each is taken
    where it first reaches it, interpolated linearly between the steps before and after.
    """
    if not any("validation_loss" in row for row in rows):
        return [], ["dynamics.csv does not give the validation loss: equal loss is not measured."]
    found: list[Row] = []
    losses = []
    for (seed,), of_seed in grouped(rows, "seed").items():
        curves = {
            method: sorted(of_method, key=lambda row: row["step"])
            for (method,), of_method in grouped(of_seed, "method").items()
            if method in ("lora", "multilora")
        }
        if len(curves) < 2:
            continue
        loss = max(min(row["validation_loss"] for row in curve) for curve in curves.values())
        losses.append(loss)
        for method, curve in curves.items():
            found.append({"method": method, "seed": seed, **_at_loss(curve, loss)})
    notes = [f"Equal validation loss: {mean_text(losses)} nats."] if losses else []
    return found, notes


def _at_loss(curve: Sequence[Row], loss: float) -> Row:
    """Return the measures where a run first reaches a loss; curve: its rows by step."""
    place = next(i for i, row in enumerate(curve) if row["validation_loss"] <= loss)
    after, before = curve[place], curve[max(place - 1, 0)]
    gap = before["validation_loss"] - after["validation_loss"]
    share = (before["validation_loss"] - loss) / gap if gap else 1.0
    columns = ("top_share_1", "top_share_4", "effective_rank_k", "gini_k")
    at = {name: before[name] + share * (after[name] - before[name]) for name in columns}
    return at | {"k": after["k"]}


def better_than_lora(measured: Tables) -> Evidence:
    """Evidence on claim 6a: scores of MultiLoRA minus those of LoRA."""
    return _better(measured, "lora")


def better_than_full(measured: Tables) -> Evidence:
    """Evidence on claim 6b: scores of MultiLoRA minus those of full fine-tuning."""
    evidence = _better(measured, "full")
    rows = measured.of("methods")
    if not evidence.differences:
        return evidence
    by_loss = measured.judged_by == LOSS
    supplements = [
        _scores(title, rows, [f"{by}_{what}" for what in ("validation", *FAMILIES)] + [by], by)
        for by, title in (
            (SCORE, "Scores, means over seeds"),
            (LOSS, "Loss per token of answers, nats, means over seeds"),
        )
        if by in rows[0] and (by == SCORE or by_loss)
    ]
    losses = [column for column in rows[0] if column.startswith("task_nll_")]
    tasks = [c for c in rows[0] if c.startswith("task_") and c not in losses]
    if tasks:
        supplements.append(_scores("Scores by task", rows, tasks, "task"))
    if losses and by_loss:
        supplements.append(_scores("Loss by task", rows, losses, "task_nll"))
    notes = [*evidence.notes, _rates(rows, measured.of("sweep"))]
    return Evidence(evidence.differences, notes, supplements)


def _better(measured: Tables, other: str) -> Evidence:
    by = measured.judged_by
    parts = BETTER[other, by]
    columns = measures(parts)
    differences, notes = between(measured.of("methods"), "multilora", other, columns)
    if by in differences and (seeds := seeds_needed(differences[by], parts[0].claim.delta)):
        wanted = "1 point" if by == SCORE else f"{parts[0].claim.delta:g} nats"
        notes.append(
            f"With this spread over seeds, an interval of ±{wanted} would need {seeds} seeds."
        )
    return Evidence(differences, notes)


def seeds_needed(difference: Difference, half: float) -> int | None:
    """Number of seeds for a Student interval of ± `half`, with the standard deviation seen here.

    None for fewer than two seeds, or for more than a million.
    """
    from scipy.special import stdtrit

    if len(difference.values) < 2:
        return None
    spread = float(np.std(difference.values, ddof=1))
    n = 2
    while stdtrit(n - 1, (1 + CONFIDENCE) / 2) * spread / n**0.5 > half:
        n += 1
        if n > 10**6:
            return None
    return n


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


def _scores(title: str, rows: Sequence[Row], columns: Sequence[str], by: str) -> Supplement:
    """Table of scores or losses, one row per column of methods.csv and one column per method.

    title: of the table; rows: of methods.csv; columns: of numbers called BY_NAME, or BY, the mean.
    """
    of_methods = methods(rows)
    cells = [["", *of_methods]]
    for column in columns:
        name = "mean" if column == by else column.removeprefix(f"{by}_")
        cells.append([name, *(over_seeds(rows, method, column) for method in of_methods)])
    return Supplement(title, cells)
