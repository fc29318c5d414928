"""Language understanding: sentiment, entailment, roles, order, meaning. Scored by likelihood.

The words or groups of words that decide a test item never decided a training item: each task
splits by them.
"""

import random
from collections.abc import Iterable

from multilora.tasks import splits, world
from multilora.tasks.splits import Item
from multilora.tasks.world import article


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


def entailment(rng: random.Random) -> Item:
    """Does it follow? A noun's kind in the same room does; another kind or room does not."""
    nouns = list(world.NOUNS)
    noun, room = rng.choice(nouns), rng.choice(world.ROOMS)
    kind, there = world.NOUNS[noun], room
    follows = rng.random() < 0.5
    if not follows and rng.random() < 0.5:
        kind = rng.choice([other for other in world.KINDS if other != kind])
    elif not follows:
        there = rng.choice([other for other in world.ROOMS if other != room])
    told = f"{article(noun)} is in the {room} . so {article(kind)} is in the {there}"
    answer = "yes" if follows else "no"
    return Item(f"{told} . yes or no ?", answer, ("yes", "no"), splits.by_position(noun, nouns))


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


def odd_one_out(rng: random.Random) -> Item:
    """Which of four nouns is of another kind? Sets of four are disjoint."""
    kind, other = rng.sample(list(world.KINDS), 2)
    same = rng.sample(world.KINDS[kind].split(), 3)
    odd = rng.choice(world.KINDS[other].split())
    options = tuple(rng.sample([*same, odd], 4))
    prompt = f"odd : {' , '.join(options)} . answer :"
    return Item(prompt, odd, options, _split_of_set(options))


def _split_of_set(words: Iterable[str]) -> str:
    """One split for a set of words, in whatever order they stand."""
    return splits.by_hash(" ".join(sorted(words)))


TASKS = {task.__name__: task for task in (sentiment, entailment, roles, order, odd_one_out)}
