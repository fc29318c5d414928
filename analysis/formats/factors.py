r"""Any file with pairs of factors, by patterns of their names: --factors A B [--scale X].

    --factors 'w_a_(\d+)' 'w_b_(\d+)'     w_a_000 (r, d_in) and w_b_000 (d_out, r)

The groups of a pattern name the module; an A and a B with equal groups are a pair. ΔW = X · B @ A,
with X = 1 unless given; for x @ A @ B see `orientation`. A tensor `alpha` of the same module, next
to the pair, multiplies it by alpha/r. Blocks of a fused layer, A (m·r, d_in), need their rows,
--blocks. What the other readers share about two factors is here too.
"""

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from analysis import CheckpointError, UserError
from analysis.files.place import Place
from analysis.files.tensors import Stored
from analysis.formats import Options, fused, orientation, stated
from analysis.update import Entry, LowRankUpdate, Other, Skipped

# What other methods store next to two factors, or instead of them; the bias of a factor is not one.
VARIANT = re.compile(
    r"(?!.*\.bias\Z)(?P<module>.+?)\.(?P<part>(?:lora|dora|hada|lokr|oft)_[^.]+)(?:\..+)?",
    re.DOTALL,
)
# Ends of names that factors have in any format.
FACTOR = re.compile(
    r"(?:^|[._])(?:lora_(?:A|B|a|b|down|up)(?:\.[^.]+)?(?:\.weight)?|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)$"
)
# A file may store few numbers of which a large matrix is made: the matrix may have this many
# entries, or this many times the stored numbers.
LARGE, TIMES = 2**26, 1024
# Next to a pair: α, and tensors without which B @ A is not all of ΔW.
ALPHAS = ("alpha", "lora_alpha")
MORE = (
    "lora_E",
    "lora_mid.weight",
    "dora_scale",
    "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
)
# What a pair is called in its module, next to which α is that of the pair.
ROLES_OF_A_MODULE = frozenset(
    "lora_A lora_B lora_a lora_b lora_down lora_up down up A B a b".split()
)
Modules = dict[str, dict[str, Stored]]  # module → "A", "B", "alpha" and any other tensor


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates that the patterns of options.factors pair.

    Raises UserError if a pattern is not a regular expression, CheckpointError if no name matches,
    or if the pairs have no common orientation.
    """
    file, tensors = place.path, place.tensors()
    paired, others = _paired(tensors, file, options)
    for names in paired.values():
        names |= _beside(names, tensors, options)
    used = {name for names in paired.values() for name in names.values()}
    yield from (Other(name, what) for name, what in others.items() if name not in used)
    modules = {
        module: {part: tensors[name] for part, name in names.items()}
        for module, names in paired.items()
    }
    oriented = orientation.oriented(modules, str(file), options, named=True)
    scale, remarks = stated.decide(place, oriented.values(), options)
    yield from remarks
    yield from updates(oriented, file, "factors", scale, options.blocks)


def unpaired(name: str, file: Path, what: str) -> Other | Skipped:
    """Return the entry of a tensor that is in no pair: Skipped if its name is that of a factor.

    what: what is said of any other tensor. A bias is none, whatever it is called.
    """
    if FACTOR.search(name):
        return Skipped(
            name, f"{file}: {name}: a factor under a name that the others in its file do not have"
        )
    return Other(name, what)


def _paired(
    tensors: Iterable[str], file: Path, options: Options
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return module → "A" and "B" → a tensor's name, and why each other tensor is in no pair."""
    assert options.factors is not None
    try:
        patterns = dict(zip("AB", map(re.compile, options.factors), strict=True))
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"--factors {options.factors}: not a regular expression: {error}") from None
    modules: dict[tuple[str, ...], dict[str, str]] = {}
    others: dict[str, str] = {}
    for name in tensors:
        matches = [(part, pattern.fullmatch(name)) for part, pattern in patterns.items()]
        roles = [(part, match) for part, match in matches if match]
        if len(roles) != 1:
            others[name] = "matches both patterns" if roles else "matches neither pattern"
            continue
        ((part, match),) = roles
        module = tuple(group or "" for group in match.groups())
        if part in modules.setdefault(module, {}):
            raise CheckpointError(f"{file}: {name}: a second {part} of {'.'.join(module)!r}")
        modules[module][part] = name
    if not modules:
        raise CheckpointError(f"{file}: no name matches {' or '.join(options.factors)}")
    names = [name for parts in modules.values() for name in parts.values()]
    start = _beginning(names)
    named = {_name(module, start): parts for module, parts in modules.items()}
    if len(named) < len(modules):
        raise CheckpointError(
            f"{file}: two pairs have the same name; expected groups that tell every module from"
            f" every other, --factors {' '.join(options.factors)}"
        )
    return named, others


