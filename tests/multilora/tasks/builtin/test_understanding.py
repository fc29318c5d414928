import itertools
import re

import pytest

from multilora.tasks.builtin import understanding, world
from multilora.tasks.example import SPLITS


def solve(e):
    """The right answer, from the prompt's words alone."""
    prompt = e.prompt
    if e.task == "sentiment":
        word = prompt.split(" . ")[0].split()[-1]
        good = (word in world.GOOD) != (" was not " in prompt)
        return "positive" if good else "negative"
    if e.task == "rooms":
        told = re.findall(r"an? (\w+) is in the (\w+) \.", prompt)
        (room,) = re.findall(r"what is in the (\w+) \?", prompt)
        return world.NOUNS[{where: noun for noun, where in told}[room]]
    if e.task == "coreference":
        group = world.HE if " he was " in prompt else world.SHE
        return [word for word in prompt.split() if word in group][-1]
    if e.task == "roles":
        *told, asked = [part.split() for part in re.split(r" [.?] ?", prompt)[:-1]]
        (whole,) = [t for t in told if all(q in ("who", w) for q, w in zip(asked, t, strict=True))]
        return whole[asked.index("who")]
    assert e.task == "order"
    return first_in_order(prompt)


def first_in_order(prompt):
    """The one ordering of the three people that both comparisons allow, by trying all."""
    pairs = re.findall(r"(\w+) is (\w+) than (\w+) \.", prompt)
    people = sorted({name for a, _, b in pairs for name in (a, b)})
    above = [(a, b) if said in world.COMPARATIVES else (b, a) for a, said, b in pairs]
    (chain,) = [
        chain
        for chain in itertools.permutations(people)
        if all(chain.index(high) < chain.index(low) for high, low in above)
    ]
    (superlative,) = re.findall(r"who is the (\w+) \?", prompt)
    more = {world.SUPERLATIVES.get(said) for _, said, _ in pairs} - {None}
    assert more <= {superlative}
    return chain[0]


@pytest.mark.parametrize("task", understanding.TASKS)
def test_answers_are_right(items, task):
    for e in items(task):
        assert solve(e) == e.answer, e


@pytest.mark.parametrize("task", understanding.TASKS)
def test_what_decides_a_test_item_never_decided_a_training_item(items, task):
    def decisive(e):
        if task == "sentiment":
            return frozenset({e.prompt.split(" . ")[0].split()[-1]})
        if task == "rooms":
            (room,) = re.findall(r"what is in the (\w+)", e.prompt)
            return frozenset(re.findall(rf"an? (\w+) is in the {room} \.", e.prompt))
        return frozenset(e.options)

    of = {split: {decisive(e) for e in items(task) if e.split == split} for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not of[a] & of[b]
