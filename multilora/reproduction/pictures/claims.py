"""What the claims are about: dominance by method, overlap of modules, the grid."""

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

# What the variants of MultiLoRA differ in; n = 3 and s = 0 at the start unless said.
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
    """How concentrated ΔW is by method: a dot a seed, their mean and Student interval.

    rows: of methods.csv. Three measures side by side: of the whole spectrum, and of s[:k], which
    a method of a lower capacity does not have.
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
    """φ(r, r) between the modules of one MultiLoRA, beside chance; left and right.

    rows: of `overlap.table`; of variants of MultiLoRA only those that differ in n are drawn. By
    projection, a dot a seed: the mean over its layers; where runs have several n, by n too.
    """
    rows = [row for row in rows if re.fullmatch(r"multilora( n=\d+)?", row["method"])] or rows
    several = len({row["n"] for row in rows}) > 1
    figure = Figure(figsize=(11, 7 if several else 4), layout="constrained")
    axes = figure.subplots(2 if several else 1, 2, sharey=True, squeeze=False)
    usual = [row for row in rows if row["n"] == _usual(rows)]
    for column, (side, what) in enumerate((("left", "written"), ("right", "read"))):
        ax = axes[0, column]
        _overlaps(ax, usual, "kind", side)
        ax.set_title(f"{side}: directions that are {what}, n = {usual[0]['n']}")
        if several:
            _overlaps(axes[1, column], rows, "n", side)
            axes[1, column].set_xlabel("n, modules a layer")
    r = usual[0]["r"]
    for ax, label in zip(axes[:, 0], (f"φ({r}, {r})", "φ(r, r)"), strict=False):
        ax.set(ylabel=f"{label} between modules", ylim=(0, None))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _usual(rows: Sequence[Row]) -> int:
    """The n that most runs have."""
    counts = [row["n"] for row in rows if row["seed"] == rows[0]["seed"]]
    return 3 if 3 in counts else max(counts, key=counts.count)


# Projections in the order in which a layer uses them.
KINDS = tuple(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))


def _place(key: str | int) -> tuple[int, str | int]:
    """Known projections in their order, others by name, numbers by size."""
    return (KINDS.index(key) if key in KINDS else len(KINDS), key)


def _overlaps(ax: Axes, rows: Sequence[Row], by: str, side: str) -> None:
    groups = grouped(sorted(rows, key=lambda row: _place(row[by])), by)
    for x, of_group in enumerate(groups.values()):
        seeds = [_mean(of_seed, f"{side}_phi") for of_seed in grouped(of_group, "seed").values()]
        jitter = np.linspace(-0.12, 0.12, len(seeds)) if len(seeds) > 1 else np.zeros(1)
        labels = ("", "") if x else ("a seed, mean over its layers", "chance, r/d")
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
    "rate": "learning rate,\nof the chosen one",
    "steps": "steps of training",
    "width": "width of the model",
    "n·r": "rank n·r",
    "n": "modules n",
}
UNCHANGED = ("rate", 1)  # the setting and value at which nothing is changed
Pair = tuple[str, str | None]  # a − b, or a itself
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
    """What GRID compares at every value of every setting, by seed: a − b, or a where b is None.

    One row a setting, value, seed, measure and pair, where both are there.
    """
    found = []
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
                found.append(row | {"a": a, "b": b, "difference": difference})
    return found


def scale_grid(rows: Sequence[Row]) -> Figure:
    """The differences between methods at every value of every setting: a dot a seed.

    rows: of grid.csv. A column a setting, a row a measure that is there; a sign that holds lies on
    one side of the line at zero. The dotted lines are the means where no setting is changed.
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
    figure.supylabel("difference at each seed, in")
    known: dict[str, Artist] = {}
    for ax in axes[:, 0]:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    figure.legend(list(known.values()), list(known), loc="outside upper center", ncols=len(known))
    return figure


def _draw_differences(
    ax: Axes, rows: Sequence[Row], usual: Sequence[Row], values: Sequence[Any], factor: float
) -> None:
    """A dot a seed, the pairs side by side, and lines at zero and at the means of `usual`."""
    pairs = grouped(rows, "a", "b")
    for i, (pair, of_pair) in enumerate(pairs.items()):
        label, look = LOOKS[pair]
        shift = 0.26 * (i - (len(pairs) - 1) / 2)
        x = [values.index(row["value"]) + shift for row in of_pair]
        y = [factor * row["difference"] for row in of_pair]
        ax.plot(x, y, linestyle="", markersize=5, alpha=0.7, mew=0, label=label, **look)
    for pair, of_pair in grouped(usual, "a", "b").items():
        style = {"color": LOOKS[pair][1]["color"], "linestyle": ":", "linewidth": 1.2}
        ax.axhline(factor * _mean(of_pair, "difference"), label="mean, nothing changed", **style)
    ax.axhline(0, color=FULL, linewidth=0.8)
    ax.grid(axis="y", alpha=0.3)
