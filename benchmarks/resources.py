"""Measure what the figure `resources` shows: time of a layer and memory of training.

Runs `benchmarks.layers` and `benchmarks.training`, and writes their rows to resources.csv and a
description of the machine to resources.json in DIR (default figures/).
"""

import argparse
import os
import platform
import sys
from pathlib import Path

import torch

from analysis import store
from benchmarks import layers, training
from multilora import record

COLUMNS = ("what", "setting", "method", "value", "unit", "ratio")


def processor() -> str:
    """Return the name of the processor from /proc/cpuinfo, or else from `platform`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(argv: list[str] | None = None) -> int:
    """Measure, write both files and return 0, even if a benchmark misses its target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("figures"), metavar="DIR")
    parser.add_argument(
        "--repeat", type=int, default=31, help="timed passes per layer (default 31)"
    )
    parser.add_argument("--runs", type=int, default=3, help="trainings per method (default 3)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measured = [*layers.rows(arguments.repeat), *training.rows(arguments.runs)]
    rows = [{column: row[column] for column in COLUMNS} for row in measured]
    made_by = {
        "command": "benchmarks.resources",
        "arguments": {"repeat": arguments.repeat, "runs": arguments.runs},
        "processor": processor(),
        "load": os.getloadavg()[0],
        "environment": record.environment(),
    }
    arguments.directory.mkdir(parents=True, exist_ok=True)
    table = arguments.directory / "resources.csv"
    store.write_text(table, store.csv_text(rows, COLUMNS))
    store.write_text(table.with_suffix(".json"), store.strict_json(made_by) + "\n")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
