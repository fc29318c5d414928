"""Rows of data sets on the Hugging Face hub, through the library `datasets`."""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from analysis import UserError
from multilora.tasks.public import files


class Found(NamedTuple):
    """What a data set holds: rows as `parse` made them, by our split; SHA-256; lines for notes.

    Hashes are of the rows as JSON, under `hub:NAME CONFIG SPLIT`.
    """

    splits: dict[str, list[Any]]
    files: dict[str, str]
    notes: list[str]


def read(
    name: str, config: str | None, wanted: Mapping[str, str], parse: Callable[[Any], Any]
) -> Found:
    """`parse` of each row of the wanted splits, {the hub's name of a split: ours}.

    Raises ValueError without the library, where no split is wanted, and for a bad row.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            f"hub:{name} needs the library datasets: pip install datasets; "
            "or give the path of a file"
        ) from None
    data = datasets.load_dataset(name, config) if config else datasets.load_dataset(name)
    places = {split: " ".join(filter(None, (f"hub:{name}", config, split))) for split in data}
    found = Found({}, {}, [f"{places[s]}: not read" for s in data if s not in wanted])
    for theirs in filter(data.__contains__, wanted):
        rows = list(data[theirs])
        found.splits[wanted[theirs]] = files.parsed(
            places[theirs], enumerate(rows, 1), parse, unit="row"
        )
        text = json.dumps(rows, sort_keys=True)
        found.files[places[theirs]] = hashlib.sha256(text.encode()).hexdigest()
    if not found.splits:
        raise UserError(
            f"hub:{name} has the splits {', '.join(data)}; expected {' or '.join(wanted)}"
        )
    return found
