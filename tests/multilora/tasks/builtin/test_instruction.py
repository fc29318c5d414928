import re

import pytest

from multilora.tasks.builtin import instruction


def unique(words):
    return [word for i, word in enumerate(words) if word not in words[:i]]


INSTRUCTIONS = {
    "reverse": lambda words: words[::-1],
    "sort": lambda words: [str(i) for i in sorted(map(int, words))],
    "repeated": lambda words: [word for word in unique(words) if words.count(word) > 1],
    "deduplicate": unique,
    "swap": lambda words: words[-1:] + words[1:-1] + words[:1],
}
NAMES = {"repeated": "again"}  # the word in the prompt that is not the name of the task


@pytest.mark.parametrize("task", instruction.TASKS)
def test_answers_are_right(items, task):
    for e in items(task):
        asked, words = re.fullmatch(r"(\w+) : (.+) \. answer :", e.prompt).groups()
        assert asked == NAMES.get(task, task)
        assert e.answer == " ".join(INSTRUCTIONS[task](words.split())), e


@pytest.mark.parametrize("task", instruction.TASKS)
def test_answers_are_free_text(items, task):
    for e in items(task):
        assert e.family == "instruction"
        assert e.options is None
        assert e.chance == 0
