"""A stranger's regular expressions: which modules does each match, in bounded time.

The standard library sets no limit to a match, and `(a+)+$` takes longer than anyone waits. What
has nothing but letters and dots cannot; the rest is tried in a process that can be stopped.
"""

import json
import re
import sys
from collections.abc import Collection

from analysis import CheckpointError

HARMLESS = re.compile(r"\^?(?:[\w-]|\\?\.)*\$?")
MANY = 1000  # expressions; more are tried in the other process too
SECONDS = 2.0
CODE = """
import json, re, sys
keys, modules = json.load(sys.stdin)
compiled = [re.compile(key) for key in keys]
json.dump([[i for i, module in enumerate(modules) if key.match(module)] for key in compiled],
          sys.stdout)
"""


def first_matches(keys: Collection[str], modules: Collection[str], where: str) -> dict[str, str]:
    """Module → the first of `keys` that matches it, by PEFT's own rule for rank_pattern.

    The rule (peft.utils.other.get_pattern_key): an expression for the end of the module's path,
    whole components only. Raises CheckpointError naming `where` for a key that is no expression,
    and where they take too long.
    """
    listed, names = list(keys), list(modules)
    expressions = [rf"(.*\.)?({key})$" for key in listed]
    try:
        compiled = [re.compile(expression) for expression in expressions]
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{where}: {error}") from None
    if len(listed) <= MANY and all(HARMLESS.fullmatch(key) for key in listed):
        hits = [[i for i, name in enumerate(names) if key.match(name)] for key in compiled]
    else:
        hits = _apart(expressions, names, where)
    first: dict[str, str] = {}
    for key, matched in zip(listed, hits, strict=True):
        for i in matched:
            first.setdefault(names[i], key)
    return first


def _apart(expressions: list[str], names: list[str], where: str) -> list[list[int]]:
    """For each expression the places of the names it matches, found by a process of its own."""
    import subprocess  # which few checkpoints need

    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", CODE],
            input=json.dumps([expressions, names]).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{where}: its expressions take over {SECONDS:g} s to match; expected names of modules"
        ) from None
    except subprocess.CalledProcessError:
        raise CheckpointError(f"{where}: its expressions cannot be matched") from None
    return json.loads(done.stdout)
