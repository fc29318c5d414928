"""Measure how dominated adapters that others trained are, compared with chance.

Chance is a product of two Gaussian factors of the same shape and rank (`analysis.numerics.null`).
"""

from collections.abc import Iterator
from pathlib import Path

from analysis import UserError, spectrum
from analysis.formats import Options
from analysis.numerics import null
from analysis.results import Row, Spectra

COLUMNS = (
    "adapter",
    "step",
    "module",
    "part",
    "kind",
    "d_out",
    "d_in",
    "r",
    "top_share_1",
    "null_top_share_1",
    "effective_rank",
    "utilisation",
)
# An adapter without a matrix of at least this many rows and columns belongs to a toy model.
TOY = 64
# Names of A and B in files without other metadata, such as SAM's.
FACTORS = (r"w_a_(\d+)", r"w_b_(\d+)")


def table(directory: Path) -> tuple[list[Row], list[dict[str, str]]]:
    """Return (wild.csv, what is left out) for all adapters below `directory`.

    One row per module. adapter: the path below `directory`; step: N for ADAPTER/checkpoint-N;
    r: the largest rank that the factors allow. Left out, as {adapter, reason}: adapters that cannot
    be read as factors, toys, and modules with ΔW = 0, whose shares are undefined. Raises UserError
    if the directory does not exist.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; expected a directory of adapters")
    rows: list[Row] = []
    left_out: list[dict[str, str]] = []
    for path in _adapters(directory):
        adapter = path.relative_to(directory).as_posix()
        spectra = _spectra(path)
        reasons = [skip["reason"] for skip in spectra.skipped]
        if spectra.rows and max(min(row["d_out"], row["d_in"]) for row in spectra.rows) < TOY:
            reasons.append(f"toy: no matrix of {TOY} × {TOY} or larger")
        else:
            moved = [row for row in spectra.rows if row["spectral_norm"] > 0]
            still = [row for row in spectra.rows if row["spectral_norm"] == 0]
            rows += [_of_module(adapter, row) for row in moved]
            reasons += [f"{row['module']}: ΔW = 0" for row in still]
        left_out += [{"adapter": adapter, "reason": reason} for reason in reasons]
    return rows, left_out


def _of_module(adapter: str, row: Row) -> Row:
    """Return the row of one module in wild.csv; row: of spectrum.csv."""
    by_chance = null.of_row(row, 1)["top_share_1"].mean
    own = {"adapter": adapter, "r": row["capacity"], "null_top_share_1": by_chance}
    return {column: own[column] if column in own else row[column] for column in COLUMNS}


def _spectra(path: Path) -> Spectra:
    """Return the spectra of an adapter, with the names in FACTORS if no others are known."""
    spectra = spectrum.analyse(path)
    if spectra.rows:
        return spectra
    by_name = spectrum.analyse(path, options=Options(factors=FACTORS))
    return by_name if by_name.rows else spectra


def _adapters(directory: Path) -> Iterator[Path]:
    """Yield the directories of adapters; a directory that only holds others is searched.

    All checkpoint-N of a run belong to one adapter.
    """
    for child in sorted(path for path in directory.iterdir() if path.is_dir()):
        inside = list(child.iterdir())
        steps = any(path.name.startswith("checkpoint-") for path in inside)
        if steps or any(path.is_file() for path in inside):
            yield child
        else:
            yield from _adapters(child)
