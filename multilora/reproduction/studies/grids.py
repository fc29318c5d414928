"""Average the grids φ(i, j) − chance between the three main methods."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from analysis.names import run_key
from analysis.numerics.subspaces import SIDES, chance
from analysis.pairs.repeatability import Label
from analysis.results import Row, Similarity
from multilora.reproduction.trained import MAIN

DIGITS = 5  # of the values in the table


def table(similarity: Similarity, labels: Mapping[str, Label], k: int) -> list[Row]:
    """Return phi_grids.csv: φ(i, j) − chance, one row per pair of methods, side and i.

    similarity: of all runs of one base.
    labels: method and seed by name of the run.
    k: the number of directions.

    i counts the directions of method_a; columns j1 … jk those of method_b. Values are means over
    modules and pairs of runs of different seeds; None if a cut is undetermined in all of them.
    """
    grids: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for row in similarity.rows:
        a, b = (labels[run_key(row[f"run_{end}"], row[f"step_{end}"])] for end in "ab")
        if a.seed == b.seed or not {a.method, b.method} <= set(MAIN):
            continue
        turned = MAIN.index(a.method) < MAIN.index(b.method)
        pair = (b.method, a.method) if turned else (a.method, b.method)
        for side, d in zip(SIDES, (row["d_out"], row["d_in"]), strict=True):
            grid = similarity.phi[f"{row['key']}#{side}"][:k, :k]
            if grid.shape == (k, k):
                above = grid - chance(k, k, d)
                grids.setdefault((*pair, side), []).append(above.T if turned else above)
    return [
        {"method_a": a, "method_b": b, "side": side, "i": i} | _cells(values)
        for a, b in itertools.combinations_with_replacement(MAIN[::-1], 2)
        for side in SIDES
        if (a, b, side) in grids
        for i, values in enumerate(_mean(grids[a, b, side]), start=1)
    ]


def _mean(grids: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over grids of the values that are not nan; nan if all are."""
    stacked = np.array(grids)
    counts = np.isfinite(stacked).sum(axis=0)
    sums = np.nansum(stacked, axis=0)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _cells(values: np.ndarray) -> Row:
    return {
        f"j{j}": None if np.isnan(value) else round(float(value), DIGITS)
        for j, value in enumerate(values, start=1)
    }
