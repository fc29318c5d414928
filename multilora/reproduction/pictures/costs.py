"""Draw what the methods cost: parameters, time and memory."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.spectrum import style
from analysis.results import Row, grouped
from multilora.reproduction.pictures.styles import FULL, LORA, MTLLORA, MULTILORA, RLORA

SHARE = 0.025  # the share of parameters in the paper's abstract


def budget(rows: Sequence[Row]) -> Figure:
    """Draw the share of a model's parameters against r, one line per n and one panel per model.

    rows: of `budget.curve`. The legend gives the largest r within 2.5 %.
    """
    models = grouped(rows, "model")
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
    for ax, ((model,), of_model) in zip(axes, models.items(), strict=True):
        for i, ((n,), of_n) in enumerate(grouped(of_model, "n").items()):
            within = [row["r"] for row in of_n if row["share"] <= SHARE]
            label = f"n = {n}: r ≤ {max(within)}" if within else f"n = {n}: none"
            share = [100 * row["share"] for row in of_n]
            line = {"color": MULTILORA, "linestyle": style(i)["linestyle"]}
            ax.plot([row["r"] for row in of_n], share, label=label, **line)
        ax.axhline(100 * SHARE, color=FULL, linewidth=0.8)
        ax.set(title=model, xscale="log", yscale="log", xlabel="r, rank of each module")
        ax.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
        ax.set_yticks([0.1, 0.5, 2.5, 10, 50], ["0.1", "0.5", "2.5", "10", "50"])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.legend(title="within 2.5 %", loc="upper left", fontsize=8, title_fontsize=8)
    axes[0].set_ylabel("parameters of MultiLoRA, % of the model's")
    return figure


COLORS = {"LoRA": LORA, "MultiLoRA": MULTILORA, "R-LoRA": RLORA, "MTL-LoRA": MTLLORA}
FORMS = {"stacked": MULTILORA, "loop": "0.45", "einsum": "0.75"}


def resources(rows: Sequence[Row]) -> Figure:
    """Draw the time of a layer relative to LoRA's, of ways to compute it, and the peak memory.

    rows: of resources.csv, written by `python -m benchmarks.resources`.
    """
    figure = Figure(figsize=(12.5, 3.8), layout="constrained")
    layers, forms, memory = figure.subplots(1, 3, width_ratios=(1.4, 1.2, 0.8))
    rows_of = {what: of_what for (what,), of_what in grouped(rows, "what").items()}
    compared = [r for what in ("layer", "relative") for r in rows_of[what] if r["method"] in COLORS]
    _ratios(layers, [row for row in compared if row["method"] != "LoRA"], COLORS)
    layers.set(xlabel="time, × LoRA of equal budget", title="a layer, forward and backward")
    _ratios(forms, [row for row in rows_of["form"] if row["method"] in FORMS], FORMS)
    forms.set(xlabel="time, × the frozen layer alone", title="ways to compute MultiLoRA")
    for x, ((method,), of_method) in enumerate(grouped(rows_of["memory"], "method").items()):
        peaks = [row["value"] for row in of_method]
        memory.plot(np.full(len(peaks), x), peaks, "o", mew=0, alpha=0.7, color=COLORS[method])
        memory.plot([x - 0.2, x + 0.2], [np.median(peaks)] * 2, color=COLORS[method])
    methods = [method for (method,) in grouped(rows_of["memory"], "method")]
    memory.set_xticks(range(len(methods)), methods)
    top = 1.1 * max(row["value"] for row in rows_of["memory"])
    memory.set(xlim=(-0.6, len(methods) - 0.4), ylim=(0, top), ylabel="peak above the start, MB")
    memory.set_title(f"training\n{rows_of['memory'][0]['setting']}", fontsize=10)
    memory.grid(axis="y", alpha=0.3)
    return figure


def _ratios(ax: Axes, rows: Sequence[Row], colors: dict[str, str]) -> None:
    """Draw one dot per setting and method, the first setting on top, and a line at 1."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    for method, color in colors.items():
        of_method = [row for row in rows if row["method"] == method]
        if of_method:
            places = [-settings.index(row["setting"]) for row in of_method]
            values = [row["ratio"] for row in of_method]
            ax.plot(values, places, "o", markersize=6, mew=0, color=color, label=method)
    ax.axvline(1, color=FULL, linewidth=0.8)
    ax.set_yticks([-y for y in range(len(settings))], settings, fontsize=8)
    ax.set_xlim(left=0)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
