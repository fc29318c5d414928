"""Draw whether a claim holds where one setting is changed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.plots import plot_forest
from analysis.results import Row, grouped
from multilora.reproduction.pictures.styles import MULTILORA, name_of


class Compared(NamedTuple):
    """A measure that a claim is about, at every setting of the grid.

    claim: its number; measure: the column of grid.csv; label: of the axis.
    a, b: the methods of the difference a − b.
    side: 1 if the claim says that it is above zero, −1 below.
    """

    claim: str
    measure: str
    label: str
    a: str
    b: str
    side: int


COMPARED = (
    Compared("1a", "top_share_1_above_null", "$s_1$'s share − the null's", "lora", "full", 1),
    Compared("3a", "top_share_1", "share of energy in $s_1$", "multilora", "lora", -1),
    Compared("3b", "effective_rank_k", "effective rank of s[:k]", "multilora", "lora", 1),
    Compared("4b", "left_phi_k", "φ(k, k) with full, left", "multilora", "lora", 1),
    Compared("4c", "right_phi_k", "φ(k, k) with full, right", "multilora", "lora", 1),
    Compared("4d", "log_distance", "log distance to full's spectrum", "multilora", "lora", -1),
    Compared("6a", "score", "score, percentage points", "multilora", "lora", 1),
)
FACTORS = {"score": 100}  # shares that are drawn as percentages
SETTINGS = {
    "rate": "rate × {}",
    "steps": "{} steps",
    "width": "width {}",
    "n·r": "n·r = {}",
    "n": "n = {} modules",
}
UNCHANGED = ("rate", 1)  # the setting and value without a change


def grid_differences(rows: Sequence[Row]) -> list[Row]:
    """Return the compared measures at every value of every setting and every seed.

    rows: of grid.csv. One row per setting, value, seed and entry of COMPARED (its place there is
    in the column compared), with difference: a − b. What was not measured has no row.
    """
    differences = []
    for (setting, value, seed), of_place in grouped(rows, "setting", "value", "seed").items():
        by_method = {row["method"]: row for row in of_place}
        for i, compared in enumerate(COMPARED):
            methods = (compared.a, compared.b)
            a, b = (by_method.get(method, {}).get(compared.measure) for method in methods)
            if a is not None and b is not None:
                row = {"setting": setting, "value": value, "seed": seed, "compared": i}
                differences.append(row | {"difference": a - b})
    return differences


def scale_grid(rows: Sequence[Row]) -> Figure:
    """Draw the differences that claims are about, one row per setting and one dot per seed.

    rows: of grid.csv. One column per measure of a claim. Shaded is the side that the claim names:
    a claim that holds has its dots there in every row. The first row is the usual setting.
    """
    differences = grid_differences(rows)
    drawn = [COMPARED[i] for i in sorted({row["compared"] for row in differences})]
    places = sorted({(row["setting"], row["value"]) for row in differences}, key=_place)
    figure = Figure(
        figsize=(2.1 * len(drawn) + 1.4, 1.9 + 0.34 * len(places)), layout="constrained"
    )
    axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for ax, compared in zip(axes, drawn, strict=True):
        of_measure = [row for row in differences if COMPARED[row["compared"]] == compared]
        _draw_column(ax, of_measure, compared, places)
    axes[0].set_yticks([-y for y in range(len(places))], [_label(*place) for place in places])
    figure.suptitle("● one seed, ◆ mean, shaded: the side that the claim names", fontsize=10)
    return figure


def _draw_column(
    ax: Axes, rows: Sequence[Row], compared: Compared, places: Sequence[tuple[str, Any]]
) -> None:
    """Draw one measure; rows: its differences; places: settings and values from the top."""
    factor = FACTORS.get(compared.measure, 1)
    at = grouped(rows, "setting", "value")
    values = [[factor * row["difference"] for row in at.get(place, ())] for place in places]
    means = [float(np.mean(of_place)) if of_place else float("nan") for of_place in values]
    plot_forest(values, means, compared.side, ax, color=MULTILORA)
    what = f"{name_of(compared.a)} − {name_of(compared.b)}"
    ax.set_title(f"claim {compared.claim}\n{what}", fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params("x", labelsize=8)
    ax.set_xlabel(compared.label, fontsize=9)
    ax.axhline(-0.5, color="0.6", linewidth=0.8)


def _place(place: tuple[str, Any]) -> tuple[Any, ...]:
    """Sort key: the usual setting first, then settings in their order, numbers by size."""
    setting, value = place
    order = list(SETTINGS)
    rank = order.index(setting) if setting in order else len(order)
    return (place != UNCHANGED, rank, setting, isinstance(value, str), value)


def _label(setting: str, value: float | str) -> str:
    """Return the label of a row: what is changed, or that nothing is."""
    shown = value if isinstance(value, str) else f"{value:g}"
    if (setting, value) == UNCHANGED:
        return "usual setting"
    return SETTINGS.get(setting, f"{setting} = {{}}").format(shown)
