"""Language understanding: sentiment, reading, reference, roles, order; scored by likelihood.

Each task is split by the word or the set of words that decides the answer, so that what decides a
test item never decides a training item.
"""

import random
from collections.abc import Iterable

from multilora.tasks.builtin import splits, world
from multilora.tasks.builtin.splits import Item
from multilora.tasks.builtin.world import article


def sentiment(rng: random.Random) -> Item:
    """Question whether a statement is positive; `not` reverses a quarter of them.

    The splits have different adjectives.
    """
    good, negated = rng.random() < 0.5, rng.random() < 0.25
    adjectives = world.GOOD if good else world.BAD
    adjective = rng.choice(adjectives)
    person, thing = rng.choice(world.HE + world.SHE), rng.choice(world.THINGS)
    statement = f"{person} said the {thing} was {'not ' if negated else ''}{adjective}"
    answer = "positive" if good != negated else "negative"
    prompt = f"{statement} . positive or negative ?"
    split = splits.by_position(adjective, adjectives)
    return Item(prompt, answer, ("positive", "negative"), split)


def rooms(rng: random.Random) -> Item:
    """Question for the kind of thing in one of two rooms; the splits ask about different nouns."""
    nouns = list(world.NOUNS)
    kinds = rng.sample(list(world.KINDS), 4)
    asked, other = (rng.choice(world.KINDS[kind].split()) for kind in kinds[:2])
    here, there = rng.sample(world.ROOMS, 2)
    told = [f"{article(asked)} is in the {here} .", f"{article(other)} is in the {there} ."]
    options = tuple(rng.sample(kinds, 4))
    prompt = (
        f"{' '.join(rng.sample(told, 2))} what is in the {here} ? "
        f"options {' , '.join(options)} . answer :"
    )
    return Item(prompt, kinds[0], options, splits.by_position(asked, nouns))


def coreference(rng: random.Random) -> Item:
    """Question for the person that a pronoun means: the last one named of its gender.

    The splits have different sets of three names.
    """
    people = rng.sample(world.HE + world.SHE, 3)
    group = world.HE if rng.choice(people) in world.HE else world.SHE
    pronoun, feeling = "he" if group is world.HE else "she", rng.choice(world.FEELINGS)
    a, b, c = people
    prompt = f"{a} met {b} and {c} because {pronoun} was {feeling} . who was {feeling} ?"
    answer = next(name for name in reversed(people) if name in group)
    return Item(prompt, answer, tuple(rng.sample(people, 3)), _split_of_set(people))


def roles(rng: random.Random) -> Item:
    """Question for the subject or the object in one of two sentences.

    The splits have different sets of three names.
    """
    people = rng.sample(world.HE + world.SHE, 3)
    a, b, c = people
    one, two = rng.sample(["met", "greeted", "thanked"], 2)
    done = [(a, one, b), (b, two, c)]
    subject, verb, target = rng.choice(done)
    asks_subject = rng.random() < 0.5
    question = f"who {verb} {target} ?" if asks_subject else f"{subject} {verb} who ?"
    told = " ".join(f"{x} {did} {y} ." for x, did, y in rng.sample(done, 2))
    answer = subject if asks_subject else target
    return Item(f"{told} {question}", answer, tuple(rng.sample(people, 3)), _split_of_set(people))


def order(rng: random.Random) -> Item:
    """Question for the first of three people, given two comparisons in either direction.

    The splits have different sets of three names.
    """
    more = rng.choice(list(world.COMPARATIVES))
    less, most = world.COMPARATIVES[more], world.SUPERLATIVES[more]
    people = rng.sample(world.HE + world.SHE, 3)
    a, b, c = people

    def comparison(high: str, low: str) -> str:
        turned = rng.random() < 0.5
        return f"{low} is {less} than {high} ." if turned else f"{high} is {more} than {low} ."

    statements = rng.sample([comparison(a, b), comparison(b, c)], 2)
    options = tuple(rng.sample(people, 3))
    prompt = f"{' '.join(statements)} who is the {most} ?"
    return Item(prompt, a, options, _split_of_set(people))


def _split_of_set(words: Iterable[str]) -> str:
    """Split of a set of words, independent of their order."""
    return splits.by_hash(" ".join(sorted(words)))


TASKS = {task.__name__: task for task in (sentiment, rooms, coreference, roles, order)}
