"""The built-in suite: fifteen tasks, five per task family, in disjoint splits.

Like the paper, it mixes instruction following, natural language understanding and world knowledge
"to cover semantically and syntactically different samples" (arXiv 2311.11501), at a size that a
small model learns in minutes.
"""

import random
from collections.abc import Iterator

from analysis import UserError
from multilora.tasks.builtin import instruction, knowledge, understanding
from multilora.tasks.example import FAMILIES, SPLITS, Example

TASKS = {
    task: (family, draw)
    for family, module in zip(FAMILIES, (instruction, understanding, knowledge), strict=True)
    for task, draw in module.TASKS.items()
}

FAMILY_OF = {task: family for task, (family, _) in TASKS.items()}

_PATIENCE = 1000  # repeated items in a row after which a task counts as exhausted


def load(split: str, per_task: int, seed: int = 0) -> list[Example]:
    """Return `per_task` examples of every task, task by task; the same in every call.

    Validation and test items are distinct. Training items may repeat, because a task such as
    `known_facts` has fewer than `per_task` of them. No prompt of one split occurs in another.
    Raises UserError if `split` is unknown, or if a task has fewer distinct held-out items.
    """
    if split not in SPLITS:
        raise UserError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    return [example for task in TASKS for example in _take(task, split, per_task, seed)]


def _take(task: str, split: str, count: int, seed: int) -> list[Example]:
    """The first `count` examples of a task and split, without repetition if held out."""
    examples: list[Example] = []
    seen: set[str] = set()
    repeats = 0
    stream = _stream(task, split, seed)
    while len(examples) < count:
        example = next(stream)
        if split != "train" and example.prompt in seen:
            repeats += 1
            if repeats == _PATIENCE:
                raise UserError(
                    f"{task}: {count} {split} items were requested; expected at most about "
                    f"{len(examples)}, all that the task has"
                )
            continue
        repeats = 0
        seen.add(example.prompt)
        examples.append(example)
    return examples


def _stream(task: str, split: str, seed: int) -> Iterator[Example]:
    """Yield examples of one task and split without end."""
    rng = random.Random(f"{task}/{split}/{seed}")
    family, draw = TASKS[task]
    while True:
        item = draw(rng)
        if item.split == split:
            yield Example(task, family, split, item.prompt, item.answer, item.options)
