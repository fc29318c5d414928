"""What the makers of smaller adapters share: the size that is asked for, and their rows."""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis import UserError
from analysis.names import kind_of, layer_of
from analysis.results import Row
from analysis.update import LowRankUpdate, Update

MEGABYTE = 10**6
SINGLE = 4  # bytes of a number of a matrix that is no product


def check(asked: Mapping[str, float | None]) -> None:
    """Raise UserError unless exactly one size is given and lies in its range.

    asked: option → its value: energy, a share of Σs²; rank; budget, in bytes.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) != 1:
        options = [f"--{name}" for name in asked]
        raise UserError(f"expected one of {', '.join(options[:-1])} and {options[-1]}")
    ((name, value),) = given.items()
    if name == "energy" and not 0 < value <= 1:
        raise UserError(f"--energy {value:g}; expected a share of the energy, above 0 and up to 1")
    if name == "rank" and value < 1:
        raise UserError(f"--rank {value}; expected at least 1")
    if name == "budget" and not value > 0:
        raise UserError(f"--budget {value / MEGABYTE:g}; expected megabytes, more than 0")


def row(
    update: Update,
    name: str,
    rank: int,
    kept: int,
    *,
    energy: float | None,
    norm: float,
    error: float,
) -> Row:
    """Return the row of a module, by `tables.truncate.COLUMNS`.

    update: before. name: of the module that is written. rank, kept: rank and bytes of its factors.
    energy: the share of Σs² that is kept, None for ΔW = 0. norm: ‖ΔW‖_F. error: ‖ΔW − BA‖/‖ΔW‖ of
    the factors as they are stored.
    """
    d_out, d_in = update.shape
    before, r = d_out * d_in * SINGLE, update.capacity
    if isinstance(update, LowRankUpdate):
        before, r = update.B.nbytes + update.A.nbytes, update.r
    return {
        "module": name,
        "kind": kind_of(name),
        "layer": layer_of(name),
        "d_out": d_out,
        "d_in": d_in,
        "r": r,
        "rank": rank,
        "bytes": before,
        "bytes_kept": kept,
        "energy": energy,
        "norm": norm,
        "error": error,
    }


def whole_error(rows: Sequence[Row]) -> float:
    """Return ‖ΔW − BA‖/‖ΔW‖ over all modules together; 0 if all are zero."""
    sizes = np.array([row["norm"] for row in rows])
    errors = np.array([row["error"] for row in rows])
    whole = float(np.linalg.norm(sizes))
    return float(np.linalg.norm(sizes * errors)) / whole if whole else 0.0
