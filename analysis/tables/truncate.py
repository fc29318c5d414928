"""Print what a truncation kept, by kind of module."""

from collections.abc import Iterator, Sequence

import numpy as np

from analysis.results import Row, grouped
from analysis.tables.text import Block, Statement, Table, cell, counted

COLUMNS = (
    "module", "kind", "layer", "d_out", "d_in", "r", "rank", "bytes", "bytes_kept",
    "energy", "norm", "error",
)  # fmt: skip


def lines(rows: Sequence[Row], error: float, out: str) -> Iterator[Block]:
    """Yield what was written, with a line per kind; error: relative, of all modules together."""
    before, after = (sum(row[name] for row in rows) for name in ("bytes", "bytes_kept"))
    yield Statement(
        f"{out}: the factors take {size(after)} instead of {size(before)}, and ΔW differs by"
        f" {error:.3g} of its norm, as stored."
    )
    yield ""
    kinds = grouped(rows, "kind")
    cells = [["kind", "modules", "r", "kept", "energy", "error", "worst"]]
    groups = [(kind, own) for (kind,), own in kinds.items()]
    if len(groups) > 1:
        groups.append(("all", list(rows)))
    cells += [_line(str(kind), own) for kind, own in groups]
    yield Table(cells, leaving=("energy", "modules"))
    yield ""
    if gone := [row["module"] for row in rows if row["rank"] == 0]:
        yield f"{counted(len(gone), 'module')} left out, as {gone[0]}."
    yield "Energy and error are medians; worst is the largest error of a module."
    yield "What that does to the model, no spectrum tells: measure it (python -m multilora.cuts)."


def _line(kind: str, rows: Sequence[Row]) -> list[str]:
    energies = [row["energy"] for row in rows if row["energy"] is not None]
    return [
        kind,
        str(len(rows)),
        span([row["r"] for row in rows]),
        span([row["rank"] for row in rows]),
        cell(float(np.median(energies)) if energies else None, ".4f"),
        format(float(np.median([row["error"] for row in rows])), ".3g"),
        format(max(row["error"] for row in rows), ".3g"),
    ]


def span(numbers: Sequence[int]) -> str:
    """The smallest and the largest number: 4, or 3 to 16."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def size(count: float) -> str:
    """A number of bytes in kilobytes or megabytes.

    >>> size(1_234_000), size(12_300)
    ('1.23 MB', '12.3 kB')
    """
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB"
