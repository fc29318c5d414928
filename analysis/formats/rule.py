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
from analysis.files.tensors import count, number, short

# An expression that cannot take long, to compile or to match: letters and dots, and only a few.
HARMLESS = re.compile(r"\^?(?:[\w-]|\\?\.){0,1000}\$?", re.ASCII)
LONG = 100_000  # letters in all expressions together; more are refused
# With more expressions than MANY, or more pairs of an expression and a name than PAIRS, harmless
# expressions are matched in the other process too.
MANY = 1000
PAIRS = 10**6
SECONDS = 1.0  # for the other process
MEMORY = 2**29  # bytes, for the other process
CODE = """
import json, re, sys, warnings
warnings.simplefilter("ignore")
keys, modules, memory = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except (ImportError, ValueError, OSError):
    pass
hits = []
for key in keys:
    try:
        match = re.compile(key).match
        hits.append([i for i, module in enumerate(modules) if match(module)])
    except (re.error, RecursionError, OverflowError) as error:
        hits.append(str(error))
json.dump(hits, sys.stdout)
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
    of the module's path; for a module that none matches, the key that is its whole name. Raises
    CheckpointError, which begins with `where`, if a key is not a regular expression or if matching
    takes too long.
    """
    listed, names = list(keys), list(modules)
    length = sum(map(len, listed))
    if length > LONG:
        raise CheckpointError(f"{where}: is {length} letters long; expected at most {LONG}")
    expressions = [rf"(.*\.)?({key})$" for key in listed]
    few = len(listed) <= MANY and len(listed) * len(names) <= PAIRS
    hits: list[list[int] | str]
    if few and all(HARMLESS.fullmatch(key) for key in listed):
        compiled = [re.compile(expression) for expression in expressions]
        hits = [[i for i, name in enumerate(names) if key.match(name)] for key in compiled]
    else:
        hits = _apart(expressions, names, where)
    first: dict[str, str] = {}
    for key, matched in zip(listed, hits, strict=True):
        if isinstance(matched, str):
            raise CheckpointError(f"{where}: {short(key)}: {matched}; expected names of modules")
        for i in matched:
            first.setdefault(names[i], key)
    return first | {name: name for name in names if name not in first and name in keys}


def _apart(expressions: list[str], names: list[str], where: str) -> list[list[int] | str]:
    """Return the indices of the names at whose start each expression matches, or its error.

    They are a stranger's: another process, which can be stopped, compiles and matches them.
    """
    import subprocess  # few checkpoints need it

    try:
        process = subprocess.run(
            [sys.executable, "-I", "-S", "-c", CODE],
            input=json.dumps([expressions, names, MEMORY]).encode(),
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


# How PEFT puts a setting into an expression: target_modules and feedforward_modules as they are,
# the keys of patterns, modules_to_save, layers_pattern.
FORMS = (
    r"(?:{})$", r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
)  # fmt: skip
LITERAL = re.compile(r"[\w./ -]{0,1000}", re.ASCII)


def refuse_slow(config: dict[str, Any], where: Path | str, modules: Collection[str]) -> None:
    """Raise CheckpointError if PEFT would take too long over an expression in a config.

    config: the adapter's config, before PEFT reads it.
    where: its file, for messages.
    modules: the names of the tensors, or of the modules, of the model that it is for.

    PEFT compiles many of its settings, of types known and to come, and matches them with the name
    of every module. So every text in the config is tried in all of FORMS, in a process that can be
    stopped; one that is no expression is left to PEFT.
    """
    texts = [text for text in _texts(config) if not LITERAL.fullmatch(text)]
    if sum(map(len, texts)) > LONG:
        raise CheckpointError(f"{where}: holds over {LONG} letters of expressions")
    if texts:
        names = sorted({path for name in modules for path in _paths(name)})
        _apart([form.replace("{}", text) for text in texts for form in FORMS], names, str(where))


def _texts(value: Any) -> list[str]:
    """Return all texts in a JSON value, the keys of objects too."""
    found: dict[str, None] = {}
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, str):
            found[inner] = None
        elif isinstance(inner, dict):
            waiting += [*inner.keys(), *inner.values()]
        elif isinstance(inner, list):
            waiting += inner
    return list(found)


def _paths(name: str) -> list[str]:
    """Return the name of a tensor and those of the modules that it is in.

    >>> _paths("layers.0.q")
    ['layers', 'layers.0', 'layers.0.q']
    """
    parts = name.split(".")[:20]
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
