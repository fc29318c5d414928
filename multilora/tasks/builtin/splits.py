"""Which split an item belongs to: decided by the item, the same for ever, never by chance.

A task draws an item and names its split; who wants another split draws again. So no item can be
in two splits, however many are drawn and from whatever seed.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple


class Item(NamedTuple):
    """What a built-in task draws."""

    prompt: str
    answer: str
    options: tuple[str, ...] | None
    split: str


def by_hash(key: str) -> str:
    """A tenth of all keys to the test, a tenth to validation."""
    tenth = hashlib.sha256(key.encode()).digest()[0] % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


def by_position(member: object, members: Sequence[object]) -> str:
    """Every fifth of a short list to the test, the one before it to validation."""
    return {4: "test", 3: "validation"}.get(members.index(member) % 5, "train")
