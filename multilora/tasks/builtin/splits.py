"""Assign items to splits by their content alone.

A task draws an item together with its split; a caller that wants another split draws again. So no
item is in two splits, however many items are drawn and from whichever seeds.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple


class Item(NamedTuple):
    """An item drawn by a built-in task; options is None if the answer is free text."""

    prompt: str
    answer: str
    options: tuple[str, ...] | None
    split: str


def by_hash(key: str) -> str:
    """Split of a key by its SHA-256: test and validation get a tenth of all keys each."""
    tenth = hashlib.sha256(key.encode()).digest()[0] % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


def by_position(member: object, members: Sequence[object]) -> str:
    """Split of a member of a short list: the fifth of every five is test, the fourth validation."""
    return {4: "test", 3: "validation"}.get(members.index(member) % 5, "train")
