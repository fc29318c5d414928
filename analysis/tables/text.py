"""Format numbers, and align text in columns, for printed tables."""

from collections.abc import Iterator, Sequence


def cell(value: float | None, form: str) -> str:
    """Format one number; a dash if it is undefined."""
    return "–" if value is None else format(value, form)


def counted(n: int, noun: str) -> str:
    """A number with its noun: 1 module, 2 modules."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def aligned(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield one line per row of `cells`, columns two spaces apart; only the first is left-aligned.

    cells: one or more rows of equal length; the first is usually the heading.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *padded]).rstrip()


def run_heading(run: str, step: int | None) -> str:
    """The name of a checkpoint above its table: the run and, if it has one, the step."""
    return run if step is None else f"{run}  step {step}"
