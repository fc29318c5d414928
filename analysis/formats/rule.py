"""What an adapter_config.json says of the rank and the scale of each module.

`rank_pattern` and `alpha_pattern` hold a stranger's regular expressions. The standard library sets
no limit to a match, and `(a+)+$` takes longer than anyone waits: what has nothing but letters and
dots cannot, and the rest is tried in a process that can be stopped.
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
LONG = 100_000  # letters of all expressions together; more are refused
MANY = 1000  # expressions, and PAIRS of one with a name; more are tried in the other process too
PAIRS = 10**6
SECONDS = 2.0
CODE = """
import json, re, sys
keys, modules = json.load(sys.stdin)
compiled = [re.compile(key) for key in keys]
json.dump([[i for i, module in enumerate(modules) if key.match(module)] for key in compiled],
          sys.stdout)
"""


class Rule:
    """r and the factor before B @ A of each of `modules`: α/r, or α/√r with rsLoRA."""

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
        """Module → the value that the pattern gives it."""
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict):
            raise CheckpointError(f"{self.path}: {key} is {short(pattern)}; expected an object")
        values = {name: number(pattern, name, self.path, least) for name in pattern}
        first = first_matches(pattern, modules, f"{self.path}: {key}")
        return {module: values[name] for module, name in first.items()}

    def rank(self, module: str) -> float:
        """The r that the config gives the module."""
        return self.ranks.get(module, self.r)

    def scale(self, module: str) -> float:
        """The factor before B @ A."""
        r = self.rank(module)
        return self.alphas.get(module, self.alpha) / (math.sqrt(r) if self.rslora else r)


def first_matches(keys: Collection[str], modules: Collection[str], where: str) -> dict[str, str]:
    """Module → the first of `keys` that matches it, by PEFT's own rule for rank_pattern.

    The rule (peft.utils.other.get_pattern_key): an expression for the end of the module's path,
    whole components only. Raises CheckpointError naming `where` for a key that is no expression,
    and where they take too long.
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
