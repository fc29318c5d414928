"""Any two tensors that make an update, by the patterns of their names: --factors A B [--scale X].

    --factors 'w_a_(\\d+)' 'w_b_(\\d+)'     w_a_000 (r, d_in) and w_b_000 (d_out, r)

What the groups catch names the module, and pairs an A with its B. ΔW = X · B @ A, X = 1 unless
given. The other files of single adapters, and PEFT's, share what is here about two factors.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from analysis import CheckpointError, UserError
from analysis.formats import Options
from analysis.formats.tensors import Stored
from analysis.update import Entry, LowRankUpdate, Other, Skipped

# What other methods keep beside two factors, or instead of them; not the bias of a factor.
VARIANT = re.compile(
    r"(?P<module>.+?)\.(?P<part>(?:lora|dora|hada|lokr|oft)_[^.]+)(?:\..+)?(?<!\.bias)", re.DOTALL
)
# A file may store little of a matrix that is large: this many numbers, or times what is stored.
LARGE, TIMES = 2**26, 1024
Modules = dict[str, dict[str, Stored]]  # module → "A", "B", "alpha" and what else it has


def read(file: Path, tensors: Mapping[str, Stored], options: Options) -> Iterator[Entry]:
    """The updates that options.factors pairs; ValueError for a pattern that is none."""
    assert options.factors is not None
    try:
        patterns = dict(zip("AB", map(re.compile, options.factors), strict=True))
    except re.error as error:
        raise UserError(f"--factors {options.factors}: no regular expression: {error}") from None
    modules: dict[tuple[str, ...], dict[str, Stored]] = {}
    names: list[str] = []
    for name, tensor in tensors.items():
        matches = {part: pattern.fullmatch(name) for part, pattern in patterns.items()}
        found = [(part, match) for part, match in matches.items() if match]
        if len(found) != 1:
            yield Other(name, "matches both patterns" if found else "matches neither pattern")
            continue
        ((part, match),) = found
        module = tuple(group or "" for group in match.groups())
        if part in modules.setdefault(module, {}):
            raise CheckpointError(f"{file}: {name}: a second {part} of {'.'.join(module)!r}")
        modules[module][part] = tensor
        names.append(name)
    if not modules:
        raise CheckpointError(f"{file}: no name matches {' or '.join(options.factors)}")
    named = {_name(module, names): parts for module, parts in modules.items()}
    yield from updates(named, file, "factors", options.scale)


def _name(groups: Sequence[str], names: Sequence[str]) -> str:
    """What the groups caught; after a mere number what all names begin with: 000.w of w_a_000."""
    module = ".".join(groups)
    if module and not groups[-1].isdigit():
        return module
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    beginning = "".join(letters[0] for letters in alike).strip("._")
    return f"{module}.{beginning or 'pair'}".lstrip(".")


def updates(modules: Modules, file: Path, method: str, scale: float) -> Iterator[Entry]:
    """An update for each module with A and B; alpha, where it has one, over r is its scale."""
    for module, parts in modules.items():
        where = f"{file}: {module}"
        try:
            refuse_more(parts, where)
            B, A = pair(parts.get("B"), parts.get("A"), where)
            factor = scale
            if "alpha" in parts:
                factor *= alpha(parts["alpha"], where) / len(A)
            yield LowRankUpdate(module, B, A, factor, method=method, source=str(file))
        except CheckpointError as error:
            yield Skipped(module, str(error))


def refuse_more(parts: Mapping[str, Stored], where: str) -> None:
    """CheckpointError where a module has more than two factors: B·A is not all of its ΔW."""
    rest = [part for part in parts if part not in ("A", "B", "alpha")]
    if rest:
        raise CheckpointError(f"{where}: {', '.join(rest)} is not read beside A and B")


def alpha(stored: Stored, where: str) -> float:
    """The one number in a tensor; CheckpointError where it holds more, or no finite one."""
    if int(np.prod(stored.shape)) != 1:
        raise CheckpointError(f"{where}: alpha is {stored.shape}; expected one number")
    value = float(stored.load().reshape(-1)[0])
    if not np.isfinite(value):
        raise CheckpointError(f"{where}: alpha is {value}; expected a finite number")
    return value


def pair(B: Stored | None, A: Stored | None, where: str) -> tuple[np.ndarray, np.ndarray]:
    """B (d_out, r) and A (r, d_in·kernel); CheckpointError where they make no product."""
    if B is None or A is None:
        have, missing = "BA" if A is None else "AB"
        raise CheckpointError(f"{where}: has {have} but no {missing}; expected both")
    check(B.shape, A.shape, where)
    return matrices(B.load(), A.load())


def check(B: Sequence[int], A: Sequence[int], where: str) -> None:
    """CheckpointError unless B (d_out, r, 1, …) and A (r, d_in, *kernel) make a product."""
    shapes = f"{where}: B is {B}, A is {A}"
    if len(A) != len(B) or not 2 <= len(A) <= 5 or any(n != 1 for n in B[2:]):
        raise CheckpointError(
            f"{shapes}; expected matrices, or kernels B (d_out, r, 1, …) and A (r, d_in, …)"
        )
    if 0 in (*A, *B):
        raise CheckpointError(f"{shapes}: empty; was a sharded model saved ungathered?")
    d_out, columns, r = B[0], B[1], A[0]
    if columns != r and (len(A) == 2 or r % columns or d_out % (r // columns)):
        raise CheckpointError(
            f"{where}: inner ranks differ, B is {B}, A is {A};"
            " expected B (d_out, r) and A (r, d_in)"
        )
    if columns != r:
        refuse_large((d_out, r), math.prod(B) + math.prod(A), where)


def refuse_large(shape: tuple[int, int], stored: int, where: str) -> None:
    """CheckpointError for a matrix that is out of all proportion to the numbers it is made of."""
    limit = max(LARGE, TIMES * stored)
    if math.prod(shape) > limit:
        raise CheckpointError(
            f"{where}: makes a matrix {shape} of {stored} numbers; expected at most {limit} entries"
        )


def matrices(B: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """B (d_out, r) and A (r, d_in·kernel); that of a convolution in groups is block-diagonal."""
    (d_out, columns), r = B.shape[:2], len(A)
    B, A = B.reshape(d_out, columns), A.reshape(r, -1)
    groups = r // columns
    if groups == 1:
        return B, A
    whole = np.zeros((d_out, r), B.dtype)
    for i, block in enumerate(np.split(B, groups)):
        rows = d_out // groups
        whole[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] = block
    return whole, A
