"""Language understanding: sentiment, reading, reference, roles, order. Scored by likelihood.

The words or groups of words that decide a test item never decided a training item: each task
splits by them.
"""

import random
from collections.abc import Iterable

from multilora.tasks.builtin import splits, world
from multilora.tasks.builtin.splits import Item
from multilora.tasks.builtin.world import article


def sentiment(rng: random.Random) -> Item:
    """Is it positive? A `not` in a quarter turns it round; the splits' adjectives are disjoint."""
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
    """What kind of thing is in one of two rooms? The nouns asked about are disjoint."""
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
    """Who does the pronoun mean? The last named of its gender; sets of names are disjoint."""
    people = rng.sample(world.HE + world.SHE, 3)
    group = world.HE if rng.choice(people) in world.HE else world.SHE
    pronoun, feeling = "he" if group is world.HE else "she", rng.choice(world.FEELINGS)
    a, b, c = people
    prompt = f"{a} met {b} and {c} because {pronoun} was {feeling} . who was {feeling} ?"
    answer = next(name for name in reversed(people) if name in group)
    return Item(prompt, answer, tuple(rng.sample(people, 3)), _split_of_set(people))


def roles(rng: random.Random) -> Item:
    """Who did what to whom, in two sentences? The sets of names are disjoint."""
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
    """Who is first in a chain of two comparisons, one of which may be turned round?"""
    more = rng.choice(list(world.COMPARATIVES))
    less, most = world.COMPARATIVES[more], world.SUPERLATIVES[more]
    people = rng.sample(world.HE + world.SHE, 3)
    a, b, c = people

    def says(high: str, low: str) -> str:
        turned = rng.random() < 0.5
        return f"{low} is {less} than {high} ." if turned else f"{high} is {more} than {low} ."

    statements = rng.sample([says(a, b), says(b, c)], 2)
    options = tuple(rng.sample(people, 3))
    prompt = f"{' '.join(statements)} who is the {most} ?"
    return Item(prompt, a, options, _split_of_set(people))


def _split_of_set(words: Iterable[str]) -> str:
    """One split for a set of words, in whatever order they stand."""
    return splits.by_hash(" ".join(sorted(words)))


TASKS = {task.__name__: task for task in (sentiment, rooms, coreference, roles, order)}
