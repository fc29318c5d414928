"""Finished training runs, read from their run.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import UserError
from multilora import record
from multilora.tasks import data
from multilora.tasks.example import Example

# The methods whose smallest capacity sets how many values and directions are compared. Relatives
# of lower rank are compared by measures that hold between any capacities.
MAIN = ("full", "lora", "multilora")
NEEDED = (
    "fingerprint",
    "method",
    "settings",
    "arguments",
    "seed",
    "base",
    "parameters",
    "scores",
    "environment",
)


@dataclass(frozen=True)
class Trained:
    """A finished run.

    path: its directory; facts: the content of its run.json.
    """

    path: Path
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run in tables."""
        return self.path.name

    @property
    def method(self) -> str:
        """The method, or the variant of it, as "multilora n=1"."""
        return self.facts["method"]

    @property
    def plain_method(self) -> str:
        """The method without the settings that make it a variant."""
        return self.facts["settings"]["method"]

    @property
    def seed(self) -> int:
        """The seed."""
        return self.facts["seed"]

    @property
    def overlapping_modules(self) -> int:
        """The number of MultiLoRA modules that can overlap; 0 for one module or another method."""
        n = self.facts["settings"]["n"] if self.plain_method == "multilora" else 0
        return n if n > 1 else 0

    def held_out(self, split: str, per_task: int) -> list[Example]:
        """Return the validation or test items of its tasks, at most `per_task` of each."""
        return data.load(self.facts["settings"].get("tasks", "")).split(split, per_task)

    @property
    def decodes(self) -> bool:
        """Return whether answers without options are scored by greedy decoding."""
        return bool(self.facts["settings"].get("decode", True))


def trained(path: Path) -> Trained:
    """Read the finished run at `path`.

    Raises UserError if run.json is missing, is not JSON, or was written by another version.
    """
    file = path / "run.json"
    if not file.is_file():
        raise UserError(f"{file}: missing: the run is not finished; run it again")
    try:
        facts = record.read_json(file)
    except UserError as error:
        raise UserError(f"{error}; remove {path} and run again") from None
    missing = [key for key in NEEDED if key not in facts]
    if missing:
        raise UserError(
            f"{file}: lacks {', '.join(missing)}: another version wrote it; remove {path} and run"
            " again"
        )
    return Trained(path, facts)


def check_comparable(runs: Sequence[Trained]) -> None:
    """Raise UserError if runs have different bases, or two have the same method and seed."""
    seen: dict[tuple[str, int], Path] = {}
    for run in runs:
        if run.facts["base"].get("sha256") != runs[0].facts["base"].get("sha256"):
            raise UserError(
                f"{run.path}: was trained from another base than {runs[0].path}; expected the same"
                " base for all: remove it and run again"
            )
        other = seen.setdefault((run.method, run.seed), run.path)
        if other != run.path:
            raise UserError(
                f"{run.path} and {other}: both are {run.method}, seed {run.seed}; expected one run"
                " per method and seed"
            )
