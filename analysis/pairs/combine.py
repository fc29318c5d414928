"""Checkpoints → a weighted sum of their updates, as merging and federated averaging make them.

The sum Σ wᵢ ΔWᵢ is factored where all ΔWᵢ are, B = [w₁s₁B₁ … wₙsₙBₙ] and A = [A₁; …; Aₙ], and a
matrix otherwise. Averaging the factors instead, s (Σ wᵢBᵢ)(Σ wᵢAᵢ), is what federated averaging of
adapters does, and differs by the cross terms.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis import CheckpointError, UserError, checkpoint
from analysis.formats import Options
from analysis.update import DenseUpdate, Entry, LowRankUpdate, Other, Skipped, Update, float64

PLAIN = "lora"  # the method whose files are averaged tensor by tensor
Weighted = list[tuple[float, Update]]


@dataclass(frozen=True)
class Term:
    """A checkpoint and its weight in the sum."""

    weight: float
    path: Path


def parse(text: str) -> Term:
    """0.5:path → Term; ValueError where there is no weight."""
    match = re.fullmatch(r"([-+0-9.eE]+):(.+)", text, re.DOTALL)
    try:
        weight = float(match[1]) if match else float("nan")
    except ValueError:
        weight = float("nan")
    if match is None or not np.isfinite(weight):
        raise UserError(f"--combine {text!r}; expected WEIGHT:PATH, as 0.5:adapter/")
    return Term(weight, Path(match[2]))


def sums(terms: Sequence[Term], options: Options) -> Iterator[Entry]:
    """Σ wᵢ ΔWᵢ for every module that any of the checkpoints has, ΔWᵢ = 0 where one lacks it.

    A module that one of them cannot read is skipped: a sum without it would be another sum.
    Raises CheckpointError where a checkpoint as a whole cannot be read.
    """
    found, rest = _collected(terms, options)
    yield from rest
    faults = {entry.name for entry in rest if isinstance(entry, Skipped)}
    for (name, _), weighted in found.items():
        if name not in faults:
            try:
                yield weighted_sum(weighted)
            except CheckpointError as error:
                yield Skipped(name, str(error))


def averages(terms: Sequence[Term], options: Options) -> Iterator[Entry]:
    """s (Σ wᵢBᵢ)(Σ wᵢAᵢ) for every module that is plain LoRA, of one shape and scale, everywhere.

    Other methods are not averaged by their factors, nor is what has an initial adapter in it.
    Nothing where a checkpoint cannot be read, which `sums` says.
    """
    if options.initial is not None:
        yield Other("--initial", "factors with an initial adapter in them: not averaged")
        return
    try:
        found, _ = _collected(terms, options)
    except CheckpointError:
        return
    for weighted in found.values():
        factored = [
            (w, u) for w, u in weighted if isinstance(u, LowRankUpdate) and u.method == PLAIN
        ]
        if len(factored) < len(terms):
            continue
        first = factored[0][1]
        if len({(u.B.shape, u.A.shape, u.scale) for _, u in factored}) > 1:
            yield Other(first.name, "factors of other shape or scale: not averaged")
        else:
            B = np.sum([w * float64(u.B) for w, u in factored], axis=0)
            A = np.sum([w * float64(u.A) for w, u in factored], axis=0)
            method, scale = "average of factors", first.scale
            yield LowRankUpdate(first.name, B, A, scale, first.part, method, first.source)


def _collected(
    terms: Sequence[Term], options: Options
) -> tuple[dict[tuple[str, str], Weighted], list[Entry]]:
    """The updates of all checkpoints by module and part, with their weights; and what else."""
    found: dict[tuple[str, str], Weighted] = {}
    rest: list[Entry] = []
    for term in terms:
        for entry in checkpoint.scan(term.path, options):
            if isinstance(entry, Skipped):
                rest.append(entry)
            elif isinstance(entry, Other):
                rest.append(Other(f"{term.path}: {entry.name}", entry.what))
            else:
                found.setdefault((entry.name, entry.part), []).append((term.weight, entry))
    return found, rest


def weighted_sum(weighted: Weighted) -> Update:
    """Σ wᵢ ΔWᵢ: exact factors side by side where all are factored, else a matrix, made when needed.

    [(wᵢ, ΔWᵢ), …], at least one, all of one shape; the name and the part are the first one's.
    Raises CheckpointError for different shapes.
    """
    first = weighted[0][1]
    if len({update.shape for _, update in weighted}) > 1:
        each = ", ".join(f"{u.source} has {u.shape}" for _, u in weighted)
        raise CheckpointError(f"{first.name}: shapes differ, {each}; expected equal shapes")
    factored = [(w, u) for w, u in weighted if isinstance(u, LowRankUpdate)]
    if len(factored) < len(weighted):
        return _dense(weighted)
    with np.errstate(invalid="ignore"):  # a signalling NaN, which is found later
        B = np.hstack([u.B for _, u in factored], dtype=np.float64)
        A = np.vstack([u.A for _, u in factored], dtype=np.float64)
    B *= np.repeat([w * u.scale for w, u in factored], [u.B.shape[1] for _, u in factored])
    return LowRankUpdate(first.name, B, A, 1.0, first.part, "sum", first.source)


def _dense(weighted: Weighted) -> DenseUpdate:
    """The sum as a matrix. Floors add as they are: W0's rounding may be the same in all."""
    first = weighted[0][1]

    def load() -> np.ndarray:
        total = np.zeros(first.shape)
        for weight, update in weighted:
            total += weight * update.dense()
        return total

    floors = [(abs(w), u.floor) for w, u in weighted if isinstance(u, DenseUpdate)]

    def floor() -> float:
        return sum(w * (f() if callable(f) else f or 0.0) for w, f in floors)

    rounded = floor if any(f is not None for _, f in floors) else None
    return DenseUpdate(first.name, first.shape, load, rounded, first.part, "sum", first.source)
