"""Numbers and names of measures as text, as all claims write them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from analysis.numerics.statistics import Difference
from analysis.results import Row
from multilora.tasks.example import FAMILIES

WORDS = {
    **{f"top_share_{k}": f"top-{k} share" for k in (1, 4, 16)},
    **{f"top_share_{k}_above_null": f"top-{k} share beyond the null" for k in (1, 4, 16)},
    "effective_rank_k": "effective rank of s[:k]",
    "effective_rank_k_of_null": "effective rank of s[:k] / the null's",
    "gini_k": "Gini of s[:k]",
    "gini_k_above_null": "Gini of s[:k] beyond the null",
    "log_distance": "log distance of the spectra",
    "left_above_chance": "φ(i, i) above chance, mean over i, left",
    "right_above_chance": "φ(i, i) above chance, mean over i, right",
    "left_above_null": "φ(r, r) beyond that of modules of different seeds, left",
    "right_above_null": "φ(r, r) beyond that of modules of different seeds, right",
    "left_phi_k": "φ(k, k) left",
    "right_phi_k": "φ(k, k) right",
    "log2_ratio": "log₂ of the ratio to the null",
    "score": "mean score",
    **{f"score_{family}": family for family in FAMILIES},
    "nll": "loss per token of answers",
    **{f"nll_{family}": f"loss, {family}" for family in FAMILIES},
}

# Ends the name of a measure that is taken at equal validation loss instead of after equal steps.
AT_EQUAL_LOSS = " at equal validation loss"


def words_of(measure: str) -> str:
    """Return a measure in words; its name if there are none for it."""
    name = measure.removesuffix(AT_EQUAL_LOSS)
    return WORDS.get(name, name) + measure.removeprefix(name)


def listed(items: Iterable[Any]) -> str:
    """Return the items separated by commas."""
    return ", ".join(map(str, items))


def over_seeds(rows: Sequence[Row], method: str, column: str, form: str = ".3f") -> str:
    """Return mean and range over the seeds of a method, as `mean_text` writes them.

    rows: of one table.
    method: the method whose rows count.
    column: the measure; rows without it are left out.
    form: the format of both numbers.
    """
    return mean_text((row.get(column) for row in rows if row["method"] == method), form)


def mean_text(values: Iterable[float | None], form: str = ".3f") -> str:
    """Return "mean ±half the range" of the defined values; "–" if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{np.mean(known):{form}}"
    return f"{mean} ±{(max(known) - min(known)) / 2:{form}}" if len(known) > 1 else mean


def count_text(value: float | None) -> str:
    """Return a count with separators of thousands; "–" for None."""
    return "–" if value is None else f"{value:,}"


def number_text(difference: Difference) -> str:
    """Return "mean [low, high]" of a difference."""
    mean = format(difference.mean, "+.3g")
    if math.isnan(difference.low):
        return f"{mean} [no interval]"
    return f"{mean} [{difference.low:+.3g}, {difference.high:+.3g}]"
