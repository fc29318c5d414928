"""Load what a run is trained and scored on: the built-in suite, or tasks from files."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from analysis import UserError
from multilora import record
from multilora.tasks.builtin import suite
from multilora.tasks.example import Example

TRAINED, SCORED = 800, 100  # default number of examples per built-in task, by use


@dataclass(frozen=True)
class Data:
    """Tasks and their examples by split.

    family_of: task family of each task, in the order of the tasks
    examples: examples from files, by split; None for the built-in suite
    notes: lines about what was left out of the files, with counts
    files: SHA-256 of each file, by path
    """

    family_of: dict[str, str]
    examples: dict[str, list[Example]] | None = None
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def split(self, split: str, per_task: int = 0) -> list[Example]:
        """Examples of a split, at most `per_task` of each task; the same in every call.

        With `per_task` 0 these are all examples of the files, or, of the built-in suite, which has
        no end, 800 per task for training and 100 per task of the other splits. Raises UserError if
        `split` is unknown.
        """
        if self.examples is None:
            default = TRAINED if split == "train" else SCORED
            return suite.load(split, per_task or default)
        if split not in self.examples:
            raise UserError(f"split is {split!r}; expected one of {', '.join(self.examples)}")
        examples = self.examples[split]
        return _sample(examples, per_task, split) if per_task else examples


def _sample(examples: Sequence[Example], per_task: int, split: str) -> list[Example]:
    """At most `per_task` random examples of each task, in their order; seeded by task and split."""
    members: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        members.setdefault(example.task, []).append(i)
    kept: set[int] = set()
    for task, indices in members.items():
        rng = random.Random(f"choice/{task}/{split}")
        kept.update(rng.sample(indices, per_task) if len(indices) > per_task else indices)
    return [example for i, example in enumerate(examples) if i in kept]


def load(spec: str = "") -> Data:
    """Load the tasks that `--tasks` names, or the built-in suite if `spec` is empty.

    spec: for example `alpaca:PATH,mmlu:DIR,superglue:DIR` (see `multilora.tasks.public.sources`)

    Raises UserError as `sources.load` does.
    """
    if not spec:
        return Data(suite.FAMILY_OF)
    from multilora.tasks.public import sources

    source = sources.load(spec)
    return Data(source.family_of, source.examples, source.notes, source.files)


def sha256(examples: list[Example]) -> str:
    """SHA-256 of all fields of the examples, in hex."""
    return record.sha256([asdict(e) for e in examples])
