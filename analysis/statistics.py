"""Tables → what is said about them: bands over modules, measures that hold between capacities."""

from collections.abc import Sequence

import numpy as np

from analysis import metrics


def normalised(s: np.ndarray) -> np.ndarray:
    """s / ‖s‖_F, so that spectra of updates of any size lie on one axis; zeros for ΔW = 0."""
    norm = metrics.frobenius_norm(s)
    return s / norm if norm > 0 else s


def band(
    spectra: Sequence[np.ndarray], quantile: float = 0.1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(low, median, high) over modules of the normalised singular values, index by index.

    spectra: arrays of one length k -> three arrays (k,); low and high are the `quantile` and
    1 − `quantile` quantiles. Spectra of different lengths are a ValueError.
    """
    lengths = {s.size for s in spectra}
    if len(lengths) != 1:
        raise ValueError(f"spectra have lengths {sorted(lengths)}; expected one length")
    values = np.array([normalised(s) for s in spectra])
    low, median, high = np.quantile(values, (quantile, 0.5, 1 - quantile), axis=0)
    return low, median, high


def comparable(s: np.ndarray, k: int) -> dict[str, float]:
    """The measures of concentration that may be compared between capacities of at least k.

    top_share_1, 4 and 16 of the whole spectrum; effective_rank and gini of s[:k], and held_k,
    the share of the energy that s[:k] holds. nan for ΔW = 0.
    """
    if s.size < k:
        raise ValueError(f"s has {s.size} values; expected at least k = {k}")
    return {
        **{f"top_share_{top}": metrics.top_share(s, top) for top in (1, 4, 16)},
        "effective_rank_k": metrics.effective_rank(s[:k]),
        "gini_k": metrics.gini(s[:k]),
        "held_k": metrics.top_share(s, k),
    }
