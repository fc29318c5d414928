"""Make lines and tables of text, and fit them to the width of a terminal."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from analysis.names import printable

SPARKS = "▁▂▃▄▅▆▇█"
NARROWEST = 16  # labels are not shortened to fewer characters


@dataclass(frozen=True, eq=False)
class Table:
    """A table of text.

    cells: rows of equal length; the first is the heading, the first column holds labels.
    leaving: headings in the order in which their columns leave a table that is too wide, the least
        important first; the other columns always stay.
    """

    cells: Sequence[Sequence[str]]
    leaving: Sequence[str] = ()


class Statement(str):
    """A sentence that says what was found."""

    __slots__ = ()


Block = str | Table


def cell(value: float | None, form: str) -> str:
    """Format one number; a dash if it is undefined."""
    return "–" if value is None else format(value, form)


def counted(n: int, noun: str) -> str:
    """A number with its noun: 1 module, 2 modules."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def percent(share: float) -> str:
    """A share in per cent, with the precision of a sentence: 3 %, 0.4 %, under 0.1 %.

    >>> percent(0.903), percent(0.004), percent(0.0)
    ('90 %', '0.4 %', 'under 0.1 %')
    """
    value = 100 * share
    if value < 0.1:
        return "under 0.1 %"
    return f"{value:.2g} %" if value < 1 else f"{value:.0f} %"


def run_heading(run: str, step: int | None) -> str:
    """The name of a checkpoint above its table: the run and, if it has one, the step."""
    return run if step is None else f"{run}  step {step}"


def sparkline(values: Iterable[float]) -> str:
    """One block character per value in [0, 1]; the lowest for 0, the highest for 1.

    >>> sparkline([1.0, 0.5, 0.0])
    '█▄▁'
    """
    top = len(SPARKS)
    return "".join(SPARKS[min(top, max(1, round(top * value))) - 1] for value in values)


def shortened(names: Sequence[str], width: int) -> list[str]:
    """The names without the beginnings of those that are longer than `width`.

    Names that differ still do, for which they may be longer.

    >>> shortened(["a-long-name", "b-long-name", "c"], width=5), shortened(["a-long-name"], width=5)
    (['a-long-name', 'b-long-name', 'c'], ['…name'])
    """
    longest = max(map(len, names), default=0)
    for size in range(width, longest):
        short = [
            name if len(name) <= size else f"…{name[len(name) - size + 1 :]}" for name in names
        ]
        if len(set(short)) == len(set(names)):
            return short
    return list(names)


def translated(block: Block, table: Mapping[int, int | str]) -> Block:
    """Return a block with its characters replaced as by `str.translate`."""
    if not isinstance(block, Table):
        return type(block)(block.translate(table))
    cells = [[text.translate(table) for text in row] for row in block.cells]
    return Table(cells, [heading.translate(table) for heading in block.leaving])


def fit(blocks: Iterable[Block], width: int) -> tuple[list[Block], list[str]]:
    """Return the blocks as they fit `width` characters, and the headings of columns left out.

    Lines that are too long are wrapped; empty lines that follow one another become one. Of a table
    that is too wide, labels are shortened to half the width, then columns leave in their order,
    then labels are shortened further, or the last columns continue in another table below. Control
    characters are escaped.
    """
    fitted: list[Block] = []
    left_out: dict[str, None] = {}
    for block in blocks:
        if isinstance(block, Table):
            tables, headings = _fitted(block, width)
            for table in tables:
                fitted += [table] if table is tables[0] else ["", table]
            left_out |= dict.fromkeys(headings)
        else:
            lines = [type(block)(line) for line in _wrapped(block, width)]
            fitted += lines if lines != [""] or fitted[-1:] != [""] else []
    return fitted, list(left_out)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Yield the lines of a text; its paragraphs are filled if a line of theirs is too long."""
    for i, paragraph in enumerate(text.split("\n\n")):
        if i:
            yield ""
        lines = [printable(line) for line in paragraph.split("\n")]
        if max(map(len, lines)) > width:
            joined = " ".join(lines)
            lines = textwrap.wrap(joined, width, break_long_words=False, break_on_hyphens=False)
        yield from lines


def _fitted(table: Table, width: int) -> tuple[list[Table], list[str]]:
    """Return the tables that one becomes, see `fit`, and the headings that are left out."""
    labels, *columns = ([printable(text) for text in column] for column in _columns(table.cells))
    left_out = []
    if _width([labels, *columns]) > width:
        labels = shortened(labels, width // 2)
    for heading in table.leaving:
        staying = [column for column in columns if column[0] != heading]
        if _width([labels, *columns]) > width and len(staying) < len(columns):
            columns = staying
            left_out.append(heading)
    room = width - _width(columns) - 2
    if max(map(len, labels)) > room >= NARROWEST:
        labels = shortened(labels, room)
    parts = [[labels]]
    for column in columns:
        if len(parts[-1]) > 1 and _width([*parts[-1], column]) > width:
            parts.append([labels])
        parts[-1].append(column)
    return [Table(_columns(part)) for part in parts], left_out


def _columns(cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """Columns of rows, or rows of columns."""
    return [list(column) for column in zip(*cells, strict=True)]


def _width(columns: Iterable[Sequence[str]]) -> int:
    """Number of characters in a line of `aligned`."""
    return sum(max(map(len, column)) + 2 for column in columns) - 2


def plain(blocks: Iterable[Block]) -> Iterator[str]:
    """Yield the lines of text and tables without colours."""
    for block in blocks:
        if isinstance(block, Table):
            yield from aligned(block.cells)
        else:
            yield str(block)


def aligned(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield one line per row of `cells`, columns two spaces apart; only the first is left-aligned.

    cells: one or more rows of equal length; the first is usually the heading.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *padded]).rstrip()


def coloured(blocks: Iterable[Block], width: int) -> str:
    """The blocks as text for a terminal that shows colours: as `plain`, with statements, headings
    and the last row of a table in bold, and spectra in colour.

    blocks: fitted to `width`. Raises ImportError without rich.
    """
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    blocks = list(blocks)
    widest = max(map(len, plain(blocks)), default=0)
    console = Console(width=max(width, widest), force_terminal=True, highlight=False)
    with console.capture() as captured:
        for block in blocks:
            if not isinstance(block, Table):
                style = "bold" if isinstance(block, Statement) else ""
                console.print(Text(block, style), soft_wrap=True)
                continue
            table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
            heading, *rows = block.cells
            for i, text in enumerate(heading):
                table.add_column(Text(text), justify="right" if i else "left", no_wrap=True)
            for row in rows:
                cells = [
                    Text(text, "cyan" if text.strip(SPARKS + " ") == "" else "") for text in row
                ]
                table.add_row(*cells, style="bold" if row[0] == "all" else None)
            console.print(table)
    return captured.get()
