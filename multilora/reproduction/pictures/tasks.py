"""Draw how tasks pull a model: their updates, their gradients, and what mixing them costs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from analysis.figures.spectrum import style
from analysis.numerics import statistics
from analysis.results import Row, grouped
from multilora.reproduction.pictures.styles import name_of, ordered, styles
from multilora.tasks.example import FAMILIES

TEXT = "plain text"


def gradients(rows: Sequence[Row]) -> Figure:
    """Draw the cosines between the gradients of tasks, ordered by a dendrogram.

    rows: of gradients.csv. On the diagonal, the cosine between two halves of a task's examples.
    """
    figure = Figure(figsize=(6.4, 6.6), layout="constrained")
    matrix, names = _matrix(rows, "task_a", "task_b")
    _clustered(figure, matrix, names, "cosine of the gradients of the base")
    return figure


def task_structure(rows: Sequence[Row]) -> Figure:
    """Draw the cosines between the updates of tasks, or heads, of each method, and by layer.

    rows: of parts.csv. Above, one matrix per method, ordered by a dendrogram; below, the cosine of
    every pair by layer, and their mean.
    """
    methods = ordered(rows)
    figure = Figure(figsize=(5.2 * len(methods), 8.6), layout="constrained")
    places = figure.subfigures(2, len(methods), height_ratios=(2.1, 1), squeeze=False)
    for (above, below), method in zip(places.T, methods, strict=True):
        of_method = [row for row in rows if row["method"] == method]
        whole = [row for row in of_method if row["layer"] == "all"]
        matrix, names = _matrix(whole, "part_a", "part_b")
        np.fill_diagonal(matrix, 1)
        _clustered(above, matrix, names, f"{name_of(method)}: cosine of two ΔW")
        _by_layer(below.subplots(), of_method)
    return figure


def _matrix(rows: Sequence[Row], a: str, b: str) -> tuple[np.ndarray, list[str]]:
    """Return the symmetric matrix of the cosines, nan where undefined, and its names.

    a, b: the columns that name rows and columns. Means over the rows of a pair, such as seeds.
    """
    names = list(dict.fromkeys(row[column] for row in rows for column in (a, b)))
    matrix = np.full((len(names), len(names)), np.nan)
    for (one, other), of_pair in grouped(rows, a, b).items():
        i, j = names.index(one), names.index(other)
        matrix[i, j] = matrix[j, i] = _cosine(of_pair)
    return matrix, names


def _cosine(rows: Sequence[Row]) -> float:
    """Return the mean of the cosines that are defined; nan if none is."""
    mean = statistics.mean(row["cosine"] for row in rows)
    return np.nan if mean is None else mean


def _clustered(
    place: Figure | SubFigure, matrix: np.ndarray, names: Sequence[str], title: str
) -> None:
    """Draw a matrix of cosines below the dendrogram of the distances 1 − cosine (average linkage).

    A cosine that is undefined counts as 0 for the order.
    """
    tree, ax = place.subplots(2, 1, height_ratios=(1, 4))
    distances = 1 - np.nan_to_num(matrix)
    np.fill_diagonal(distances, 0)
    links = hierarchy.linkage(squareform(distances, checks=False), "average")
    colour = style(0)["color"]
    drawn = hierarchy.dendrogram(links, ax=tree, no_labels=True, link_color_func=lambda _: colour)
    order = drawn["leaves"]
    tree.set(title=title, ylabel="1 − cosine")
    tree.spines[["top", "right", "bottom"]].set_visible(False)
    turned = matrix[np.ix_(order, order)]
    off = turned[~np.eye(len(order), dtype=bool)]
    greatest = max(0.05, float(np.nanmax(np.abs(off), initial=0)))
    image = ax.imshow(turned, cmap="RdBu_r", vmin=-greatest, vmax=greatest, aspect="auto")
    for i, j in np.ndindex(turned.shape):
        if np.isfinite(turned[i, j]):
            dark = abs(turned[i, j]) > 0.65 * greatest
            ax.text(
                j, i, f"{turned[i, j]:.2f}", ha="center", va="center", fontsize=8,
                color="white" if dark else "black",
            )  # fmt: skip
    own = [names[i] for i in order]
    ax.set_xticks(range(len(own)), own, rotation=40, ha="right")
    ax.set_yticks(range(len(own)), own)
    place.colorbar(image, ax=ax, shrink=0.8, extend="max" if np.nanmax(turned) > greatest else None)


def _by_layer(ax: Axes, rows: Sequence[Row]) -> None:
    """Draw the cosine of every pair of parts over the layers, and their mean."""
    of_layers = [row for row in rows if row["layer"] not in ("all", "None")]
    layers = sorted({int(row["layer"]) for row in of_layers})
    pairs = grouped(of_layers, "part_a", "part_b")
    lines = np.array(
        [
            [_cosine([row for row in of_pair if int(row["layer"]) == layer]) for layer in layers]
            for of_pair in pairs.values()
        ]
    )
    ax.plot(layers, lines.T, color="0.75", linewidth=0.7)
    means = [_cosine([row for row in of_layers if int(row["layer"]) == layer]) for layer in layers]
    ax.plot(layers, means, color=style(0)["color"], label=f"mean of {len(lines)} pairs")
    ax.axhline(0, color="0.4", linewidth=0.6)
    ax.set(xlabel="layer", ylabel="cosine of two ΔW")
    ax.legend(fontsize=8)


def mixing(rows: Sequence[Row]) -> Figure:
    """Draw the losses of models trained on one family and on all, and of the base.

    rows: of forgetting.csv. A panel for each family and for plain text; dots are runs.
    """
    panels = {f"nll_{family}": family for family in FAMILIES} | {"text": TEXT}
    panels = {
        name: title for name, title in panels.items() if any(r[name] is not None for r in rows)
    }
    everything = max((row["trained_on"] or "" for row in rows), key=len)
    groups = {everything: "all families"} | {family: f"{family} only" for family in FAMILIES}
    groups = {of: words for of, words in groups.items() if any(r["trained_on"] == of for r in rows)}
    tuned = [row for row in rows if row["trained_on"]]
    methods = ordered(tuned)
    look = styles(methods)
    figure = Figure(figsize=(3.1 * len(panels) + 1.6, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        for row in rows:
            if row["method"] == "base" and row[column] is not None:
                ax.axvline(row[column], color="0.4", linewidth=0.8, linestyle=":", label="base")
        for y, of in enumerate(groups):
            for place, method in enumerate(methods):
                values = [
                    r[column] for r in tuned if (r["trained_on"], r["method"]) == (of, method)
                ]
                height = y + (place - (len(methods) - 1) / 2) * 0.8 / len(methods)
                label = name_of(method) if y == 0 else None
                ax.plot(
                    values, [height] * len(values), "o", color=look[method]["color"],
                    alpha=0.8, label=label, mfc="none" if "zero" in method else None,
                )  # fmt: skip
        ax.set(title=title, xlabel="loss per token, nats")
        ax.grid(alpha=0.3, axis="x")
    axes[0].set_yticks(range(len(groups)), [f"trained on\n{words}" for words in groups.values()])
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    return figure
