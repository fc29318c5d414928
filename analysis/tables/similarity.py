"""Summarise the rows of `analysis.similarity` by kind of module, and print the summary."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from analysis.numerics.statistics import mean, median
from analysis.numerics.subspaces import COLUMNS, CUTS, SIDES
from analysis.results import RUNS, Row, grouped, pair_name, run_name
from analysis.tables.text import Block, Table, cell, counted

EXPLANATION = """\
φ(i): share of the top i directions of one update that lies in the top i of the other, from 0 to 1
(Hu et al. 2021, 7); k: the smaller rank; chance: φ(k) of random directions, k/d; above chance: mean
of φ(i) − i/d over i = 1…k. left: output directions, right: input directions. Two LoRA adapters with
one seed share their A, and with it their right side, at the start. cosine: between the two ΔW as
vectors. ‖a‖/‖b‖: ratio of the Frobenius norms. Numbers are medians over modules (for parts, means
over pairs); – is undefined, such as φ(i) for i beyond the rank or at a cut between singular values
that the stored numbers cannot separate; a line below the table counts such cuts."""

NUMBERS = [name for name in COLUMNS if name != "undetermined"]
# The columns that a narrow terminal leaves out, the first of them first.
LEAVING = ("φ(16)", "φ(8)", "φ(4)", "modules", "k", "‖a‖/‖b‖", "φ(1)")
MANY = 3  # more pairs of runs than this are printed on one line each


def summary(
    rows: Sequence[Row], average: Callable[[Iterable[float | None]], float | None] = median
) -> list[Row]:
    """Return one row per pair of runs and kind, then one with kind "all".

    Each has the numbers of modules and of pairs of updates, and the average of each of NUMBERS over
    the pairs in which it is defined.
    """
    summarised = []
    for runs, of_pair in grouped(rows, *RUNS).items():
        kinds = [(kind, group) for (kind,), group in grouped(of_pair, "kind").items()]
        for kind, of_kind in [*kinds, ("all", of_pair)]:
            line: Row = dict(zip(RUNS, runs, strict=True)) | {"kind": kind}
            line |= {"modules": len({row["module"] for row in of_kind}), "pairs": len(of_kind)}
            line |= {name: average(row[name] for row in of_kind) for name in NUMBERS}
            summarised.append(line)
    return summarised


def lines(rows: Sequence[Row], inside: Sequence[Row], methods: Sequence[Row]) -> Iterator[Block]:
    """Yield the printed tables: pairs of runs, parts within each run, methods.

    rows: of pairs of updates in different runs.
    inside: of pairs of parts in one run.
    methods: of `repeatability.between`.
    """
    summarised = grouped(summary(rows), *RUNS)
    pairs = grouped(rows, *RUNS)
    if len(summarised) > MANY:
        yield "all modules"
        totals = [of_pair[-1] for of_pair in summarised.values()]
        yield _table([(pair_name(line), line) for line in totals], "pair")
        yield from _left_out(rows)
        yield ""
    else:
        for runs, of_pair in summarised.items():
            yield f"{pair_name(of_pair[0])}, {counted(of_pair[-1]['modules'], 'module')}"
            yield _table([(line["kind"], line) for line in of_pair], "kind")
            yield from _left_out(pairs[runs])
            yield ""
    parts = grouped(inside, *RUNS)
    for runs, of_run in grouped(summary(inside, mean), *RUNS).items():
        name, number = run_name(of_run[0], "a"), counted(of_run[-1]["pairs"], "pair")
        yield f"{name}: its parts compared with one another, means of {number}"
        yield _table([(line["kind"], line) for line in of_run], "kind")
        yield from _left_out(parts[runs])
        yield ""
    if methods:
        yield from method_lines(methods)


def _left_out(rows: Sequence[Row]) -> Iterator[str]:
    """Yield in how many pairs of updates each φ(i) is undetermined; nothing if it is in none."""
    cuts = Counter(int(cut) for row in rows for cut in (row["undetermined"] or "").split())
    if cuts:
        numbers = ", ".join(f"φ({cut}) in {cuts[cut]}" for cut in sorted(cuts))
        yield f"undetermined and left out: {numbers} of {counted(len(rows), 'pair')}"


def _table(labelled: Sequence[tuple[str, Row]], heading: str) -> Table:
    """Two lines per label, left and right; numbers for both sides stand on the first."""
    shown = [i for i in CUTS if any(line[f"left_phi_{i}"] is not None for _, line in labelled)]
    headings = [heading, "modules", "k", "cosine", "‖a‖/‖b‖", "side", *(f"φ({i})" for i in shown)]
    cells = [[*headings, "φ(k)", "chance", "above chance"]]
    columns = [*(f"phi_{i}" for i in shown), "phi_k", "chance_k", "above_chance"]
    for label, line in labelled:
        both = [str(line["modules"]), cell(line["k"], "g")]
        both += [cell(line["cosine"], ".3f"), cell(line["norm_ratio"], ".3g")]
        for side in SIDES:
            first = [label, *both] if side == SIDES[0] else [""] * 5
            numbers = [cell(line[f"{side}_{column}"], ".3f") for column in columns]
            cells.append([*first, side, *numbers])
    return Table(cells, LEAVING)


def method_lines(methods: Sequence[Row]) -> Iterator[Block]:
    """Yield a table of φ between methods per side, with their repeatability on the diagonal.

    methods: at least one row of `repeatability.between`.
    """
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
        yield Table(cells)
    yield ""


def _phi_cell(row: Row | None, side: str, k: int) -> str:
    """φ and its mean above chance; names its own k if the two methods have fewer directions."""
    if row is None:
        return "–"
    fewer = "" if row["k"] == k else f" at {row['k']}"
    above = cell(row[f"{side}_above_chance"], "+.3f")
    return f"{cell(row[f'{side}_phi_k'], '.3f')} ({above}){fewer}"
