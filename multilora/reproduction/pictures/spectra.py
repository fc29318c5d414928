"""Draw spectra by method, and the directions that methods share."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from analysis.figures.plots import plot_band, plot_phi
from analysis.figures.spectrum import Style
from analysis.numerics.subspaces import SIDES
from analysis.results import Row, grouped
from multilora.reproduction import bands as tables
from multilora.reproduction.pictures.styles import name_of, styles

PROJECTIONS = ("q_proj", "v_proj", "up_proj", "down_proj")
LEAST = 1e-3  # smaller singular values, relative to ‖ΔW‖_F, are not drawn
ENERGIES = (
    0.01,
    0.03,
    0.1,
    0.3,
    0.5,
    0.7,
    0.9,
    0.97,
    0.99,
    0.997,
    0.999,
)  # ticks of the cumulative energy


def spectra_by_method(rows: Sequence[Row], projections: Sequence[str] = PROJECTIONS) -> Figure:
    """Draw spectra of some projections, one band per method, and their cumulative energy below.

    rows: of `bands.bands_table`; without its columns of energy, only the spectra are drawn.
    projections: the projections that are drawn.

    The axis of the energy is logit, which spreads both ends: where the first direction counts and
    where the last ones do. If there are more methods than can be told apart, only the three main
    ones are drawn.
    """
    rows = _shown(rows, "method")
    look = styles(row["method"] for row in rows)
    energies = "energy_median" in rows[0]
    figure = Figure(figsize=(12, 6.6 if energies else 3.9), layout="constrained")
    axes = figure.subplots(
        2 if energies else 1, len(projections), sharex=True, sharey="row", squeeze=False
    )
    for column, kind in zip(axes.T, projections, strict=True):
        of_kind = [row for row in rows if row["kind"] == kind]
        _draw_bands(column[0], of_kind, ("low", "median", "high"), look)
        column[0].set(title=kind, ylim=(LEAST, 1.2))
        if energies:
            _draw_energies(column[1], of_kind, look)
        column[-1].set_xlabel("index i")
    if energies:
        axes[-1, 0].set_ylim(0.8 * min(row["energy_low"] for row in rows), 0.9993)
    for ax in axes.flat:
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.label_outer()
    title = "median and\n10–90 % of modules"
    axes[0, 0].legend(title=title, loc="lower left", fontsize=9, title_fontsize=9)
    return figure


def _shown(rows: Sequence[Row], *columns: str) -> Sequence[Row]:
    """Return the rows whose methods are drawn; columns: those that name methods."""
    methods = tables.shown(row[column] for row in rows for column in columns)
    return [row for row in rows if all(row[column] in methods for column in columns)]


def _draw_bands(
    ax: Axes, rows: Sequence[Row], columns: Sequence[str], look: Mapping[str, Style]
) -> None:
    """Draw the three columns of each method as a line with a band; look: by method."""
    for (method,), of_method in grouped(rows, "method").items():
        low, middle, high = (np.array([row[c] for row in of_method]) for c in columns)
        plot_band(low, middle, high, ax, label=name_of(method), **look[method])


def _draw_energies(ax: Axes, rows: Sequence[Row], look: Mapping[str, Style]) -> None:
    """Draw the cumulative energy of each method on a logit axis, where it is below 1."""
    below = [row for row in rows if row["energy_high"] < 1]
    _draw_bands(ax, below, ("energy_low", "energy_median", "energy_high"), look)
    ax.set(ylabel="energy in $s_1 … s_i$", yscale="logit")
    ax.set_yticks(ENERGIES, [f"{energy:g}" for energy in ENERGIES])


def singular_values(rows: Sequence[Row]) -> Figure:
    """Draw histograms of the singular values, one linear axis per projection.

    rows: of `bands.by_projection_table`. The count is logarithmic, so that the few large values
    can be seen beside the many small ones.
    """
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    look = styles(row["method"] for row in rows)
    columns = min(4, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.6 * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for ax, kind in zip(axes, kinds, strict=False):
        of_kind = [row for row in rows if row["kind"] == kind]
        for (method,), of_method in grouped(of_kind, "method").items():
            edges = [of_method[0]["left"], *(row["right"] for row in of_method)]
            counts = [row["count"] or np.nan for row in of_method]
            ax.stairs(counts, edges, label=name_of(method), **look[method])
        ax.set(title=kind, yscale="log", xlim=(0, None))
        ax.grid(alpha=0.3)
    for ax in axes[len(kinds) :]:
        ax.set_axis_off()
    for ax in axes[: len(kinds)][-columns:]:
        ax.set_xlabel("singular value")
    for ax in axes[::columns]:
        ax.set_ylabel("values per module")
    axes[0].legend(fontsize=8)
    return figure


# Pairs of methods in the order in which they are drawn: the second one along the x axis.
PAIRS = (("lora", "full"), ("multilora", "full"), ("full", "full"))
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the contour lines


def subspace_similarity(rows: Sequence[Row]) -> Figure:
    """Draw φ(i, j) minus chance between LoRA, MultiLoRA and full fine-tuning, left and right.

    rows: of phi_grids.csv, one per pair of methods, side and i, with columns j1 … jk; means over
    modules and pairs of different seeds, chance subtracted. White is what random subspaces share;
    one colour scale for all panels. Of other methods than these three, all pairs are drawn.
    """
    grids = {
        (row_of["method_a"], row_of["method_b"], row_of["side"]): _grid(of_grid)
        for of_grid in grouped(rows, "method_a", "method_b", "side").values()
        for row_of in of_grid[:1]
    }
    grids |= {(b, a, side): grid.T for (a, b, side), grid in grids.items() if a != b}
    pairs = [pair for pair in PAIRS if (*pair, "left") in grids]
    pairs = pairs or list(dict.fromkeys((row["method_a"], row["method_b"]) for row in rows))
    drawn = {(*pair, side): grids[*pair, side] for pair in pairs for side in SIDES}
    greatest = max(float(np.nanmax(np.abs(grid), initial=0.1)) for grid in drawn.values())
    figure = Figure(figsize=(3.3 * len(pairs) + 1.2, 6.4), layout="constrained")
    axes = figure.subplots(2, len(pairs), squeeze=False)
    for of_side, side in zip(axes, SIDES, strict=True):
        for ax, (a, b) in zip(of_side, pairs, strict=True):
            _draw_shared(ax, drawn[a, b, side], greatest)
            ax.set(xlabel=f"top j of {name_of(b)}", ylabel=f"top i of {name_of(a)}")
    for ax, (a, b) in zip(axes[0], pairs, strict=True):
        title = f"{name_of(a)}, two seeds" if a == b else f"{name_of(a)} ~ {name_of(b)}"
        ax.set_title(title, fontsize=11)
    for ax, name in zip(axes[:, 0], ("left: output", "right: input"), strict=True):
        ax.annotate(
            f"{name} directions",
            (-0.28, 0.5),
            xycoords="axes fraction",
            rotation=90,
            ha="right",
            va="center",
            fontsize=11,
        )
    bar = figure.colorbar(axes[0, 0].images[0], ax=list(axes.flat), label="φ(i, j) − chance")
    bar.ax.set_ylim(min(float(np.nanmin(grid, initial=0)) for grid in drawn.values()), greatest)
    return figure


def _grid(rows: Sequence[Row]) -> np.ndarray:
    """Return the values of one grid (rows, k) in the order of i; an empty cell is nan."""
    columns = [name for name in rows[0] if re.fullmatch(r"j\d+", name)]
    by_index = sorted(rows, key=lambda row: row["i"])
    return np.array([[row[name] for name in columns] for row in by_index], float)


def _draw_shared(ax: Axes, grid: np.ndarray, greatest: float) -> None:
    """Draw a grid with contour lines; greatest: the end of the colour scale on both sides of 0."""
    plot_phi(grid, ax, vmin=-greatest, vmax=greatest, cmap="RdBu_r")
    i, j = (np.arange(1, size + 1) for size in grid.shape)
    if min(grid.shape) > 1:
        lines = ax.contour(j, i, grid, LEVELS, colors="0.25", linewidths=0.6)
        for label in ax.clabel(lines, fmt="%.1f", fontsize=7):
            label.set_path_effects([withStroke(linewidth=2, foreground="white")])
