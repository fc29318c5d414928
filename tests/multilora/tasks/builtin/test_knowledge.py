import collections
import random
import re

import pytest

from multilora.tasks.builtin import knowledge, suite, world


def fact_in(prompt):
    """(fact, form of the question or statement) that the prompt asks for."""
    forms = [r"what (\w+) has (\w+) \?", r"()(\w+) is famous for what (\w+) \?"]
    forms += [r"the (\w+) of (\w+) is$", r"()(\w+) is known for its (\w+)$"]
    for i, form in enumerate(forms):
        match = re.match(form, prompt)
        if match:
            relation, place = (match[1], match[2]) if i % 2 == 0 else (match[3], match[2])
            (fact,) = [f for f in world.facts([place]) if f.relation == relation]
            return fact, i % 2
    raise ValueError(prompt)


def solve(e):
    """The right answer, from the prompt's words alone."""
    prompt = e.prompt
    if e.task == "same_kind":
        noun = prompt.split(" ? ")[0].split()[-1]
        (same,) = [word for word in e.options if world.NOUNS[word] == world.NOUNS[noun]]
        assert same != noun
        return same
    if e.task == "sums":
        a, b = re.match(r"(\d+) \+ (\d+) \?", prompt).groups()
        return str(int(a) + int(b))
    if e.task == "differences":
        a, b = re.match(r"(\d+) - (\d+) \?", prompt).groups()
        return str(int(a) - int(b))
    return fact_in(prompt)[0].value


@pytest.mark.parametrize("task", knowledge.TASKS)
def test_answers_are_right(items, task):
    for e in items(task):
        assert solve(e) == e.answer, e


def test_every_new_fact_is_trained_in_one_form_and_tested_in_the_other():
    train = [fact_in(e.prompt) for e in suite.load("train", 800) if e.task == "new_facts"]
    for split in ("validation", "test"):
        for e in suite.load(split, 100):
            if e.task == "new_facts":
                fact, form = fact_in(e.prompt)
                assert form == 1
                assert (fact, 0) in train
                assert not [f for f, form in train if f.place == fact.place and form == 1]
    assert [form for _, form in train if form == 1]  # the tested form is trained, elsewhere


def test_a_sum_turned_round_is_in_the_same_split():
    split_of = {}
    rng = random.Random("sums")
    for _ in range(3000):
        item = knowledge.sums(rng)
        pair = frozenset(re.match(r"(\d+) \+ (\d+)", item.prompt).groups())
        assert split_of.setdefault(pair, item.split) == item.split


def test_known_facts_are_tested_at_places_that_training_never_asks_about(items):
    places = collections.defaultdict(set)
    for e in items("known_facts"):
        places[e.split].add(fact_in(e.prompt)[0].place)
    assert not places["train"] & places["test"]
    assert not places["train"] & places["validation"]
    assert places["train"] | places["test"] | places["validation"] == set(world.KNOWN_PLACES)
