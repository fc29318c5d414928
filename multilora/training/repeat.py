"""A training run again, from the run.json that it left.

    python -m multilora.train --from RUN/run.json [--output_dir DIR] [--model DIR]

trains with its settings, its arguments and its number of threads, into RUN-again unless DIR is
given. Base and data must have the recorded SHA-256; other versions or another machine are told
of, since they can give other bits.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from analysis import UserError
from multilora import delta, record

# What a run.json must hold to be repeated.
NEEDED = ("settings", "arguments", "base", "data", "processes", "environment", "weights")


def is_asked(argv: Sequence[str]) -> bool:
    """Whether a command line says --from."""
    return any(word.split("=")[0] == "--from" for word in argv)


def parse(argv: Sequence[str], settings: type, arguments: type) -> tuple[Any, Any, dict[str, Any]]:
    """(settings, arguments, run.json) of the run that --from names, as the two types.

    Raises ValueError, naming the file, for one that is not the run.json of a training run.
    """
    parser = argparse.ArgumentParser("multilora.train --from", description=__doc__)
    parser.add_argument("--from", dest="file", type=Path, required=True)
    parser.add_argument("--output_dir", help="where the repetition goes")
    parser.add_argument("--model", help="the base, where it lies elsewhere now")
    given = parser.parse_args(list(argv))
    file = given.file / "run.json" if given.file.is_dir() else given.file
    try:
        was = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    lacking = [key for key in NEEDED if not isinstance(was, dict) or key not in was]
    if lacking:
        raise UserError(f"{file} lacks {', '.join(lacking)}; expected the run.json of a training")
    shapes = {"settings": (), "arguments": (), "data": (), "base": ("path", "sha256")}
    for key, parts in {**shapes, "environment": ("threads",)}.items():
        if not isinstance(was[key], dict) or any(part not in was[key] for part in parts):
            raise UserError(f"{file}: {key} is {was[key]!r}; expected what a training wrote there")
    directory = file.resolve().parent
    was["arguments"]["output_dir"] = given.output_dir or f"{directory}-again"
    if given.model:
        was["settings"]["model"] = given.model
    if Path(was["arguments"]["output_dir"]).resolve() == directory:
        raise UserError(f"{directory} is the run itself; choose another --output_dir")
    return (
        _filled(settings, was["settings"], f"{file}: settings"),
        _filled(arguments, was["arguments"], f"{file}: arguments"),
        was,
    )


def _filled(kind: type, values: Mapping[str, Any], where: str) -> Any:
    known = {field.name for field in fields(kind) if field.init}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"{where}: unknown key {', '.join(unknown)}")
    for field in fields(kind):
        number = isinstance(field.default, int | float)  # bool too
        if number and not isinstance(values.get(field.name, 0), int | float):
            raise UserError(f"{where}: {field.name} is {values[field.name]!r}; expected a number")
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None


def check(was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ValueError where base, data or number of processes are not those of the run.

    now: what a run.json says of them. Versions and machine that differ are told of on stderr.
    """
    if now["base"]["sha256"] != was["base"]["sha256"]:
        raise UserError(
            f"the weights of {now['base']['path']} are not those of the run's base, "
            f"{was['base']['path']} (SHA-256 differs)"
        )
    if now["data"] != was["data"]:
        raise UserError(
            f"the training examples are {now['data']}; the run had {was['data']}: "
            "the tasks' code is another"
        )
    if now["processes"] != was["processes"]:
        raise UserError(
            f"the run had {was['processes']} processes, here are {now['processes']}; start it with "
            f"torchrun --nproc_per_node {was['processes']}"
        )
    here = record.environment()
    others = [
        f"{key} {then!r}, here {here.get(key)!r}"
        for key, then in was["environment"].items()
        if key not in ("threads", "cpus") and then != here.get(key)
    ]
    if others:
        print(f"the run had {'; '.join(others)}: the bits may differ", file=sys.stderr)


def report_differences(was: Mapping[str, Any], out: Path) -> None:
    """Say on stderr whether the repetition's ΔW is the run's, bit for bit."""
    same = bool(was["weights"]) and delta.hashes(out) == was["weights"]
    print(f"ΔW is {'the same' if same else 'NOT the same'}, bit for bit", file=sys.stderr)
