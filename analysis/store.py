"""Results on disk: spectrum.csv, spectra.safetensors, record.json; a reader never sees half a file.

store.save(directory, spectra, store.record(command, paths, arguments))
spectra, made_by = store.load(directory)
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialised

from analysis import CheckpointError, __version__, checkpoint
from analysis.numerics import null
from analysis.results import COLUMNS, Row, Spectra

TEXT = ("key", "run", "method", "module", "kind", "part", "algorithm")
WHOLE = (
    *("step", "layer", "d_out", "d_in", "capacity", "rank"),
    *("energy_rank_50", "energy_rank_90", "energy_rank_99", "outliers", "above_floor"),
)
TABLE, SPECTRA, RECORD = "spectrum.csv", "spectra.safetensors", "record.json"


def record(
    command: str, read: Iterable[Path | checkpoint.Run], arguments: dict[str, Any]
) -> dict[str, Any]:
    """What made a result: command, arguments, versions, seed, and SHA-256 of every input file.

    read: the checkpoints and models that went into it.
    """
    import hashlib
    import platform

    inputs = {}
    for path in read:
        for file in checkpoint.inputs(path):
            with file.open("rb") as opened:
                inputs[str(file)] = hashlib.file_digest(opened, "sha256").hexdigest()
    packages = ("numpy", "ml_dtypes", "safetensors", "scipy", "torch")
    return {
        "command": command,
        "arguments": arguments,
        "versions": {
            "python": platform.python_version(),
            "multilora": __version__,
            **{name: _version(name) for name in packages},
        },
        "seed": null.SEED,
        "inputs": inputs,
    }


def _version(package: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save(directory: str | Path, spectra: Spectra, made_by: dict[str, Any]) -> None:
    """Write the three files into `directory`, made if need be; each is renamed into place."""
    notes = {"skipped": spectra.skipped, "other": spectra.other}
    tables = {TABLE: csv_text(spectra.rows)}
    write(directory, {SPECTRA: spectra.s}, tables, {**made_by, **notes})


def write(
    directory: str | Path,
    tensors: Mapping[str, dict[str, np.ndarray]],
    tables: Mapping[str, str],
    made_by: dict[str, Any],
) -> None:
    """Files of tensors, files of text and the record into `directory`, made if need be."""
    texts = {**tables, RECORD: strict_json(made_by) + "\n"}  # before anything is replaced
    out = Path(directory)
    out.mkdir(parents=True, exist_ok=True)
    for name, arrays in tensors.items():
        replace(out / name, partial(Path.write_bytes, data=serialised(arrays)))
    for name, text in texts.items():
        write_text(out / name, text)


def load(directory: str | Path) -> tuple[Spectra, dict[str, Any]]:
    """What `save` wrote: the spectra and the record. CheckpointError where it is not all there."""
    out = Path(directory)
    try:
        table = rows(out / TABLE)
        with safe_open(out / SPECTRA, framework="np") as tensors:
            s = {row["key"]: tensors.get_tensor(row["key"]) for row in table}
        made_by = json.loads((out / RECORD).read_text(encoding="utf-8"))
        skipped, other = made_by.pop("skipped"), made_by.pop("other")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{out}: not the results of an analysis: {error}") from None
    return Spectra(table, s, skipped, other), made_by


def rows(path: Path) -> list[Row]:
    """The rows of a table of spectra; ValueError, KeyError or TypeError where it is none."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_row(cells) for cells in csv.DictReader(file)]


def csv_text(rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> str:
    """The rows under the columns; an undefined number is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def strict_json(value: Any) -> str:
    """`value` as JSON that every parser reads, in ASCII; ValueError for NaN, which must be None."""
    return json.dumps(value, indent=1, allow_nan=False)


def _row(cells: dict[str, str]) -> Row:
    def value(column: str, cell: str) -> str | int | float | None:
        if cell == "":
            return None
        return cell if column in TEXT else int(cell) if column in WHOLE else float(cell)

    return {column: value(column, cells[column]) for column in COLUMNS}


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, renamed into place."""
    replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour, then rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