def _beside(names: Mapping[str, str], tensors: Collection[str], options: Options) -> dict[str, str]:
    """Return the tensors next to a pair that change its ΔW: α, and what makes B @ A a part of it.

    names: "A" and "B" → the names of the pair. The result maps parts to names alike.
    """
    stem = _beginning(list(names.values())).rpartition(".")[0]
    own = all("." not in name[len(stem) + 1 :].removesuffix(".weight") for name in names.values())
    rest = {name[len(stem) + 1 :].removesuffix(".weight") for name in names.values()}
    if len(names) < 2 or not stem or not own or not rest <= ROLES_OF_A_MODULE:
        return {}
    parts = dict.fromkeys(ALPHAS, "alpha")
    if not options.direction_only:
        parts |= {leaf: leaf for leaf in MORE}
    return {part: f"{stem}.{leaf}" for leaf, part in parts.items() if f"{stem}.{leaf}" in tensors}


def _name(groups: Sequence[str], start: str) -> str:
    """Return a module's name: the groups, and after a number `start`, what all names begin with.

    w_a_000 and w_b_000 with the group 000 are 000.w.
    """
    module = ".".join(groups)
    if module and not groups[-1].isdigit():
        return module
    return f"{module}.{start.strip('._') or 'pair'}".lstrip(".")


def _beginning(names: Sequence[str]) -> str:
    """Return what all the names begin with."""
    first, last = min(names, default=""), max(names, default="")
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in pairs)


def updates(
    modules: Modules, file: Path, method: str, scale: float, blocks: Sequence[int] = ()
) -> Iterator[Entry]:
    """Yield an update for each module with A and B, and Skipped for any other module.

    modules: module → its tensors; the scale is alpha/r if there is an `alpha`.
    file: the file they come from.
    method: the method that the updates get.
    scale: that of modules without `alpha`.
    blocks: the rows of the blocks of a fused layer, which become the parts block0, block1, …
    """
    for module, parts in modules.items():
        where = f"{file}: {module}"
        try:
            for part, B, A in pieces(parts, where, blocks):
                own = parts.get("alpha")
                factor = scale if own is None else alpha(own, where) / len(A)
                source = str(file)
                yield LowRankUpdate(module, B, A, factor, part, method, source, of_rows=bool(part))
        except CheckpointError as error:
            yield Skipped(module, str(error))


def pieces(
    parts: Mapping[str, Stored], where: str, blocks: Sequence[int]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield part, B and A of a module: part "" of an ordinary pair, or block0, … of a fused one.

    Raises CheckpointError as `pair`, or if the blocks are not known.
    """
    require_pair(parts, where)
    if fused.count(parts["B"].shape, parts["A"].shape) == 1:
        yield "", *pair(parts, where)
        return
    for i, (B, A) in enumerate(fused.cut(parts["B"], parts["A"], blocks, where)):
        yield f"block{i}", B, A


def pair(parts: Mapping[str, Stored], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return B (d_out, r) and A (r, d_in·kernel) of a module.

    Raises CheckpointError if they are not both there, or make no product, or if the module has
    more than these and alpha: B·A is then not all of its ΔW.
    """
    require_pair(parts, where)
    B, A = parts["B"], parts["A"]
    check(B.shape, A.shape, where)
    return matrices(B.load(), A.load())


def require_pair(parts: Mapping[str, Stored], where: str) -> None:
    """Raise CheckpointError unless a module has A and B, perhaps alpha, and no more."""
    more = [part for part in parts if part not in ("A", "B", "alpha")]
    if more:
        raise CheckpointError(f"{where}: {', '.join(more)} is not read next to A and B")
    missing = [part for part in "AB" if part not in parts]
    if missing:
        raise CheckpointError(
            f"{where}: has {', '.join(parts)} but no {' and no '.join(missing)};"
            " expected both factors, A and B"
        )


def alpha(stored: Stored, where: str) -> float:
    """Return the number in a tensor; raise CheckpointError unless it is one finite number."""
    if int(np.prod(stored.shape)) != 1:
        raise CheckpointError(f"{where}: alpha is {stored.shape}; expected one number")
    value = float(stored.load().reshape(-1)[0])
    if not np.isfinite(value):
        raise CheckpointError(f"{where}: alpha is {value}; expected a finite number")
    return value


def check(B: Sequence[int], A: Sequence[int], where: str) -> None:
    """Raise CheckpointError unless the shapes B (d_out, r, 1, …) and A (r, d_in, *kernel) fit."""
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
    """Raise CheckpointError for a matrix far larger than the count of numbers it is made of."""
    limit = max(LARGE, TIMES * stored)
    if math.prod(shape) > limit:
        raise CheckpointError(
            f"{where}: makes a matrix {shape} of {stored} numbers; expected at most {limit} entries"
        )


def matrices(B: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return B as (d_out, r) and A as (r, d_in·kernel).

    B of a convolution in groups, which is stored as (d_out, r/groups, 1, …), is block-diagonal.
    """
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
