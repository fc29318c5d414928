"""Tables of the steps of a run, and what they say in words."""

from collections.abc import Iterator, Mapping, Sequence

from analysis.numerics.statistics import median
from analysis.numerics.subspaces import SIDES
from analysis.results import Row, grouped
from analysis.tables.text import aligned, cell

PLACE = ("run", "step", "module", "layer", "kind", "part")


SIZES = (
    *("spectral_norm", "frobenius_norm", "top_share_1", "top_share_4", "top_share_16"),
    *("effective_rank", "democracy"),
)


SHARED = (
    *("left_phi_1", "right_phi_1", "left_phi_k", "right_phi_k"),
    *("left_chance_k", "right_chance_k", "left_above_chance", "right_above_chance", "cosine"),
)


OTHERS = ("previous", "last")


COLUMNS = (
    *PLACE,
    *SIZES,
    *(f"{column}_{other}" for other in OTHERS for column in SHARED),
)


EXPLANATION = """\
‖ΔW‖_F, top-1, eff. rank, democracy: as analysis.spectrum prints them. φ(1), φ(k): how much of the
top direction, of the top k, lies in those of the other step, from 0 to 1, with k the smaller rank;
cosine: of the two ΔW as vectors. The A of a LoRA starts random and moves little, so that its input
side looks settled early. Numbers are medians over modules. Directions are those of the last step
from where φ(k) with it stays at 0.9 of what it can be above chance."""


def summary(rows: Sequence[Row]) -> list[Row]:
    """A line a run and step: medians over modules where they are defined."""
    numbers = COLUMNS[len(PLACE) :]
    return [
        {"run": run, "step": step, "modules": len(of_step)}
        | {name: median(row[name] for row in of_step) for name in numbers}
        for (run, step), of_step in sorted(grouped(rows, "run", "step").items())
    ]


# Heading, column of the summary, format.
PRINTED = (
    ("‖ΔW‖₂", "spectral_norm", ".3g"),
    ("‖ΔW‖_F", "frobenius_norm", ".3g"),
    ("top-1", "top_share_1", ".3f"),
    ("top-4", "top_share_4", ".3f"),
    ("eff. rank", "effective_rank", ".2f"),
    ("democracy", "democracy", ".3f"),
)


SHARED_HEADINGS = (
    *("step", "side", "with the one before: φ(1)", "φ(k)", "cosine"),
    *("with the last: φ(1)", "φ(k)", "cosine"),
)


SETTLED = 0.9  # of what φ(k) with the last step can be above chance: it has found its place


def lines(rows: Sequence[Row], verdicts: Mapping[str, str]) -> Iterator[str]:
    """What a person reads: two tables a run, and below them what they say in words."""
    for (run,), of_run in grouped(summary(rows), "run").items():
        yield f"{run}, {of_run[0]['modules']} modules"
        sizes = [["step", *(heading for heading, _, _ in PRINTED)]]
        for line in of_run:
            sizes.append([str(line["step"]), *(cell(line[c], form) for _, c, form in PRINTED)])
        yield from aligned(sizes)
        yield ""
        shared = [list(SHARED_HEADINGS)]
        for line in of_run:
            for side in SIDES:
                numbers = [
                    line[f"{column}_{other}"]
                    for other in OTHERS
                    for column in (f"{side}_phi_1", f"{side}_phi_k", "cosine")
                ]
                cells = [cell(number, ".3f") for number in numbers]
                if side != SIDES[0]:
                    cells[2] = cells[5] = ""
                shared.append([str(line["step"]) if side == SIDES[0] else "", side, *cells])
        yield from aligned(shared)
        yield ""
        yield from words(of_run)
        yield verdicts[run]
        yield ""


def words(steps: Sequence[Row]) -> Iterator[str]:
    """What the summary of one run says: how ΔW grew, and when its directions settled."""
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
    """The first step from which on the directions are those of the last; None where none is."""
    settled = None
    for step in reversed(steps[:-1]):
        excess = _excess(step, side)
        if excess is None or excess < SETTLED:
            break
        settled = step["step"]
    return settled


def _excess(step: Row, side: str) -> float | None:
    """φ(k) with the last step, as far above chance as it can be: from 0, by chance, to 1.

    None where it is undefined, or where random directions would share half of it.
    """
    shared, chance = step[f"{side}_phi_k_last"], step[f"{side}_chance_k_last"]
    if shared is None or chance >= 0.5:
        return None
    return float((shared - chance) / (1 - chance))
