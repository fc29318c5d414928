"""Write results to disk, each file whole or not at all, and read them back.

The results of `spectrum.analyse` are three files: spectrum.csv (the rows), spectra.safetensors
(the singular values) and record.json (command, arguments, versions, hashes of the inputs).

    store.save(directory, spectra, store.record(command, paths, arguments))
    spectra, record = store.load(directory)
"""

import contextlib
import csv
import io
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialised

from analysis import CheckpointError, __version__
from analysis.results import COLUMNS, Row, Spectra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.checkpoint import Run

# The columns of a table of spectra that hold text and integers; all others hold floats.
TEXT = ("key", "run", "method", "module", "kind", "part", "algorithm")
WHOLE = (
    "step", "layer", "d_out", "d_in", "r", "capacity", "rank",
    "energy_rank_50", "energy_rank_90", "energy_rank_99", "outliers", "above_floor",
)  # fmt: skip
TABLE, SPECTRA, RECORD = "spectrum.csv", "spectra.safetensors", "record.json"


def record(command: str, read: "Iterable[Path | Run]", arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a result: command, arguments, versions, seed, SHA-256 of the inputs.

    read: the checkpoints and models from which the result was computed.
    """
    import hashlib
    import platform

    # Imported here, so that writing a file does not need every format of checkpoints.
    from analysis import checkpoint
    from analysis.numerics import null

    inputs = {}
    for path in read:
        for file in checkpoint.inputs(path):
            with file.open("rb") as opened:
                inputs[str(file)] = hashlib.file_digest(opened, "sha256").hexdigest()
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "multilora": __version__,
    }
    for package in ("numpy", "ml_dtypes", "safetensors", "scipy", "torch"):
        versions[package] = _version(package)
    return {
        "command": command,
        "arguments": arguments,
        "versions": versions,
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


def save(directory: str | Path, spectra: Spectra, record: dict[str, Any]) -> None:
    """Write spectra and their record into `directory`, which is created if need be."""
    notes = {"skipped": spectra.skipped, "other": spectra.other}
    tables = {TABLE: csv_text(spectra.rows)}
    write(directory, {SPECTRA: spectra.s}, tables, {**record, **notes})


def write(
    directory: str | Path,
    tensors: Mapping[str, dict[str, np.ndarray]],
    tables: Mapping[str, str],
    record: dict[str, Any],
) -> None:
    """Write a result into `directory`, which is created if need be.

    tensors: file name -> arrays by name, written as safetensors.
    tables: file name -> text.
    record: written as record.json. Raises ValueError, before any file is replaced, if it holds NaN.
    """
    texts = {**tables, RECORD: strict_json(record) + "\n"}  # before anything is replaced
    out = Path(directory)
    out.mkdir(parents=True, exist_ok=True)
    for name, arrays in tensors.items():
        replace(out / name, partial(Path.write_bytes, data=serialised(arrays)))
    for name, text in texts.items():
        write_text(out / name, text)


def load(directory: str | Path) -> tuple[Spectra, dict[str, Any]]:
    """Return the spectra and the record that `save` wrote into `directory`.

    Raises CheckpointError if one of the files is missing, damaged or cut short, or if table and
    arrays do not belong together.
    """
    out = Path(directory)
    try:
        table = rows(out / TABLE)
        with safe_open(out / SPECTRA, framework="np") as tensors:
            keys = [row["key"] for row in table]
            if sorted(keys) != sorted(tensors.keys()):
                raise ValueError(
                    f"{TABLE} has {len(keys)} rows, {SPECTRA} has {len(tensors.keys())} spectra;"
                    " expected the same keys in both"
                )
            s = {key: tensors.get_tensor(key) for key in keys}
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not {"skipped", "other"} <= record.keys():
            raise ValueError(f"{RECORD}: is not the record of spectra")
        skipped, other = record.pop("skipped"), record.pop("other")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{out}: not the results of an analysis: {error}") from None
    return Spectra(table, s, skipped, other), record


def rows(path: Path) -> list[Row]:
    """Return the rows of a table of spectra, keyed by `results.COLUMNS`.

    Raises ValueError, naming the file, if it is cut short or is not such a table.
    """
    with path.open(encoding="utf-8", newline="") as file:
        text = file.read()
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{path.name}: has no column {missing[0]}; expected a table of spectra")
    table = []
    for cells in reader:
        try:
            table.append(_row(cells))
        except ValueError as error:
            raise ValueError(f"{path.name}: line {reader.line_num}: {error}") from None
    if not text.endswith("\n"):
        raise ValueError(
            f"{path.name}: line {reader.line_num}: is cut short; expected a whole line"
        )
    return table


def _row(cells: Mapping[str, str | None]) -> Row:
    """Return the cells of one line as a row; ValueError if some are missing or not numbers."""
    row: Row = {}
    for column in COLUMNS:
        cell = cells[column]
        if cell is None:  # as csv fills up a line that is too short
            raise ValueError(f"is cut short before {column}; expected a whole line")
        if cell == "":
            row[column] = None
        elif column in TEXT:
            row[column] = cell
        else:
            row[column] = int(cell) if column in WHOLE else float(cell)
    return row


def csv_text(rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> str:
    """Return the rows as CSV with a header; a number that is undefined is an empty cell.

    >>> csv_text([{"kind": "q_proj", "gini": 0.5}, {"kind": "up_proj", "gini": None}],
    ...          columns=("kind", "gini")).splitlines()
    ['kind,gini', 'q_proj,0.5', 'up_proj,']
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def strict_json(value: Any) -> str:
    """Return `value` as JSON in ASCII; ValueError for NaN or Inf, which JSON does not have."""
    return json.dumps(value, indent=1, allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 with `replace`."""
    replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a temporary file, then rename it to `path`.

    A reader sees the old file or the new one, never a part; if `write` fails, the old file stays
    and the temporary one is removed. The temporary file lies in the directory of `path`, which must
    exist. Its name is unique to this process and thread, and does not keep the suffix of `path`: a
    writer that chooses its format by the suffix (numpy.savez, matplotlib) must be told the format
    or given an open file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # after the renaming there is nothing to remove
            temporary.unlink()


def save_figure(figure: "Figure", stem: Path) -> None:
    """Write stem.png and stem.pdf, renamed into place; the same figure gives the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):
        draw = partial(figure.savefig, dpi=150, format=kind, metadata=metadata)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a letter that no font has
            replace(stem.parent / f"{stem.name}.{kind}", draw)
