"""Draw what the claims are about: dominance by method, overlap of modules, the grid."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.spectrum import Style
from analysis.results import Row, grouped
from multilora.reproduction.pictures.axes import plot_seeds
from multilora.reproduction.pictures.styles import FULL, LORA, MULTILORA, ordered, styles

# Labels of the variants, which say how they differ.
MEANING = {
    "lora r=26": "lora r=26 (more parameters)",
    "lora+": "lora+ (B's rate × 4)",
    "multilora": "multilora (n = 3, B random, s = 0)",
    "multilora s×5": "multilora s×5 (s's rate × 5)",
    "multilora zero": "multilora (n = 3, B = 0, s = 1)",
    "multilora n=1": "multilora (n = 1, B random, s = 0)",
    "multilora n=1 zero": "multilora (n = 1, B = 0, s = 1)",
}


def dominance_ablation(rows: Sequence[Row]) -> Figure:
    """Draw how concentrated ΔW is by method: one dot per seed, their mean and Student interval.

    rows: of methods.csv. Three measures side by side: one of the whole spectrum and two of s[:k],
    which are undefined for a method of lower capacity.
    """
    methods = ordered(rows)
    k = max(row["k"] for row in rows if row["k"] is not None)
    figure = Figure(figsize=(12, 1.6 + 0.42 * len(methods)), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    look = styles(methods)
    measures = {
        "top_share_1": "share of the energy in $s_1$",
        "effective_rank_k": f"effective rank of the first {k} values",
        "gini_k": f"Gini coefficient of the first {k} values",
    }
    better = ("← less dominated", "less dominated →", "← less dominated")
    for ax, (measure, label), side in zip(axes, measures.items(), better, strict=True):
        for y, method in enumerate(methods):
            values = [row[measure] for row in rows if row["method"] == method]
            defined = [value for value in values if value is not None]
            if defined:
                plot_seeds(defined, -y, ax, color=look[method]["color"])
        ax.set(xlabel=label)
        ax.set_title(side, loc="left" if side.startswith("←") else "right", fontsize=9)
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks([-y for y in range(len(methods))], [MEANING.get(m, m) for m in methods])
    counts = {len({r["seed"] for r in rows if r["method"] == method}) for method in methods}
    seeds = "–".join(map(str, sorted({min(counts), max(counts)})))
    figure.suptitle(f"● each of {seeds} seeds, ◆ mean with 95 % Student interval")
    return figure


def module_overlap(rows: Sequence[Row]) -> Figure:
    """Draw φ(r, r) between the modules of one MultiLoRA, left and right, with chance.

    rows: of `overlap.by_layer`. Only variants of MultiLoRA that differ in n are drawn, by
    projection, one dot per seed: the mean over layers. If runs have several n, also by n.
    """
    rows = [row for row in rows if re.fullmatch(r"multilora( n=\d+)?", row["method"])] or rows
    several = len({row["n"] for row in rows}) > 1
    figure = Figure(figsize=(11, 7 if several else 4), layout="constrained")
    axes = figure.subplots(2 if several else 1, 2, sharey=True, squeeze=False)
    usual = [row for row in rows if row["n"] == _usual(rows)]
    for column, (side, name) in enumerate((("left", "output"), ("right", "input"))):
        ax = axes[0, column]
        _overlaps(ax, usual, "kind", side)
        ax.set_title(f"{side}: {name} directions, n = {usual[0]['n']}")
        if several:
            _overlaps(axes[1, column], rows, "n", side)
            axes[1, column].set_xlabel("n, modules per layer")
    r = usual[0]["r"]
    for ax, label in zip(axes[:, 0], (f"φ({r}, {r})", "φ(r, r)"), strict=False):
        ax.set(ylabel=f"{label} between modules", ylim=(0, None))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _usual(rows: Sequence[Row]) -> int:
    """Return 3 if there is a run with n = 3, else the most frequent n."""
    counts = [row["n"] for row in rows if row["seed"] == rows[0]["seed"]]
    return 3 if 3 in counts else max(counts, key=counts.count)


# Projections in the order in which a layer uses them.
KINDS = tuple(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))


def _place(key: str | int) -> tuple[int, str | int]:
    """Sort key: known projections in their order, others by name, numbers by size."""
    return (KINDS.index(key) if key in KINDS else len(KINDS), key)


def _overlaps(ax: Axes, rows: Sequence[Row], by: str, side: str) -> None:
    """Draw the overlap of one side by the values of column `by`: one dot per seed, and chance."""
    groups = grouped(sorted(rows, key=lambda row: _place(row[by])), by)
    for x, of_group in enumerate(groups.values()):
        seeds = [_mean(of_seed, f"{side}_phi") for of_seed in grouped(of_group, "seed").values()]
        jitter = np.linspace(-0.12, 0.12, len(seeds)) if len(seeds) > 1 else np.zeros(1)
        labels = ("", "") if x else ("one seed, mean over its layers", "chance, r/d")
        ax.plot(
            x + jitter,
            seeds,
            "o",
            color=MULTILORA,
            markersize=5,
            alpha=0.75,
            mew=0,
            label=labels[0],
        )
        chance = _mean(of_group, f"{side}_chance")
        ax.plot([x - 0.3, x + 0.3], [chance, chance], color="0.4", linestyle="--", label=labels[1])
    ax.set_xticks(range(len(groups)), [str(key).removesuffix("_proj") for (key,) in groups])
    ax.grid(axis="y", alpha=0.3)


def _mean(rows: Sequence[Row], column: str) -> float:
    return float(np.mean([row[column] for row in rows]))


SETTINGS = {
    "rate": "learning rate,\nrelative to the chosen one",
    "steps": "steps of training",
    "width": "width of the model",
    "n·r": "rank n·r",
    "n": "modules n",
}
UNCHANGED = ("rate", 1)  # the setting and value without a change
Pair = tuple[str, str | None]  # (a, b) for a − b, (a, None) for a itself
NEW: Pair = ("multilora", "lora")
OLD: Pair = ("lora", "full")
ALONE: Pair = ("multilora", None)
GRID: dict[str, tuple[str, tuple[Pair, ...]]] = {
    "top_share_1": ("share of\nenergy in $s_1$", (NEW, OLD)),
    "effective_rank_k": ("effective rank", (NEW, OLD)),
    "gini_k": ("Gini coefficient", (NEW, OLD)),
    "overlap_above_chance": ("overlap of modules\nabove chance", (ALONE,)),
    "left_phi_k": ("φ(k, k) with full,\nleft", (NEW,)),
    "right_phi_k": ("φ(k, k) with full,\nright", (NEW,)),
    "score": ("score,\npercentage points", (NEW, OLD)),
}
LOOKS: dict[Pair, tuple[str, Style]] = {
    NEW: ("MultiLoRA − LoRA", {"color": MULTILORA, "marker": "^"}),
    OLD: ("LoRA − full fine-tuning", {"color": LORA, "marker": "s"}),
    ALONE: ("MultiLoRA", {"color": MULTILORA, "marker": "o"}),
}


def grid_differences(rows: Sequence[Row]) -> list[Row]:
    """Return a − b, or a if b is None, for all pairs in GRID at every value of every setting.

    rows: of grid.csv. One row per setting, value, seed, measure and pair that is measured.
    """
    differences = []
    for (setting, value, seed), of_place in grouped(rows, "setting", "value", "seed").items():
        by_method = {row["method"]: row for row in of_place}
        for measure, (_, pairs) in GRID.items():
            for a, b in pairs:
                numbers: list[Any] = [
                    by_method.get(m, {}).get(measure) for m in (a, b) if m is not None
                ]
                if None in numbers:
                    continue
                difference = numbers[0] if b is None else numbers[0] - numbers[1]
                row = {"setting": setting, "value": value, "seed": seed, "measure": measure}
                differences.append(row | {"a": a, "b": b, "difference": difference})
    return differences


def scale_grid(rows: Sequence[Row]) -> Figure:
    """Draw the differences between methods at every value of every setting, one dot per seed.

    rows: of grid.csv. One column per setting and one row per measure. If a sign holds, all dots lie
    on one side of the line at zero. Dotted lines are the means without a change of settings.
    """
    differences = grid_differences(rows)
    unchanged = [row for row in differences if (row["setting"], row["value"]) == UNCHANGED]
    measures = [measure for (measure,) in grouped(differences, "measure")]
    settings = [setting for (setting,) in grouped(differences, "setting")]
    size = (2.4 * len(settings) + 1.6, 2 * len(measures) + 1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(measures), len(settings), sharex="col", sharey="row", squeeze=False)
    for ax, measure in zip(axes[:, 0], measures, strict=True):
        ax.set_ylabel(GRID[measure][0])
    for column, setting in zip(axes.T, settings, strict=True):
        of_setting = [row for row in differences if row["setting"] == setting]
        values = sorted({row["value"] for row in of_setting}, key=lambda v: (isinstance(v, str), v))
        for ax, measure in zip(column, measures, strict=True):
            chosen = [row for row in of_setting if row["measure"] == measure]
            usual = [row for row in unchanged if row["measure"] == measure]
            _draw_differences(ax, chosen, usual, values, 100 if measure == "score" else 1)
        column[-1].set_xticks(range(len(values)), [str(value) for value in values])
        column[-1].set(xlabel=SETTINGS.get(setting, setting), xlim=(-0.5, len(values) - 0.5))
    figure.supylabel("difference at each seed in")
    known: dict[str, Artist] = {}
    for ax in axes[:, 0]:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    figure.legend(list(known.values()), list(known), loc="outside upper center", ncols=len(known))
    return figure


def _draw_differences(
    ax: Axes, rows: Sequence[Row], usual: Sequence[Row], values: Sequence[Any], factor: float
) -> None:
    """Draw one dot per seed, pairs side by side, and lines at zero and at the usual means.

    ax: the Axes.
    rows: differences of one setting and measure.
    usual: the differences of the same measure without a change of settings.
    values: the values of the setting, from left to right.
    factor: applied to all differences.
    """
    pairs = grouped(rows, "a", "b")
    for i, (pair, of_pair) in enumerate(pairs.items()):
        label, look = LOOKS[pair]
        shift = 0.26 * (i - (len(pairs) - 1) / 2)
        x = [values.index(row["value"]) + shift for row in of_pair]
        y = [factor * row["difference"] for row in of_pair]
        ax.plot(x, y, linestyle="", markersize=5, alpha=0.7, mew=0, label=label, **look)
    for pair, of_pair in grouped(usual, "a", "b").items():
        style = {"color": LOOKS[pair][1]["color"], "linestyle": ":", "linewidth": 1.2}
        ax.axhline(factor * _mean(of_pair, "difference"), label="mean without a change", **style)
    ax.axhline(0, color=FULL, linewidth=0.8)
    ax.grid(axis="y", alpha=0.3)
