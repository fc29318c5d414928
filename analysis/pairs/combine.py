"""Combine checkpoints into a weighted sum of their updates, as merging and federated averaging do.

The sum Σ wᵢ ΔWᵢ is kept as factors if every ΔWᵢ is, B = [w₁s₁B₁ … wₙsₙBₙ] and A = [A₁; …; Aₙ], and
is a matrix otherwise. Federated averaging of adapters averages the factors instead,
s (Σ wᵢBᵢ)(Σ wᵢAᵢ), which differs from the sum by the cross terms.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analysis import CheckpointError, UserError, checkpoint
from analysis.formats import Options
from analysis.update import (
    DenseUpdate,
    Entry,
    LowRankUpdate,
    Other,
    Skipped,
    Update,
    coarsest,
    float64,
)

PLAIN = "lora"  # the method whose factors are averaged
Weighted = list[tuple[float, Update]]  # updates of one module with their weights in a sum


@dataclass(frozen=True)
class Term:
    """A checkpoint and its weight in the sum."""

    weight: float
    path: Path


def parse(text: str, option: str = "--combine") -> Term:
    """Return the term that a text such as 0.5:path stands for.

    option: where it was given, for the message; "" for an argument. Raises UserError if the weight
    is missing or is not a finite number.
    """
    match = re.fullmatch(r"([-+0-9.eE]+):(.+)", text, re.DOTALL)
    try:
        weight = float(match[1]) if match else float("nan")
    except ValueError:
        weight = float("nan")
    if match is None or not np.isfinite(weight):
        given = f"{option} {text!r}".lstrip()
        raise UserError(f"{given}; expected WEIGHT:PATH, as 0.5:adapter/")
    return Term(weight, Path(match[2]))


def sums(terms: Sequence[Term], options: Options) -> Iterator[Entry]:
    """Yield Σ wᵢ ΔWᵢ for every module of any checkpoint; ΔWᵢ = 0 if checkpoint i lacks the module.

    A module that cannot be read from one of the checkpoints is skipped, since its sum would lack a
    term. Raises CheckpointError if a checkpoint as a whole cannot be read.
    """
    by_module, rest = _collected(terms, options)
    yield from rest
    faults = {entry.name for entry in rest if isinstance(entry, Skipped)}
    for (name, _), weighted in by_module.items():
        if name not in faults:
            try:
                yield weighted_sum(weighted)
            except CheckpointError as error:
                yield Skipped(name, str(error))


def averages(terms: Sequence[Term], options: Options) -> Iterator[Entry]:
    """Yield s (Σ wᵢBᵢ)(Σ wᵢAᵢ) for every module that is plain LoRA in all checkpoints.

    Other methods are not averaged by their factors. Factors of different shapes or scales, and
    factors that contain an initial adapter, are listed as Other. Yields nothing if a checkpoint
    cannot be read, which `sums` reports.
    """
    if options.initial is not None:
        yield Other("--initial", "factors that contain an initial adapter: not averaged")
        return
    try:
        by_module, _ = _collected(terms, options)
    except CheckpointError:
        return
    for weighted in by_module.values():
        factored = [
            (w, u) for w, u in weighted if isinstance(u, LowRankUpdate) and u.method == PLAIN
        ]
        if len(factored) < len(terms):
            continue
        first = factored[0][1]
        if len({(u.B.shape, u.A.shape, u.scale) for _, u in factored}) > 1:
            yield Other(first.name, "factors of different shapes or scales: not averaged")
        else:
            yield LowRankUpdate(
                first.name,
                B=np.sum([w * float64(u.B) for w, u in factored], axis=0),
                A=np.sum([w * float64(u.A) for w, u in factored], axis=0),
                scale=first.scale,
                part=first.part,
                method="average of factors",
                source=first.source,
                dtypes=_dtypes([u for _, u in factored]),
            )


def _collected(
    terms: Sequence[Term], options: Options
) -> tuple[dict[tuple[str, str], Weighted], list[Entry]]:
    """Return the weighted updates of all checkpoints by (module, part), and all other entries."""
    by_module: dict[tuple[str, str], Weighted] = {}
    rest: list[Entry] = []
    for term in terms:
        for entry in checkpoint.scan(term.path, options):
            if isinstance(entry, Skipped):
                rest.append(entry)
            elif isinstance(entry, Other):
                rest.append(replace(entry, name=f"{term.path}: {entry.name}"))
            else:
                by_module.setdefault((entry.name, entry.part), []).append((term.weight, entry))
    return by_module, rest


def weighted_sum(weighted: Weighted) -> Update:
    """Return Σ wᵢ ΔWᵢ: factors side by side, without rounding, if all ΔWᵢ are low-rank, else dense.

    weighted: [(wᵢ, ΔWᵢ), …], at least one, all of the same shape; name and part of the sum are
    those of the first. A dense sum is computed when it is loaded. Raises CheckpointError if the
    shapes differ.
    """
    first = weighted[0][1]
    if len({update.shape for _, update in weighted}) > 1:
        each = ", ".join(f"{u.source} has {u.shape}" for _, u in weighted)
        raise CheckpointError(f"{first.name}: shapes differ, {each}; expected equal shapes")
    factored = [(w, u) for w, u in weighted if isinstance(u, LowRankUpdate)]
    if len(factored) < len(weighted):
        return _dense_sum(weighted)
    with np.errstate(invalid="ignore"):  # signalling NaNs, which are reported later
        B = np.hstack([u.B for _, u in factored], dtype=np.float64)
        A = np.vstack([u.A for _, u in factored], dtype=np.float64)
    B *= np.repeat([w * u.scale for w, u in factored], [u.B.shape[1] for _, u in factored])
    return LowRankUpdate(
        first.name,
        B,
        A,
        scale=1.0,
        part=first.part,
        method="sum",
        source=first.source,
        dtypes=_dtypes([u for _, u in factored]),
    )


def _dtypes(updates: Sequence[LowRankUpdate]) -> tuple[np.dtype, np.dtype]:
    """Return the coarsest stored dtype of the B of all updates, and that of their A."""
    of_B, of_A = zip(*(update.stored for update in updates), strict=True)
    return coarsest(*of_B), coarsest(*of_A)


def _dense_sum(weighted: Weighted) -> DenseUpdate:
    """Return the sum as a matrix.

    The noise floors add up, and not their squares: the rounding of W0 may be the same in all terms.
    """
    first = weighted[0][1]

    def load() -> np.ndarray:
        total = np.zeros(first.shape)
        for weight, update in weighted:
            total += weight * update.dense()
        return total

    floors = [(abs(w), u.floor) for w, u in weighted if isinstance(u, DenseUpdate)]

    def floor() -> float:
        return sum(w * (f() if callable(f) else f or 0.0) for w, f in floors)

    rounded = any(f is not None for _, f in floors)
    return DenseUpdate(
        first.name,
        first.shape,
        load,
        floor=floor if rounded else None,
        part=first.part,
        method="sum",
        source=first.source,
    )
