"""What a run is trained and scored on: the built-in suite, or tasks from files."""

import random
from dataclasses import asdict, dataclass, field

from analysis import UserError
from multilora import record
from multilora.tasks.builtin import suite
from multilora.tasks.example import Example

TRAINED, SCORED = 800, 100  # examples of each built-in task where no number is given


@dataclass(frozen=True)
class Data:
    """Tasks, and their examples by split.

    family_of: the family of each task, in the order of the tasks; examples: those of files, None
    for the built-in suite; notes: what was left out of them, and how many; files: SHA-256 by path.
    """

    family_of: dict[str, str]
    examples: dict[str, list[Example]] | None = None
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def split(self, split: str, per_task: int = 0) -> list[Example]:
        """The examples of a split, at most `per_task` of each task, always the same ones.

        0 is all that files have; of the built-in suite, which has no end, 800 to train on and 100
        of the others. Raises ValueError for a split that does not exist.
        """
        if self.examples is None:
            usual = TRAINED if split == "train" else SCORED
            return suite.load(split, per_task or usual)
        if split not in self.examples:
            raise UserError(f"split is {split!r}; expected one of {', '.join(self.examples)}")
        every = self.examples[split]
        if not per_task:
            return every
        kept: set[int] = set()
        for task in self.family_of:
            of_task = [i for i, e in enumerate(every) if e.task == task]
            rng = random.Random(f"choice/{task}/{split}")
            kept.update(of_task if len(of_task) <= per_task else rng.sample(of_task, per_task))
        return [e for i, e in enumerate(every) if i in kept]


def load(spec: str = "") -> Data:
    """The tasks of --tasks, `alpaca:PATH,mmlu:DIR,superglue:DIR`; the built-in suite for ''.

    Raises ValueError as `sources.read` does.
    """
    if not spec:
        return Data(suite.FAMILY_OF)
    from multilora.tasks.public import sources

    read = sources.load(spec)
    return Data(read.family_of, read.examples, read.notes, read.files)


def sha256(examples: list[Example]) -> str:
    """Of all that the examples say."""
    return record.sha256([asdict(e) for e in examples])
