"""Print updates compared with their base: sizes, amplification, and where ΔW lands in W0."""

from collections.abc import Iterator, Sequence

from analysis.base.landing import DECILES, EPSILON, EPSILONS, landing_chance
from analysis.numerics.statistics import mean, median
from analysis.numerics.subspaces import SIDES
from analysis.results import Row, grouped
from analysis.tables.text import Block, Table, cell, run_heading

EXPLANATION = """\
‖ΔW‖/‖W0‖ in the spectral and the Frobenius norm. amplified: ‖ΔW‖_F / ‖U_kᵀ W0 V_k‖_F, the size of
ΔW over what W0 does between the top k directions of ΔW (Hu et al. 2021, 7.3), at k = 4, 16 and its
rank. lands: share of ΔW's energy in the tenth of W0's singular vectors with the largest values, and
in the tenth with the smallest; in brackets what random directions would have; left: output
directions, right: input. intruders: how many of the top 10 left singular vectors of W0 + ΔW
resemble none of W0, |cosine| < ε = 0.5 (arXiv 2410.21228); in brackets for random updates of that
shape, capacity and norm in the place of ΔW; below the table, means for other ε. Numbers are medians
over modules; – means undefined."""

# Heading, column, format.
PRINTED = (
    ("‖ΔW‖₂/‖W0‖₂", "relative_spectral", ".3g"),
    ("‖ΔW‖_F/‖W0‖_F", "relative_frobenius", ".3g"),
    ("amplified 4", "amplification_4", ".3g"),
    ("16", "amplification_16", ".3g"),
    ("rank", "amplification_k", ".3g"),
)
ENDS = {"first": 1, "last": DECILES}  # the printed deciles of W0's singular vectors


def lines(rows: Sequence[Row]) -> Iterator[Block]:
    """Yield one table per checkpoint, one line per kind of module.

    rows: of `landing.analyse`. Landing and intruders are shown if they were computed.
    """
    for (run, step), of_run in grouped(rows, "run", "step").items():
        yield f"{run_heading(run, step)}  compared with its base"
        landed = any(row["left_1"] is not None for row in of_run)
        counted = any(row["intruders"] is not None for row in of_run)
        cells = [_headings(landed, counted)]
        kinds = {kind: group for (kind,), group in grouped(of_run, "kind").items()}
        for kind, group in [*kinds.items(), ("all", of_run)]:
            cells.append([kind, str(len(group)), *_numbers(group, landed, counted)])
        yield Table(cells)
        if counted:
            yield from _curves(of_run)
        yield ""


def _headings(landed: bool, counted: bool) -> list[str]:
    headings = ["kind", "modules", *(heading for heading, _, _ in PRINTED)]
    if landed:
        headings += [f"lands {side} {end}" for side in SIDES for end in ENDS]
    return [*headings, "intruders"] if counted else headings


def _numbers(rows: Sequence[Row], landed: bool, counted: bool) -> list[str]:
    numbers = [cell(median(row[column] for row in rows), form) for _, column, form in PRINTED]
    if landed:
        numbers += _landed(rows)
    if counted:
        of_null = mean(row[f"null_intruders_{EPSILON}"] for row in rows)
        numbers.append(
            f"{cell(median(row['intruders'] for row in rows), 'g')} ({cell(of_null, '.2g')})"
        )
    return numbers


def _curves(rows: Sequence[Row]) -> Iterator[Block]:
    """Yield means over modules of the numbers of intruders by ε, with those of random updates."""
    cells = [["intruders below ε =", *(f"{epsilon:g}" for epsilon in EPSILONS)]]
    for name, prefix in (("ΔW", ""), ("random updates", "null_")):
        means = (mean(row[f"{prefix}intruders_{epsilon}"] for row in rows) for epsilon in EPSILONS)
        cells.append([name, *(cell(number, ".2g") for number in means)])
    yield ""
    yield Table(cells)


def _landed(rows: Sequence[Row]) -> list[str]:
    """The first and last deciles of both sides, with those of random directions in brackets."""
    cells = []
    for side in SIDES:
        for decile in ENDS.values():
            share = median(row[f"{side}_{decile}"] for row in rows)
            by_chance = median(
                landing_chance(row["d_out"], row["d_in"]).columns()[f"{side}_{decile}"]
                for row in rows
            )
            cells.append(f"{cell(share, '.3f')} ({cell(by_chance, '.3f')})")
    return cells
