"""Load data sets from the Hugging Face hub with the package `datasets`."""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from analysis import UserError
from multilora.tasks.public import files


class HubData(NamedTuple):
    """Parsed rows of a data set.

    splits: parsed rows, by the project's name of the split
    files: SHA-256 of a split's rows as JSON, by `hub:NAME CONFIG SPLIT`
    notes: lines about the splits that were not read
    """

    splits: dict[str, list[Any]]
    files: dict[str, str]
    notes: list[str]


def load_splits(
    name: str, config: str | None, wanted: Mapping[str, str], parse: Callable[[Any], Any]
) -> HubData:
    """Load the wanted splits of a data set and parse each row.

    name: name of the data set on the hub
    config: configuration of the data set; None for its default
    wanted: {the hub's name of a split: the project's name of it}
    parse: turns one row into a value; raises ValueError for a row that it cannot use

    Raises UserError if `datasets` is not installed, if no split is wanted, or for a bad row.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            f"hub:{name} needs the package datasets, which is not installed "
            "(run pip install datasets, or give the path of a file)"
        ) from None
    data = datasets.load_dataset(name, config) if config else datasets.load_dataset(name)
    places = {split: " ".join(filter(None, (f"hub:{name}", config, split))) for split in data}
    if not any(split in data for split in wanted):
        raise UserError(
            f"hub:{name} has the splits {', '.join(data)}; expected {' or '.join(wanted)}"
        )
    loaded = HubData({}, {}, [f"{places[s]}: not read" for s in data if s not in wanted])
    for split, own_name in wanted.items():
        if split not in data:
            continue
        rows, place = list(data[split]), places[split]
        loaded.splits[own_name] = files.parse_rows(place, enumerate(rows, 1), parse, unit="row")
        text = json.dumps(rows, sort_keys=True)
        loaded.files[place] = hashlib.sha256(text.encode()).hexdigest()
    return loaded
