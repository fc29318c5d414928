"""Compare the rows of `make reproduce` with the published ones, made on another machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.results import Row
from multilora.reproduction import tables

# The published results of the preset quick, in a checkout of the repository.
PUBLISHED = Path("figures/reference")
# Columns that are compared: their names in words, and the format of a distance.
COMPARED = {
    "top_share_1": ("top-1 share", ".4f"),
    "effective_rank_k": ("effective rank", ".3f"),
    "score": ("score", ".4f"),
}


def distance(results: Path, published: Path = PUBLISHED) -> str:
    """Say how far the rows of methods.csv lie from the published ones; "" if nothing is comparable.

    results: the directory of the results; published: that of the published ones, which may be
    missing. Runs of the same method, seed, steps and bases are compared; the text says whether
    their code is the same too.
    """
    if not (published / "methods.csv").is_file():
        return ""
    own, other = tables.load(results), tables.load(published)
    row_of = {(row["method"], row["seed"]): row for row in other.of("methods")}
    pairs = [
        (row, row_of[key])
        for row in own.of("methods")
        if (key := (row["method"], row["seed"])) in row_of
    ]
    if not pairs or _start(own.record) != _start(other.record):
        return ""
    where = " and ".join(dict.fromkeys(m["cpu"] for m in other.record["trained_on"]))
    largest = "; ".join(_largest(pairs, column) for column in COMPARED)
    lines = [f"Largest distance from the published rows ({published}, made on {where}): {largest}."]
    if any(row[column] != of[column] for row, of in pairs for column in COMPARED):
        same = all(_run(own.record, row) == _run(other.record, row) for row, _ in pairs)
        lines.append(
            "Code, base and data are the same: another processor rounds differently, and training"
            " amplifies it."
            if same
            else "The code has changed since they were published: that, or another processor, may"
            " be the reason."
        )
    return "\n".join(lines)


def _start(record: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the bases and the number of steps of a record."""
    return record.get("bases"), record.get("arguments", {}).get("steps")


def _run(record: Mapping[str, Any], row: Row) -> str | None:
    """Return the fingerprint of the run of a row; None if the record does not name it."""
    methods, end = record["methods"], f"-s{row['seed']}"
    own = [
        mark
        for name, mark in record["runs"].items()
        if methods[name] == row["method"] and name.endswith(end)
    ]
    return own[0] if own else None


def _largest(pairs: Sequence[tuple[Row, Row]], column: str) -> str:
    """Return the largest distance in a column, and the run that has it."""
    words, form = COMPARED[column]
    row, other = max(pairs, key=lambda pair: abs(pair[0][column] - pair[1][column]))
    distance = abs(row[column] - other[column])
    return f"{words} {distance:{form}} ({row['method']}, seed {row['seed']})"
