"""Rank and scale of each module, from adapter_config.json.

`rank_pattern` and `alpha_pattern` hold a stranger's regular expressions. The standard library has
no time limit for a match, and `(a+)+$` can take practically forever. An expression of letters and
dots cannot; any other is matched in a process that can be stopped.
"""

import json
import math
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from analysis import CheckpointError
from analysis.formats.tensors import count, number, short

HARMLESS = re.compile(r"\^?(?:[\w-]|\\?\.)*\$?")
LONG = 100_000  # letters in all expressions together; more are refused
# With more expressions than MANY, or more pairs of an expression and a name than PAIRS, harmless
# expressions are matched in the other process too.
MANY = 1000
PAIRS = 10**6
SECONDS = 2.0  # for the other process
CODE = """
import json, re, sys
keys, modules = json.load(sys.stdin)
compiled = [re.compile(key) for key in keys]
json.dump([[i for i, module in enumerate(modules) if key.match(module)] for key in compiled],
          sys.stdout)
"""


class Rule:
    """Rank r and scale of each module: α/r, or α/√r with rsLoRA.

    config: the adapter's config; path: its file, for messages; modules: the names of the modules.
    Raises CheckpointError if r, α or a pattern is not what it should be.
    """

    def __init__(self, config: dict[str, Any], path: Path | str, modules: Collection[str]) -> None:
        self.path = path
        self.r = count(config, "r", path)
        self.alpha = number(config, "lora_alpha", path)
        self.rslora = bool(config.get("use_rslora"))
        self.ranks = self._pattern(config, "rank_pattern", modules, least=1)
        self.alphas = self._pattern(config, "alpha_pattern", modules)

    def _pattern(
        self, config: dict[str, Any], key: str, modules: Collection[str], least: float = -1e300
    ) -> dict[str, float]:
        """Return module → the value that the pattern `key` gives it."""
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict):
            raise CheckpointError(f"{self.path}: {key} is {short(pattern)}; expected an object")
        values = {name: number(pattern, name, self.path, least) for name in pattern}
        first = first_matches(pattern, modules, f"{self.path}: {key}")
        return {module: values[name] for module, name in first.items()}

    def rank(self, module: str) -> float:
        """Return the r that the config gives the module."""
        return self.ranks.get(module, self.r)

    def scale(self, module: str) -> float:
        """Return the number that B @ A is multiplied by."""
        r = self.rank(module)
        return self.alphas.get(module, self.alpha) / (math.sqrt(r) if self.rslora else r)


def first_matches(keys: Collection[str], modules: Collection[str], where: str) -> dict[str, str]:
    """Return module → the first of `keys` that matches it, by PEFT's own rule for rank_pattern.

    By that rule (peft.utils.other.get_pattern_key) a key is an expression for the last components
    of the module's path. Raises CheckpointError, which begins with `where`, if a key is not a
    regular expression or if matching takes too long.
    """
    listed, names = list(keys), list(modules)
    length = sum(map(len, listed))
    if length > LONG:
        raise CheckpointError(f"{where}: is {length} letters long; expected at most {LONG}")
    expressions = [rf"(.*\.)?({key})$" for key in listed]
    try:
        compiled = [re.compile(expression) for expression in expressions]
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{where}: {error}") from None
    few = len(listed) <= MANY and len(listed) * len(names) <= PAIRS
    if few and all(HARMLESS.fullmatch(key) for key in listed):
        hits = [[i for i, name in enumerate(names) if key.match(name)] for key in compiled]
    else:
        hits = _apart(expressions, names, where)
    first: dict[str, str] = {}
    for key, matched in zip(listed, hits, strict=True):
        for i in matched:
            first.setdefault(names[i], key)
    return first


def _apart(expressions: list[str], names: list[str], where: str) -> list[list[int]]:
    """Return the indices of the names that each expression matches, found by another process."""
    import subprocess  # few checkpoints need it

    try:
        process = subprocess.run(
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
    return json.loads(process.stdout)
