"""Cells and aligned columns of the tables that are printed."""

from collections.abc import Iterator, Sequence


def cell(value: float | None, form: str) -> str:
    """A number in a table; a dash where it is undefined."""
    return "–" if value is None else format(value, form)


def aligned(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of columns two blanks apart, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *padded]).rstrip()
