"""Adapters that others trained → how dominated they are, beside chance.

Null: a product of two Gaussian factors of the same shape and rank (`analysis.numerics.null`).
"""

from collections.abc import Iterator
from pathlib import Path

from analysis import spectrum
from analysis.formats import Options
from analysis.numerics import null
from analysis.results import Row, Spectra

COLUMNS = (
    *("adapter", "step", "module", "part", "kind", "d_out", "d_in", "r"),
    *("top_share_1", "null_top_share_1", "effective_rank", "utilisation"),
)
# An adapter without a matrix of this many rows and columns is of no language or vision model.
TOY = 64
# Names of A and B in files that say nothing else, as SAM's.
FACTORS = (r"w_a_(\d+)", r"w_b_(\d+)")


def table(directory: Path) -> tuple[list[Row], list[dict[str, str]]]:
    """(a row a module of every adapter below `directory`, what is left out and why).

    adapter: its path below `directory`; step: for X/checkpoint-N that is N of X. r: the highest
    rank that its factors allow. Left out, as {adapter, reason}: what cannot be read as factors,
    toys, and modules with ΔW = 0, whose shares are undefined. Raises FileNotFoundError where the
    directory is not there.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory; expected one of adapters")
    rows: list[Row] = []
    left_out: list[dict[str, str]] = []
    for path in _adapters(directory):
        adapter = path.relative_to(directory).as_posix()
        found = _analyse(path)
        left_out += [{"adapter": adapter, "reason": skip["reason"]} for skip in found.skipped]
        if found.rows and max(min(row["d_out"], row["d_in"]) for row in found.rows) < TOY:
            reason = f"toy: no matrix of {TOY} × {TOY} or more"
            left_out.append({"adapter": adapter, "reason": reason})
            continue
        for row in found.rows:
            if row["spectral_norm"] == 0:
                left_out.append({"adapter": adapter, "reason": f"{row['module']}: ΔW = 0"})
                continue
            line = {column: row[column] for column in COLUMNS if column in row}
            line |= {"adapter": adapter, "r": row["capacity"]}
            line["null_top_share_1"] = null.null_top_share(
                *sorted((row["d_out"], row["d_in"])), row["capacity"], 1
            )
            rows.append({column: line[column] for column in COLUMNS})
    return rows, left_out


def _analyse(path: Path) -> Spectra:
    """The spectra of an adapter, by known names or else by those of FACTORS."""
    found = spectrum.analyse(path)
    if found.rows:
        return found
    by_name = spectrum.analyse(path, options=Options(factors=FACTORS))
    return by_name if by_name.rows else found


def _adapters(directory: Path) -> Iterator[Path]:
    """The directories of adapters below; one that holds directories only is gone through.

    A run's checkpoint-N are one adapter at several steps.
    """
    for child in sorted(path for path in directory.iterdir() if path.is_dir()):
        inside = list(child.iterdir())
        steps = any(path.name.startswith("checkpoint-") for path in inside)
        if steps or any(path.is_file() for path in inside):
            yield child
        else:
            yield from _adapters(child)
