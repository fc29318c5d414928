"""Rows of a comparison → what a person reads: medians by projection, both sides, beside chance."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from analysis.numerics.statistics import mean, median
from analysis.numerics.subspaces import COLUMNS, CUTS, SIDES
from analysis.results import Row, grouped
from analysis.tables.text import aligned, cell

EXPLANATION = """\
φ(i): how much of the top i directions of one lies in the top i of the other, from 0 to 1 (Hu et al.
2021, 7), k the smaller rank; chance: of random ones, k/d; above chance: mean of φ(i) − i/d over
i = 1…k. left: output directions, right: input directions. Two LoRA that started from one seed share
their A at the start, and with it the right side. cosine: of the two ΔW as vectors. ‖a‖/‖b‖:
Frobenius norms. Numbers are medians over modules (of parts: means over pairs); – is undefined, as φ
is at a cut between equal singular values, or beyond the rank."""

NUMBERS = [name for name in COLUMNS if name != "undetermined"]
RUNS = ("run_a", "step_a", "run_b", "step_b")
MANY = 3  # more pairs than these get a line each, not one a projection


def summary(
    rows: Sequence[Row], average: Callable[[Iterable[float | None]], float | None] = median
) -> list[Row]:
    """One line a pair of runs and kind, then kind "all": counts, and averages where defined."""
    summarised = []
    for runs, of_pair in grouped(rows, *RUNS).items():
        kinds = [(kind, group) for (kind,), group in grouped(of_pair, "kind").items()]
        for kind, of_kind in [*kinds, ("all", of_pair)]:
            line: Row = dict(zip(RUNS, runs, strict=True)) | {"kind": kind}
            line |= {"modules": len({row["module"] for row in of_kind}), "pairs": len(of_kind)}
            line |= {name: average(row[name] for row in of_kind) for name in NUMBERS}
            summarised.append(line)
    return summarised


def lines(rows: Sequence[Row], inside: Sequence[Row], methods: Sequence[Row]) -> Iterator[str]:
    """The lines that a person reads: pairs of runs, parts within a run, methods."""
    summarised = grouped(summary(rows), *RUNS)
    if len(summarised) > MANY:
        yield "all modules"
        totals = [of_pair[-1] for of_pair in summarised.values()]
        yield from _table([(pair_name(line), line) for line in totals], "pair")
        yield ""
    else:
        for of_pair in summarised.values():
            yield f"{pair_name(of_pair[0])}, {of_pair[-1]['modules']} modules"
            yield from _table([(line["kind"], line) for line in of_pair], "kind")
            yield ""
    for of_run in grouped(summary(inside, mean), *RUNS).values():
        name, pairs = run_name(of_run[0], "a"), of_run[-1]["pairs"]
        yield f"{name}: its parts with one another, means of {pairs} pairs"
        yield from _table([(line["kind"], line) for line in of_run], "kind")
        yield ""
    if methods:
        yield from method_lines(methods)


def run_name(row: Row, side: str) -> str:
    """The run of one side of a pair, with its step."""
    run, step = row[f"run_{side}"], row[f"step_{side}"]
    return run if step is None else f"{run} step {step}"


def pair_name(row: Row) -> str:
    """Both runs of a pair; the steps of one run under one name."""
    if row["run_a"] == row["run_b"] and row["step_a"] is not None:
        return f"{row['run_a']} step {row['step_a']} ~ {row['step_b']}"
    return f"{run_name(row, 'a')} ~ {run_name(row, 'b')}"


def _table(labelled: Sequence[tuple[str, Row]], heading: str) -> Iterator[str]:
    """Two lines a label, left and right; what belongs to both stands in the first."""
    shown = [i for i in CUTS if any(line[f"left_phi_{i}"] is not None for _, line in labelled)]
    headings = [heading, "modules", "k", "cosine", "‖a‖/‖b‖", "side", *(f"φ({i})" for i in shown)]
    cells = [[*headings, "φ(k)", "chance", "above chance"]]
    for label, line in labelled:
        both = [str(line["modules"]), cell(line["k"], "g")]
        both += [cell(line["cosine"], ".3f"), cell(line["norm_ratio"], ".3g")]
        for side in SIDES:
            first = [label, *both] if side == SIDES[0] else [""] * 5
            columns = (*(f"phi_{i}" for i in shown), "phi_k", "chance_k", "above_chance")
            numbers = [cell(line[f"{side}_{column}"], ".3f") for column in columns]
            cells.append([*first, side, *numbers])
    return aligned(cells)


def method_lines(methods: Sequence[Row]) -> Iterator[str]:
    """φ between methods, the repeatability of each on the diagonal."""
    names = list(
        dict.fromkeys(name for row in methods for name in (row["method_a"], row["method_b"]))
    )
    by_pair = {frozenset((row["method_a"], row["method_b"])): row for row in methods}
    k = max(row["k"] for row in methods)
    yield f"φ({k}) between seeds of one method (its repeatability) and between methods, means over"
    yield "modules and pairs of different seeds; in brackets above chance, averaged over i = 1…k"
    for side in SIDES:
        chance = [row[f"{side}_chance_k"] for row in methods if row["k"] == k]
        cells = [[f"{side} (chance {cell(min(chance), '.3f')})", *names]]
        for one in names:
            of_one = [by_pair.get(frozenset((one, other))) for other in names]
            cells.append([one, *(_phi_cell(row, side, k) for row in of_one)])
        yield from aligned(cells)
    yield ""


def _phi_cell(row: Row | None, side: str, k: int) -> str:
    """φ and its mean above chance; at which k, where the two methods have fewer directions."""
    if row is None:
        return "–"
    fewer = "" if row["k"] == k else f" at {row['k']}"
    above = cell(row[f"{side}_above_chance"], "+.3f")
    return f"{cell(row[f'{side}_phi_k'], '.3f')} ({above}){fewer}"
