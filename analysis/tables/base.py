"""Rows of `against_base` → what a person reads: sizes, amplification, where ΔW lands."""

from collections.abc import Iterator, Sequence

from analysis.base.landing import DECILES, landing_chance
from analysis.numerics.statistics import median
from analysis.numerics.subspaces import SIDES
from analysis.results import Row, grouped
from analysis.tables.text import aligned, cell

EXPLANATION = """\
‖ΔW‖/‖W0‖ in the spectral and the Frobenius norm. amplified: ‖ΔW‖_F over ‖U_kᵀW0V_k‖_F, what W0 does
between the top k directions of ΔW (Hu et al. 2021, 7.3), at k = 4, 16 and its rank. lands: share of
ΔW's energy in the tenth of W0's singular vectors with the largest values, and in the tenth with the
smallest, in brackets by chance; left: output directions, right: input. intruders: of the top 10
left singular vectors of W0 + ΔW, how many are not in W0, |cosine| < 0.5 (arXiv 2410.21228). Numbers
are medians over modules; – is undefined, or was not asked for."""

PRINTED = (
    ("‖ΔW‖₂/‖W0‖₂", "relative_spectral", ".3g"),
    ("‖ΔW‖_F/‖W0‖_F", "relative_frobenius", ".3g"),
    ("amplified 4", "amplification_4", ".3g"),
    ("16", "amplification_16", ".3g"),
    ("rank", "amplification_k", ".3g"),
)


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """A block a checkpoint, a line a projection."""
    for (run, step), of_run in grouped(rows, "run", "step").items():
        yield f"{run}{'' if step is None else f'  step {step}'}  beside its base"
        landed = any(row["left_1"] is not None for row in of_run)
        counted = any(row["intruders"] is not None for row in of_run)
        headings = ["kind", "modules", *(heading for heading, _, _ in PRINTED)]
        headings += [f"lands {side} {end}" for side in SIDES for end in ENDS] if landed else []
        cells = [[*headings, *(["intruders"] if counted else [])]]
        kinds = {kind: group for (kind,), group in grouped(of_run, "kind").items()}
        for kind, group in [*kinds.items(), ("all", of_run)]:
            numbers = [cell(median(row[c] for row in group), form) for _, c, form in PRINTED]
            numbers += _landed(group) if landed else []
            if counted:
                numbers.append(cell(median(row["intruders"] for row in group), "g"))
            cells.append([kind, str(len(group)), *numbers])
        yield from aligned(cells)
        yield ""


ENDS = {"first": 1, "last": DECILES}


def _landed(rows: Sequence[Row]) -> list[str]:
    """The first and last decile of either side, with chance."""
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
