"""Whether the factors in a file multiply as B @ A or as x @ A @ B, decided from all their shapes.

    B (d_out, r), A (r, d_in)     ΔW = B @ A, the orientation of PEFT and loralib
    A (d_in, r), B (r, d_out)     ΔW = (A @ B)ᵀ, transposed: the layer computes x @ A @ B

The names are the same for both. A pair of a square layer can be multiplied either way; one way its
inner size is r, the other way it is larger than both sides of the product, which no LoRA is. A
convolution is stored in the first way only.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from analysis import CheckpointError
from analysis.files.tensors import Stored
from analysis.formats import Options
from analysis.update import Remark

Key = TypeVar("Key", bound=Hashable)
Shape = Sequence[int]
STANDARD = "B (d_out, r) and A (r, d_in)"
TRANSPOSED = "A (d_in, r) and B (r, d_out)"


def oriented(
    modules: dict[Key, dict[str, Stored]], where: str, options: Options, *, named: bool = False
) -> dict[Key, dict[str, Stored]]:
    """Return the modules of a file with every pair as B (d_out, r) and A (r, d_in).

    modules: module → its tensors, of which "A" and "B" are a pair.
    where: the file, for messages.
    named: True if the user or the format says which is A and which is B: B @ A is then meant,
        unless `options.transposed`.

    Raises CheckpointError if the pairs contradict each other or what the user says, or if no shape
    decides.
    """
    if not is_transposed(modules, where, options, named=named):
        return modules
    return {
        key: {role: turned(x) if role in ("A", "B") else x for role, x in parts.items()}
        for key, parts in modules.items()
    }


def is_transposed(
    modules: Mapping[Key, Mapping[str, Stored]],
    where: str,
    options: Options,
    *,
    named: bool = False,
) -> bool:
    """Return whether the pairs of a file are stored for x @ A @ B; otherwise as `oriented`."""
    pairs = {
        key: (parts["B"].shape, parts["A"].shape)
        for key, parts in modules.items()
        if "A" in parts and "B" in parts
    }
    found = {key: readings(*shapes) for key, shapes in pairs.items()}
    only = {way: [key for key, ways in found.items() if ways == {way}] for way in (False, True)}
    if options.transposed:
        _refuse_contradiction(pairs, where)
        return True
    if only[False] and only[True]:
        standard, transposed = (_described(only[way][0], pairs) for way in (False, True))
        raise CheckpointError(
            f"{where}: {standard} fits only {STANDARD}, {transposed} only {TRANSPOSED}; expected"
            " one orientation in a file: pass the names of one kind of pair, --factors A B, with"
            " --transposed for the second kind"
        )
    undecided = [key for key, ways in found.items() if len(ways) == 2]
    if undecided and not (only[False] or only[True] or named):
        raise CheckpointError(
            f"{where}: {_described(undecided[0], pairs)}, and no shape in the file tells {STANDARD}"
            f" from {TRANSPOSED}; pass --transposed if the layer computes x @ A @ B, or the names"
            " of A and B for ΔW = B @ A, --factors A B"
        )
    if only[True] and named:
        B, A = pairs[only[True][0]]
        why = "inner ranks differ" if A[0] != B[1] else f"a rank of {A[0]} is above both sides"
        exchange = ": exchange the two patterns of --factors, or" if options.factors else ";"
        raise CheckpointError(
            f"{where}: {_described(only[True][0], pairs)}: {why}; expected {STANDARD}{exchange}"
            " pass --transposed if the layer computes x @ A @ B"
        )
    return bool(only[True])


def readings(B: Shape, A: Shape) -> set[bool]:
    """Return in which orientations two shapes can be factors: False for B @ A, True for x @ A @ B.

    Where both would do, an inner size above both sides of the product is not the rank of a LoRA.
    Empty for what is no pair of matrices. A pair of m blocks, A (m·r, d_in), is read as B @ A.

    >>> readings(B=(64, 4), A=(4, 64)), readings(B=(4, 64), A=(64, 4)), readings(B=(8, 8), A=(8, 8))
    ({False}, {True}, {False, True})
    """
    if len(B) != 2 or len(A) != 2 or 0 in (*B, *A):
        return set()
    inner = {}
    if A[0] == B[1] or (A[0] % B[1] == 0 and A[0] <= B[0]):
        inner[False] = B[1], max(B[0], A[1])
    if A[1] == B[0]:
        inner[True] = A[1], max(A[0], B[1])
    if (*B, *A) == (1, 1, 1, 1):
        return {False}
    return {way for way, (r, side) in inner.items() if r <= side} or inner.keys() - {True}


def turned(stored: Stored) -> Stored:
    """Return a matrix transposed; a tensor with another number of axes is returned as it is."""
    if len(stored.shape) != 2:
        return stored
    return replace(stored, shape=stored.shape[::-1], load=lambda: stored.load().T, tied="")


def remark(
    before: Mapping[Key, Mapping[str, Stored]],
    after: Mapping[Key, Mapping[str, Stored]],
    name: str,
    options: Options,
) -> Iterable[Remark]:
    """Yield a remark if the shapes alone showed that the pairs are stored for x @ A @ B.

    before, after: the modules given to `oriented` and its result; name: that of the file.
    """
    if before is not after and not options.transposed:
        yield Remark(name, f"stores {TRANSPOSED}, by their shapes: read as x @ A @ B")


def _refuse_contradiction(pairs: Mapping[Key, tuple[Shape, Shape]], where: str) -> None:
    """Raise CheckpointError if a pair of matrices cannot be transposed factors."""
    for key, (B, A) in pairs.items():
        if len(B) == len(A) == 2 and A[1] != B[0]:
            raise CheckpointError(
                f"{where}: {_described(key, pairs)}; --transposed expects {TRANSPOSED} of equal r"
            )


def _described(key: Key, pairs: Mapping[Key, tuple[Shape, Shape]]) -> str:
    """Return a pair's module and shapes."""
    name = ".".join(filter(None, key)) if isinstance(key, tuple) else key
    B, A = pairs[key]
    return f"{name}: B is {tuple(B)}, A is {tuple(A)}"
