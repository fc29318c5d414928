"""Build the name of a run from its method, its seed and the settings that it changes."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

_LONGEST_VALUE, _LONGEST_NAME = 40, 120  # characters; longer ones are hashed


def run_name(method: str, changes: Mapping[str, Any], seed: int) -> str:
    """METHOD-CHANGES-sSEED, fit for a file name.

    changes: settings by name; a value that is long or holds other characters is hashed.

    >>> run_name("multilora n=1", {"scale": 4.0, "packing": True, "target_modules": "q,v"}, 0)
    'multilora-n=1-scale=4-packing-target_modules=q+v-s0'
    >>> run_name("peft:DORA", {"model": "models/llama-7b"}, 1)
    'peft-DORA-model=llama-7b.07b7b536-s1'
    """
    parts = [name if value is True else f"{name}={_text(value)}" for name, value in changes.items()]
    if len("-".join(parts)) > _LONGEST_NAME:
        parts = [_hash("-".join(parts))]
    return "-".join([re.sub("[ :]", "-", method), *parts, f"s{seed}"])


def _text(value: Any) -> str:
    """A value as a part of a file name; different values give different texts."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _fits(text):
        return text.replace(",", "+")
    last = text.rstrip("/").rsplit("/", maxsplit=1)[-1]  # of a path
    return f"{last}.{_hash(text)}" if _fits(last) and "," not in text else _hash(text)


def _fits(text: str) -> bool:
    return len(text) <= _LONGEST_VALUE and re.fullmatch(r"[\w.,-]+", text) is not None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
