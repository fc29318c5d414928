"""Print how an update changes over the steps of a run, as tables and in words."""

from collections.abc import Iterator, Mapping, Sequence

from analysis.numerics.statistics import median
from analysis.numerics.subspaces import SIDES
from analysis.results import Row, grouped
from analysis.tables.text import Block, Statement, Table, cell, counted

PLACE = ("run", "step", "module", "layer", "kind", "part")
SIZES = (
    "spectral_norm",
    "frobenius_norm",
    "top_share_1",
    "top_share_4",
    "top_share_16",
    "effective_rank",
    "democracy",
)
# Columns of `analysis.similarity` that compare a step with each of OTHERS.
SHARED = (
    "left_phi_1",
    "right_phi_1",
    "left_phi_k",
    "right_phi_k",
    "left_chance_k",
    "right_chance_k",
    "left_above_chance",
    "right_above_chance",
    "cosine",
)
OTHERS = ("previous", "last")
NUMBERS = (*SIZES, *(f"{column}_{other}" for other in OTHERS for column in SHARED))
COLUMNS = (*PLACE, *NUMBERS)

EXPLANATION = """\
‖ΔW‖_F, top-1, eff. rank, democracy: as analysis.spectrum prints them. φ(1), φ(k): share of the top
direction, and of the top k, that lies in those of the previous or of the last step, from 0 to 1,
with k the smaller rank; cosine: between the two ΔW as vectors. The A of a LoRA starts random and
moves little, so its input side looks settled early. Numbers are medians over modules. In words,
directions are those of the last step from the step on at which φ(k) with it stays at least 0.9 of
the way from chance to 1."""

# Heading, column of the summary, format.
PRINTED = (
    ("‖ΔW‖₂", "spectral_norm", ".3g"),
    ("‖ΔW‖_F", "frobenius_norm", ".3g"),
    ("top-1", "top_share_1", ".3f"),
    ("top-4", "top_share_4", ".3f"),
    ("eff. rank", "effective_rank", ".2f"),
    ("democracy", "democracy", ".3f"),
)
# The columns that a narrow terminal leaves out, the first of them first.
LEAVING = ("top-4", "‖ΔW‖₂")
SHARED_HEADINGS = (
    "step",
    "side",
    "previous φ(1)",
    "φ(k)",
    "cosine",
    "last φ(1)",
    "φ(k)",
    "cosine",
)
SETTLED = 0.9  # of the way from chance to 1: φ(k) with the last step, once directions have settled


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return one row per run and step: the median of each of NUMBERS over modules, if defined."""
    return [
        {"run": run, "step": step, "modules": len(of_step)}
        | {name: median(row[name] for row in of_step) for name in NUMBERS}
        for (run, step), of_step in sorted(grouped(rows, "run", "step").items())
    ]


def lines(rows: Sequence[Row], verdicts: Mapping[str, str]) -> Iterator[Block]:
    """Yield per run what was found in words, then two tables, sizes and shared directions.

    rows, verdicts: of `dynamics.analyse`.
    """
    for (run,), steps in grouped(summary(rows), "run").items():
        yield f"{run}, {counted(steps[0]['modules'], 'module')}"
        yield from map(Statement, words(steps))
        yield Statement(verdicts[run])
        yield ""
        yield _sizes(steps)
        yield ""
        yield _shared(steps)
        yield ""


def _sizes(steps: Sequence[Row]) -> Table:
    """One line per step with the size and the concentration of the update."""
    cells = [["step", *(heading for heading, _, _ in PRINTED)]]
    for line in steps:
        numbers = [cell(line[column], form) for _, column, form in PRINTED]
        cells.append([str(line["step"]), *numbers])
    return Table(cells, LEAVING)


def _shared(steps: Sequence[Row]) -> Table:
    """Two lines per step, left and right, with what it shares with the other steps."""
    cells = [list(SHARED_HEADINGS)]
    for line in steps:
        for side in SIDES:
            first = side == SIDES[0]
            numbers = []
            for other in OTHERS:
                numbers += [
                    cell(line[f"{side}_phi_1_{other}"], ".3f"),
                    cell(line[f"{side}_phi_k_{other}"], ".3f"),
                    cell(line[f"cosine_{other}"], ".3f") if first else "",
                ]
            cells.append([str(line["step"]) if first else "", side, *numbers])
    return Table(cells)


def words(steps: Sequence[Row]) -> Iterator[str]:
    """Yield in words how ΔW of one run grew and when its directions settled; steps: its summary."""
    first, last = steps[0], steps[-1]
    sizes = first["frobenius_norm"], last["frobenius_norm"]
    if sizes[0]:
        yield (
            f"From step {first['step']} to {last['step']} ‖ΔW‖_F goes from {sizes[0]:.3g} to"
            f" {sizes[1]:.3g}, {sizes[1] / sizes[0]:.2g} times."
        )
    for side, what in (("left", "output"), ("right", "input")):
        settled = _settled(steps, side)
        if settled is not None:
            when = f"are those of the last step from step {settled} on"
        elif any(_excess(step, side) is not None for step in steps[:-1]):
            when = "move until the end"
        else:
            continue
        yield f"The top k {what} directions ({side}) {when}."


def _settled(steps: Sequence[Row], side: str) -> int | None:
    """The first step from which on the directions stay those of the last step; None if none."""
    settled = None
    for step in reversed(steps[:-1]):
        excess = _excess(step, side)
        if excess is None or excess < SETTLED:
            break
        settled = step["step"]
    return settled


def _excess(step: Row, side: str) -> float | None:
    """φ(k) with the last step on a scale from 0 (chance) to 1 (the same directions).

    None if it is undefined, or if random directions would share half or more.
    """
    shared, chance = step[f"{side}_phi_k_last"], step[f"{side}_chance_k_last"]
    if shared is None or chance >= 0.5:
        return None
    return float((shared - chance) / (1 - chance))
