"""Instruction following: do what the first word says to a list. Scored by exact match."""

import random

from multilora.tasks.builtin import splits, world
from multilora.tasks.builtin.splits import Item

_ITEMS = list(world.NOUNS) + list(world.LETTERS) + world.NUMBERS


def _item(instruction: str, items: list[str], answer: str) -> Item:
    prompt = f"{instruction} : {' '.join(items)} . answer :"
    return Item(prompt, answer, None, splits.by_hash(prompt))


def reverse(rng: random.Random) -> Item:
    items = rng.sample(_ITEMS, rng.randint(4, 8))
    return _item("reverse", items, " ".join(reversed(items)))


def sort(rng: random.Random) -> Item:
    items = rng.sample(world.NUMBERS, rng.randint(3, 5))
    return _item("sort", items, " ".join(sorted(items, key=int)))


def deduplicate(rng: random.Random) -> Item:
    items = rng.choices(rng.sample(_ITEMS, 3), k=rng.randint(4, 7))
    return _item("deduplicate", items, " ".join(dict.fromkeys(items)))


def repeated(rng: random.Random) -> Item:
    """Those that occur more than once, in the order of their first occurrence."""
    pool = rng.sample(_ITEMS, 4)
    twice = pool[: rng.randint(1, 3)]
    items = rng.sample([*pool, *twice], len(pool) + len(twice))
    answer = " ".join(item for item in dict.fromkeys(items) if item in twice)
    return _item("again", items, answer)


def swap(rng: random.Random) -> Item:
    """First and last change places."""
    items = rng.sample(_ITEMS, rng.randint(4, 8))
    return _item("swap", items, " ".join([items[-1], *items[1:-1], items[0]]))


TASKS = {task.__name__: task for task in (reverse, sort, deduplicate, repeated, swap)}
