"""Draw what the claims are about: dominance by method, and overlap of modules."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.results import Row, grouped
from multilora.reproduction.pictures.axes import plot_seeds
from multilora.reproduction.pictures.styles import (
    MULTILORA,
    long_name_of,
    name_of,
    ordered,
    styles,
)

MEASURES = ("top_share_1", "effective_rank_k", "gini_k")
CHANCE: dict[str, Any] = {
    "color": "0.45",
    "linestyle": "",
    "marker": "|",
    "markersize": 13,
    "mew": 2,
}


def dominance_ablation(rows: Sequence[Row]) -> Figure:
    """Draw how concentrated ΔW is by method: one dot per seed, their mean and Student interval.

    rows: of methods.csv. Three measures side by side: one of the whole spectrum and two of s[:k],
    which are undefined ("n/a") for a method of lower capacity. A tick is the null's value where
    the table has it (null_top_share_1, null_effective_rank_k, null_gini_k).
    """
    methods = ordered(rows)
    k = max(row["k"] for row in rows if row["k"] is not None)
    figure = Figure(figsize=(12, 1.7 + 0.42 * len(methods)), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    measures = {
        "top_share_1": "share of the energy in $s_1$",
        "effective_rank_k": f"effective rank of $s_1 … s_{{{k}}}$",
        "gini_k": f"Gini coefficient of $s_1 … s_{{{k}}}$",
    }
    better = ("← less dominated", "less dominated →", "← less dominated")
    for ax, (measure, label), side in zip(axes, measures.items(), better, strict=True):
        _draw_measure(ax, rows, methods, measure)
        ax.set(xlabel=label, ylim=(0.6 - len(methods), 0.6))
        ax.set_title(side, loc="left" if side.startswith("←") else "right", fontsize=9)
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks([-y for y in range(len(methods))], [long_name_of(m) for m in methods])
    counts = {len({r["seed"] for r in rows if r["method"] == method}) for method in methods}
    seeds = "–".join(map(str, sorted({min(counts), max(counts)})))
    chance = ", grey tick: by chance, at the same shape and capacity" if _known(rows) else ""
    undefined = f", n/a: capacity below {k}" if _undefined(rows) else ""
    legend = f"● each of {seeds} seeds, ◆ mean with 95 % Student interval{chance}{undefined}"
    figure.suptitle(legend, fontsize=10)
    return figure


def _draw_measure(ax: Axes, rows: Sequence[Row], methods: Sequence[str], measure: str) -> None:
    """Draw one measure of each method, the first method on top, with the null's value."""
    look = styles(methods)
    for y, method in enumerate(methods):
        of_method = [row for row in rows if row["method"] == method]
        if values := _defined(of_method, measure):
            plot_seeds(values, -y, ax, color=look[method]["color"])
            if chance := _defined(of_method, f"null_{measure}"):
                ax.plot(np.mean(chance), -y, **CHANCE)
        else:
            across = ax.get_yaxis_transform()
            ax.text(
                0.5,
                -y,
                "n/a",
                color="0.45",
                fontsize=9,
                ha="center",
                va="center",
                transform=across,
            )


def _known(rows: Sequence[Row]) -> bool:
    """Whether the null's value of any measure is in the table."""
    return any(_defined(rows, f"null_{measure}") for measure in MEASURES)


def _undefined(rows: Sequence[Row]) -> bool:
    """Whether a measure of s[:k] is undefined for some method."""
    return any(row["effective_rank_k"] is None or row["gini_k"] is None for row in rows)


def _defined(rows: Iterable[Row], column: str) -> list[float]:
    """Return the values of a column that are neither absent nor empty."""
    return [row[column] for row in rows if row.get(column) is not None]


# Markers of the variants of MultiLoRA; all of them have its colour.
MARKERS: dict[str, dict[str, Any]] = {
    "multilora": {"marker": "o"},
    "multilora s×5": {"marker": "D", "markerfacecolor": "white"},
    "multilora zero": {"marker": "^", "markerfacecolor": "white"},
}
CHANCE_LABEL, NULL_LABEL = "chance, r/d", "modules of different seeds"
SPARE = ("s", "v", "P", "X", "<", ">")


def module_overlap(rows: Sequence[Row]) -> Figure:
    """Draw φ(r, r) between the modules of MultiLoRA and its variants, left and right.

    rows: of `overlap.by_layer`. One dot per seed: the mean over the layers of a projection.
    Dashes are chance, r/d; ticks are the overlap of modules of different seeds where the table
    has it (left_null, right_null).
    """
    methods = ordered(rows)
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    width = 0.8 / max(3, len(methods))
    kinds = sorted({row["kind"] for row in rows}, key=_place)
    for ax, side, name in zip(axes, ("left", "right"), ("output", "input"), strict=True):
        spare = ({"marker": marker} for marker in itertools.cycle(SPARE))
        for i, method in enumerate(methods):
            of_method = [row for row in rows if row["method"] == method]
            shift = width * (i - (len(methods) - 1) / 2)
            places = {kind: x + shift for x, kind in enumerate(kinds)}
            _overlaps(ax, of_method, side, places, width, MARKERS.get(method) or next(spare))
        ax.set_title(f"{side}: {name} directions")
        ax.set_xticks(range(len(kinds)), [kind.removesuffix("_proj") for kind in kinds])
        ax.set(xlabel="projection", xlim=(-0.5, len(kinds) - 0.5))
        ax.grid(axis="y", alpha=0.3)
    ranks = "–".join(map(str, sorted({row["r"] for row in rows})))
    axes[0].set(ylabel=f"φ(r, r) between modules, r = {ranks}", ylim=(0, None))
    handles, labels = axes[0].get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    lines = [label for label in (CHANCE_LABEL, NULL_LABEL) if label in known]
    order = [*(label for label in known if label not in lines), *lines]
    figure.legend(
        [known[label] for label in order],
        order,
        title="one dot per seed, mean over layers",
        loc="outside lower center",
        ncols=3,
    )
    return figure


def _overlaps(
    ax: Axes,
    rows: Sequence[Row],
    side: str,
    places: dict[str, float],
    width: float,
    look: dict[str, Any],
) -> None:
    """Draw the overlap of one method at the places of its projections, with chance.

    ax: the Axes; rows: of one method; side: left or right.
    places: projection -> x; width: of the lines at each place.
    look: of the dots.
    """
    method, n = rows[0]["method"], rows[0]["n"]
    x, y = [], []
    for (kind, _), of_seed in grouped(rows, "kind", "seed").items():
        if values := _defined(of_seed, f"{side}_phi"):
            x.append(places[kind])
            y.append(np.mean(values))
    dots = {"linestyle": "", "color": MULTILORA, "markersize": 5, "alpha": 0.8} | look
    ax.plot(x, y, label=f"{name_of(method)} (n = {n})", **dots)
    for (kind,), of_kind in grouped(rows, "kind").items():
        at = (places[kind] - width / 2, places[kind] + width / 2)
        for column, color, linestyle, label in (
            ("chance", "0.45", "-", CHANCE_LABEL),
            ("null", "black", ":", NULL_LABEL),
        ):
            if values := _defined(of_kind, f"{side}_{column}"):
                line: dict[str, Any] = {"color": color, "linestyle": linestyle, "label": label}
                ax.plot(at, [np.mean(values)] * 2, linewidth=1.5, **line)


# Projections in the order in which a layer uses them.
KINDS = tuple(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))


def _place(kind: str) -> tuple[int, str]:
    """Sort key: known projections in their order, others by name."""
    return (KINDS.index(kind) if kind in KINDS else len(KINDS), kind)
