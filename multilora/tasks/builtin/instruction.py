"""Instruction following: apply the operation named first to a list; scored by exact match."""

import random

from multilora.tasks.builtin import splits, world
from multilora.tasks.builtin.splits import Item

_ITEMS = list(world.NOUNS) + list(world.LETTERS) + world.NUMBERS


def _item(instruction: str, items: list[str], answer: list[str]) -> Item:
    """Item that asks to apply `instruction` to the list `items`."""
    prompt = f"{instruction} : {' '.join(items)} . answer :"
    return Item(prompt, " ".join(answer), options=None, split=splits.by_hash(prompt))


def reverse(rng: random.Random) -> Item:
    """Item whose answer is the list in reverse order."""
    items = rng.sample(_ITEMS, rng.randint(4, 8))
    return _item("reverse", items, items[::-1])


def sort(rng: random.Random) -> Item:
    """Item whose answer is the list of numbers in ascending order."""
    items = rng.sample(world.NUMBERS, rng.randint(3, 5))
    return _item("sort", items, sorted(items, key=int))


def deduplicate(rng: random.Random) -> Item:
    """Item whose answer is the list without repetitions, in the order of first occurrence."""
    items = rng.choices(rng.sample(_ITEMS, 3), k=rng.randint(4, 7))
    return _item("deduplicate", items, list(dict.fromkeys(items)))


def repeated(rng: random.Random) -> Item:
    """Item whose answer is the words that occur twice, in the order of first occurrence."""
    pool = rng.sample(_ITEMS, 4)
    twice = pool[: rng.randint(1, 3)]
    items = rng.sample([*pool, *twice], len(pool) + len(twice))
    return _item("again", items, [item for item in dict.fromkeys(items) if item in twice])


def swap(rng: random.Random) -> Item:
    """Item whose answer is the list with its first and last word exchanged."""
    items = rng.sample(_ITEMS, rng.randint(4, 8))
    return _item("swap", items, [items[-1], *items[1:-1], items[0]])


TASKS = {task.__name__: task for task in (reverse, sort, deduplicate, repeated, swap)}
