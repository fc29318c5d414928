"""World knowledge: four-way questions about facts. Scored by likelihood.

What is tested is always asked in a way that was not trained for that fact:

- `known_facts`: the base model read the fact; training asks about other places.
- `same_kind`: the base model read what kind a noun is; training asks about other nouns.
- `new_facts`: training asks about the fact in one form; the test asks in another.
- `sums`, `differences`: training asks other ones.
"""

import random

from multilora.tasks.builtin import splits, world
from multilora.tasks.builtin.corpus import KNOWN_FACTS
from multilora.tasks.builtin.splits import Item

_NEW_FACTS = world.facts(world.NEW_PLACES)


def known_facts(rng: random.Random) -> Item:
    fact = rng.choice(KNOWN_FACTS)
    split = splits.by_position(fact.place, world.KNOWN_PLACES)
    return _question(rng, fact, rng.randrange(2), split)


def same_kind(rng: random.Random) -> Item:
    nouns = list(world.NOUNS)
    noun = rng.choice(nouns)
    kind = world.NOUNS[noun]
    answer = rng.choice([other for other in nouns if world.NOUNS[other] == kind and other != noun])
    others = [other for other in nouns if world.NOUNS[other] != kind]
    split = splits.by_position(noun, nouns)
    return _choose(rng, f"what is the same kind of thing as {noun}", answer, others, split)


def new_facts(rng: random.Random) -> Item:
    fact, form = rng.choice(_NEW_FACTS), rng.randrange(2)
    split = "train" if form == 0 else splits.by_position(fact.place, world.NEW_PLACES)
    return _question(rng, fact, form, split)


def sums(rng: random.Random) -> Item:
    a, b = rng.randrange(30), rng.randrange(30)
    split = splits.by_hash(f"{min(a, b)} + {max(a, b)}")  # a + b and b + a are one sum
    return _calculate(rng, f"{a} + {b}", a + b, split)


def differences(rng: random.Random) -> Item:
    a, b = rng.randrange(30), rng.randrange(30)
    return _calculate(rng, f"{a + b} - {b}", a, splits.by_hash(f"{a + b} - {b}"))


def _question(rng: random.Random, fact: world.Fact, form: int, split: str) -> Item:
    place, relation, value = fact
    asked = (f"what {relation} has {place}", f"{place} is famous for what {relation}")[form]
    return _choose(rng, asked, value, world.RELATIONS[relation], split)


def _calculate(rng: random.Random, question: str, answer: int, split: str) -> Item:
    near = [answer + d for d in (-10, -2, -1, 1, 2, 10)]
    values = [str(value) for value in near if 0 <= value < len(world.NUMBERS)]
    return _choose(rng, question, str(answer), values, split)


def _choose(rng: random.Random, question: str, answer: str, values: list[str], split: str) -> Item:
    """The answer among three others of `values`, in random order."""
    wrong = rng.sample([value for value in values if value != answer], 3)
    options = tuple(rng.sample([answer, *wrong], 4))
    prompt = f"{question} ? options {' , '.join(options)} . answer :"
    return Item(prompt, answer, options, split)


TASKS = {task.__name__: task for task in (known_facts, same_kind, new_facts, sums, differences)}
