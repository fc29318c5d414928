"""Numbers and names of measures as text, as all claims write them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from analysis.numerics.statistics import Difference
from analysis.results import Row
from multilora.tasks.example import FAMILIES

MARGIN = 0.1  # overlap above chance up to which modules count as independent
CUTS = ("keep", "remove")  # the two ways to cut an update

WORDS = {
    **{f"top_share_{k}": f"top-{k} share" for k in (1, 4, 16)},
    "top_share_1_above_null": "top-1 share above that of the random null",
    "effective_rank_k": "effective rank of s[:k]",
    "gini_k": "Gini of s[:k]",
    "log_distance": "log distance of the spectra",
    "left_above_chance": "φ(i, i) above chance, mean over i, left",
    "right_above_chance": "φ(i, i) above chance, mean over i, right",
    "left_phi_k": "φ(k, k) left",
    "right_phi_k": "φ(k, k) right",
    "overlap_above_chance": "overlap above chance",
    **{
        f"{side}_above_margin": f"overlap above chance, {side}, minus {MARGIN}"
        for side in ("left", "right")
    },
    "log2_ratio": "log₂ of the ratio to the null",
    "score": "mean score",
    **{f"{kind} {family}": f"{family}, {kind}" for kind in CUTS for family in FAMILIES},
    **{
        f"{kind} of the whole": f"relative to the score of the whole update, {kind}"
        for kind in CUTS
    },
    **{
        f"score_{family} − {other}": f"{family}, MultiLoRA − {other}"
        for family in FAMILIES
        for other in ("lora", "full")
    },
}


def words_of(measure: str) -> str:
    """Return a measure in words; its name if there are none for it."""
    return WORDS.get(measure, measure)


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


def number_text(difference: Difference, against: float = 0.0) -> str:
    """Return "mean [low, high]", with the subtracted constant `against` added back."""
    form = ".3g" if against else "+.3g"
    mean = format(difference.mean + against, form)
    if math.isnan(difference.low):
        return f"{mean} [no interval]"
    if len(difference.values) == 1:
        return f"{mean} (exact)"
    low, high = (format(x + against, form) for x in (difference.low, difference.high))
    return f"{mean} [{low}, {high}]"
