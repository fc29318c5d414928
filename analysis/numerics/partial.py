"""Fill the columns of spectrum.csv from the largest singular values alone, and bound the others.

The energy Σs² of a dense update is known exactly without its spectrum, so shares of the energy, the
stable rank and the rank that holds a share need only the values that they count. `topk` and
`density` have the bounds.
"""

import numpy as np

from analysis.numerics import decompose, metrics, topk
from analysis.results import BOUNDS, Row
from analysis.update import Update

PERCENT = (50, 90, 99)  # of the energy, in the columns energy_rank_…


def columns(update: Update, spectrum: decompose.Spectrum) -> Row:
    """Return the columns that are known from the largest values and the exact energy, or estimated.

    rank and above_floor are left out unless they end before the values do. Shares of the energy are
    the lower bounds, which are nearest to the exact ones.

    >>> from analysis.update import DenseUpdate
    >>> W = np.diag(np.arange(64.0, 0, -1))
    >>> update = DenseUpdate("q_proj", (64, 64), load=lambda: W)
    >>> spectrum = decompose.spectrum(update, decompose.Method("topk", k=2))
    >>> round(columns(update, spectrum)["top_share_1"], 4)
    0.0458
    """
    norm, s, d = spectrum.norm, spectrum.s, min(update.shape)
    if norm is None or spectrum.bounds is None:
        raise ValueError(f"{update.name}: the spectrum is whole; expected one by topk or density")
    line: Row = {"spectral_norm": metrics.spectral_norm(s), "frobenius_norm": norm}
    if norm == 0:
        return line | {"rank": 0, "above_floor": 0, "nuclear_norm": 0.0}
    counts = {
        "rank": decompose.rank(s, spectrum.error_bound, update, spectrum.floor),
        "above_floor": metrics.rank(s, spectrum.floor or 0.0),
    }
    line |= {name: count for name, count in counts.items() if count < len(s)}
    line |= {name: spectrum.bounds[name][0] for name in topk.counted(d) if name in spectrum.bounds}
    line["stable_rank"] = (norm / float(s[0])) ** 2
    held = np.cumsum((s / norm) ** 2)
    for percent in PERCENT:
        if held[-1] >= percent / 100:
            line[f"energy_rank_{percent}"] = int(np.searchsorted(held, percent / 100)) + 1
    if spectrum.estimates:
        line |= spectrum.estimates
        line["utilisation"] = line["effective_rank"] / d
    return line


def bounds(key: str, spectrum: decompose.Spectrum) -> list[Row]:
    """Return the rows of bounds.csv of one update, keyed by BOUNDS; none of a whole spectrum.

    >>> from analysis.update import DenseUpdate
    >>> whole = decompose.spectrum(DenseUpdate("q_proj", (2, 2), load=lambda: np.eye(2)))
    >>> bounds("q_proj", whole)
    []
    """
    return [
        dict(zip(BOUNDS, (key, measure, low, high, holds), strict=True))
        for measure, (low, high, holds) in (spectrum.bounds or {}).items()
    ]
