"""A finished training run and its run.json."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import UserError

# Their capacities decide how many values and directions are compared; a relative of a lower rank
# is compared by what holds between any capacities.
MAIN = ("full", "lora", "multilora")


NEEDED = ("fingerprint", "method", "settings", "arguments", "seed", "base", "parameters", "scores")


@dataclass(frozen=True)
class Trained:
    """A finished run: where it is, and what its run.json says."""

    path: Path
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """What its rows are called."""
        return self.path.name

    @property
    def method(self) -> str:
        """The method, with what makes it a variant."""
        return self.facts["method"]

    @property
    def seed(self) -> int:
        """The seed."""
        return self.facts["seed"]


def trained(path: Path) -> Trained:
    """The run at `path`; ValueError where its run.json is not what this version writes."""
    file = path / "run.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: is not there: the run is not finished; run it again") from None
    except ValueError as error:
        raise UserError(f"{file}: is no JSON ({error}); remove {path} and run again") from None
    missing = [key for key in NEEDED if key not in facts] if isinstance(facts, dict) else NEEDED
    if missing:
        raise UserError(
            f"{file}: lacks {', '.join(missing)}: another version wrote it; remove {path} and run"
            " again"
        )
    return Trained(path, facts)


def check_alike(runs: Sequence[Trained]) -> None:
    """ValueError where the runs do not share one base, or two are of one method and seed."""
    seen: dict[tuple[str, int], Path] = {}
    for run in runs:
        if run.facts["base"].get("sha256") != runs[0].facts["base"].get("sha256"):
            raise UserError(
                f"{run.path}: was trained from another base than {runs[0].path}; expected one for"
                " all: remove it and run again"
            )
        other = seen.setdefault((run.method, run.seed), run.path)
        if other != run.path:
            raise UserError(f"{run.path} and {other}: both are {run.method}, seed {run.seed}")


# NEEDIMPORT
