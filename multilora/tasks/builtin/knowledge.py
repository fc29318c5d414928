"""World knowledge: four-way questions about facts; scored by likelihood.

Each test item is asked in a way that training does not use for the same fact:

- `known_facts`: the base model read the fact; training asks about other places.
- `same_kind`: the base model read which kind a noun is; training asks about other nouns.
- `new_facts`: training asks about the fact in one form, the test in another.
- `sums`, `differences`: training asks for other sums and differences.
"""

import random

from multilora.tasks.builtin import splits, world
from multilora.tasks.builtin.corpus import KNOWN_FACTS
from multilora.tasks.builtin.splits import Item

_NEW_FACTS = world.facts(world.NEW_PLACES)


def known_facts(rng: random.Random) -> Item:
    """Question about a fact of the corpus; the splits have different places."""
    fact = rng.choice(KNOWN_FACTS)
    split = splits.by_position(fact.place, world.KNOWN_PLACES)
    return _fact_question(rng, fact, rng.randrange(2), split)


def same_kind(rng: random.Random) -> Item:
    """Question for a noun of the same kind as another; the splits ask about different nouns."""
    nouns = list(world.NOUNS)
    noun = rng.choice(nouns)
    kind = world.NOUNS[noun]
    answer = rng.choice([other for other in nouns if world.NOUNS[other] == kind and other != noun])
    others = [other for other in nouns if world.NOUNS[other] != kind]
    question = f"what is the same kind of thing as {noun}"
    return _choice(rng, question, answer, others, split=splits.by_position(noun, nouns))


def new_facts(rng: random.Random) -> Item:
    """Question about a fact that the corpus lacks.

    Form 0 is always a training item. Form 1 is a training item for some places; for the others it
    is the validation or test item.
    """
    fact, form = rng.choice(_NEW_FACTS), rng.randrange(2)
    split = "train" if form == 0 else splits.by_position(fact.place, world.NEW_PLACES)
    return _fact_question(rng, fact, form, split)


def sums(rng: random.Random) -> Item:
    """Question for a sum of two numbers below 30; a + b and b + a are in the same split."""
    a, b = rng.randrange(30), rng.randrange(30)
    split = splits.by_hash(f"{min(a, b)} + {max(a, b)}")
    return _number_question(rng, f"{a} + {b}", a + b, split)


def differences(rng: random.Random) -> Item:
    """Question for a difference below 30, where the number subtracted is below 30 too."""
    a, b = rng.randrange(30), rng.randrange(30)
    question = f"{a + b} - {b}"
    return _number_question(rng, question, a, splits.by_hash(question))


def _fact_question(rng: random.Random, fact: world.Fact, form: int, split: str) -> Item:
    """Question about a fact in form 0 or 1; the options are values of its relation."""
    place, relation, value = fact
    forms = (f"what {relation} has {place}", f"{place} is famous for what {relation}")
    return _choice(rng, forms[form], value, world.RELATIONS[relation], split=split)


def _number_question(rng: random.Random, question: str, answer: int, split: str) -> Item:
    """Question whose options are numbers close to the answer."""
    near = [answer + d for d in (-10, -2, -1, 1, 2, 10)]
    values = [str(value) for value in near if 0 <= value < len(world.NUMBERS)]
    return _choice(rng, question, str(answer), values, split=split)


def _choice(rng: random.Random, question: str, answer: str, values: list[str], split: str) -> Item:
    """Question whose options are the answer and three other values, in random order.

    question: the text without its question mark
    answer: the right option
    values: words to draw the wrong options from; may contain the answer
    split: split of the item
    """
    wrong = rng.sample([value for value in values if value != answer], 3)
    options = tuple(rng.sample([answer, *wrong], 4))
    prompt = f"{question} ? options {' , '.join(options)} . answer :"
    return Item(prompt, answer, options, split)


TASKS = {task.__name__: task for task in (known_facts, same_kind, new_facts, sums, differences)}
