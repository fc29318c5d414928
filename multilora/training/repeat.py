"""Repeat a training run from its run.json.

    python -m multilora.train --from RUN/run.json [--output_dir DIR] [--model DIR]

The repetition uses the settings, the arguments and the number of threads of the run, and goes to
RUN-again unless --output_dir is given. Base and data must have the recorded SHA-256. Other versions
or another machine can give other bits, which is reported.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from analysis import UserError
from multilora import delta, record

# What a run.json must contain to be repeated.
NEEDED = ("settings", "arguments", "base", "data", "processes", "environment", "weights")


def is_asked(argv: Sequence[str]) -> bool:
    """Return whether a command line contains --from."""
    return any(word.split("=")[0] == "--from" for word in argv)


def parse(argv: Sequence[str], settings: type, arguments: type) -> tuple[Any, Any, dict[str, Any]]:
    """Read the run that --from names.

    argv: the command line; settings, arguments: the types to fill. Returns (settings, arguments,
    content of run.json). Raises UserError, naming the file, if it is not the run.json of a
    training run.
    """
    parser = argparse.ArgumentParser("multilora.train --from", description=__doc__)
    parser.add_argument("--from", dest="file", type=Path, required=True)
    parser.add_argument("--output_dir", help="directory of the repetition")
    parser.add_argument("--model", help="the base, if it has been moved")
    given = parser.parse_args(list(argv))
    file = given.file / "run.json" if given.file.is_dir() else given.file
    was = _read(file)
    directory = file.resolve().parent
    was["arguments"]["output_dir"] = given.output_dir or f"{directory}-again"
    if given.model:
        was["settings"]["model"] = given.model
    if Path(was["arguments"]["output_dir"]).resolve() == directory:
        raise UserError(f"{directory} is the run itself; choose another --output_dir")
    return (
        _filled(settings, was["settings"], where=f"{file}: settings"),
        _filled(arguments, was["arguments"], where=f"{file}: arguments"),
        was,
    )


def _read(file: Path) -> dict[str, Any]:
    """Read a run.json; raise UserError unless it has all that a repetition needs."""
    was = record.read_json(file)
    lacking = [key for key in NEEDED if key not in was]
    if lacking:
        raise UserError(f"{file} lacks {', '.join(lacking)}; expected the run.json of a training")
    needed_of = {
        "settings": (),
        "arguments": (),
        "data": (),
        "base": ("path", "sha256"),
        "environment": ("threads",),
    }
    for key, parts in needed_of.items():
        if not isinstance(was[key], dict) or any(part not in was[key] for part in parts):
            raise UserError(f"{file}: {key} is {was[key]!r}; expected what a training writes")
    return was


def _filled(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """An instance of a dataclass with these values; UserErrors begin with `where`."""
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
    """Raise UserError unless base, data and number of processes are those of the run.

    was: run.json of the run; now: inputs of its repetition (identity.inputs). Other versions or
    another machine are reported on stderr.
    """
    if now["base"]["sha256"] != was["base"]["sha256"]:
        raise UserError(
            f"the weights of {now['base']['path']} are not those of the run's base, "
            f"{was['base']['path']} (SHA-256 differs)"
        )
    if now["data"] != was["data"]:
        raise UserError(
            f"the training examples are {now['data']}; the run had {was['data']}: "
            "the code of the tasks has changed"
        )
    if now["processes"] != was["processes"]:
        raise UserError(
            f"the run had {was['processes']} processes, its repetition {now['processes']}; "
            f"start it with torchrun --nproc_per_node {was['processes']}"
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
    """Print on stderr whether the repetition has the same ΔW as the run, bit for bit."""
    same = bool(was["weights"]) and delta.hashes(out) == was["weights"]
    print(f"ΔW is {'the same' if same else 'NOT the same'}, bit for bit", file=sys.stderr)
