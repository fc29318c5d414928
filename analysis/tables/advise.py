"""Print the ranks that a checkpoint needs, by kind of module, and what they would save."""

import statistics
from collections.abc import Iterator, Sequence

from analysis.results import Row, grouped
from analysis.tables.text import Block, Statement, Table, counted
from analysis.tables.truncate import size, span

COLUMNS = (
    "run", "step", "module", "part", "kind", "layer", "d_out", "d_in", "r", "capacity", "rank",
    "rank_90", "rank_95", "rank_99", "beyond_chance", "frobenius_norm", "share",
    "bytes", "bytes_90", "bytes_95", "bytes_99",
)  # fmt: skip
NEGLIGIBLE = 1e-3  # of all energy: modules that together hold less could be dropped
LISTED = 3
EXPLANATION = """\
90 %, 95 %, 99 %: the least rank that holds this share of the energy of a module's ΔW (Σs²), from
the smallest to the largest of its kind. Beyond chance: directions that hold more energy than the
strongest direction of a random update of the same shape and rank does, by 2.5 standard deviations;
the others may be needed all the same. Size: of the factors in the dtype that they have now. Could
be dropped: the modules with the least energy, as many as hold less than a thousandth of that of all
modules together."""


def lines(rows: Sequence[Row], checkpoint: str, out: str = "") -> Iterator[Block]:
    """Yield a sentence, a table with a line per kind, and what to do about it.

    checkpoint: its path and the options that it needs, as words of a command. out: where
    analysis.truncate could write it; "" if it cannot.
    """
    capacity = statistics.median(row["capacity"] for row in rows)
    needed = statistics.median(row["rank_95"] for row in rows)
    before, after = (sum(row[name] for row in rows) for name in ("bytes", "bytes_95"))
    yield Statement(
        f"In the median of {counted(len(rows), 'module')}, {needed:g} of {capacity:g} directions"
        f" hold 95 % of the energy of ΔW; an adapter cut there takes {size(after)} instead of"
        f" {size(before)}."
    )
    yield ""
    kinds = [(str(kind), own) for (kind,), own in grouped(rows, "kind").items()]
    heading = ["kind", "modules", "r", "90 %", "95 %", "99 %", "beyond chance", "size", "at 95 %"]
    cells = [_line(kind, own) for kind, own in kinds]
    if len(kinds) > 1:
        cells.append(_line("all", rows))
    yield Table([heading, *cells], leaving=("modules", "99 %", "90 %"))
    yield ""
    if gone := droppable(rows):
        named = ", ".join(gone[:LISTED]) + (", …" if len(gone) > LISTED else "")
        yield (
            f"{counted(len(gone), 'module')} together hold less than 0.1 % of the energy and could"
            f" be dropped: {named}"
        )
    yield "Energy is not accuracy: a weak direction can be the one that matters. To try it:"
    plain = out and all(row["r"] and not row["part"] for row in rows)
    program, place = ("truncate", out) if plain else ("extract", "smaller/")
    yield f"  python -m analysis.{program} {checkpoint} --energy 0.95 --out {place}"
    if place.endswith("/"):
        yield f"  python -m multilora.cuts {place} --base MODEL --text FILE"


def _line(kind: str, rows: Sequence[Row]) -> list[str]:
    whole, of_95 = (sum(row[name] for row in rows) for name in ("bytes", "bytes_95"))
    return [
        kind,
        str(len(rows)),
        span([row["capacity"] for row in rows]),
        *(span([row[f"rank_{share}"] for row in rows]) for share in (90, 95, 99)),
        span([row["beyond_chance"] for row in rows]),
        size(whole),
        size(of_95),
    ]


def droppable(rows: Sequence[Row]) -> list[str]:
    """Return the modules of least energy that together hold less than NEGLIGIBLE of all.

    >>> droppable([{"module": "a", "share": 0.9995}, {"module": "b", "share": 0.0005}])
    ['b']
    """
    found, held = [], 0.0
    for row in sorted(rows, key=lambda row: row["share"] or 0.0):
        held += row["share"] or 0.0
        if held >= NEGLIGIBLE:
            break
        found.append(row["module"])
    return found
