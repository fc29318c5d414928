"""Draw the studies: cut updates, rounded updates, adapters in the wild, steps of training."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.plots import plot_steps
from analysis.figures.spectrum import style
from analysis.results import Row, grouped
from multilora.reproduction.pictures.axes import plot_over_seeds
from multilora.reproduction.pictures.styles import FULL, LORA, MULTILORA, name_of, ordered, styles
from multilora.reproduction.tables import LOSS, SCORE

CUTS = {
    "keep": "only the top k directions of every ΔW kept",
    "remove": "the top k directions of every ΔW removed",
}
MARKED = 8  # the k whose share of the gain is written in the figure


def cut_curves(rows: Sequence[Row], by: str = SCORE) -> Figure:
    """Draw how much of the gain is left if every ΔW keeps or loses its top k directions.

    rows: of `cuts.table`. The gain of a run is its score minus that of its base (keep, k = 0), or
    with by = LOSS the fall of its loss; 1 is the gain of the whole update (remove, k = 0). Lines
    are means over seeds, bands their range; the legends give the mean at k = 8. Runs that gain
    nothing have no share and are left out.
    """
    gains = gain_shares(rows, by)
    methods = ordered(gains)
    look = styles(methods)
    counts = sorted({row["k"] for row in gains})
    figure = Figure(figsize=(10.5, 4.3), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, (kind, title) in zip(axes, CUTS.items(), strict=True):
        of_kind = [row for row in gains if row["kind"] == kind]
        for method in methods:
            of_method = [row for row in of_kind if row["method"] == method]
            values = [[100 * r["share"] for r in of_method if r["k"] == k] for k in counts]
            label = _share_label(method, values, counts)
            plot_over_seeds(counts, values, ax, label=label, marker=".", **look[method])
        _label_cuts(ax, counts, title)
    axes[0].set_ylabel(f"share of the gain in {'loss' if by == LOSS else 'score'}, %")
    seeds = len({row["seed"] for row in gains})
    figure.suptitle(f"means over {seeds} seeds and their range", fontsize=9)
    axes[0].legend(title=f"gain that the top {MARKED} carry", loc="upper left", fontsize=9)
    axes[1].legend(title=f"gain left without the top {MARKED}", loc="upper right", fontsize=9)
    return figure


def gain_shares(rows: Sequence[Row], by: str = SCORE) -> list[Row]:
    """Return the share of a run's gain at every cut, one row per row of cuts.csv.

    share: (score − base's score) / (score of the whole update − base's score), where the base's
    score is that of keep, k = 0, and the whole update's that of remove, k = 0. With by = LOSS, the
    losses take the place of the scores. Runs without either number, or whose whole update gains
    nothing, have no rows.
    """
    sign = -1 if by == LOSS else 1
    shares = []
    for (method, seed), of_run in grouped(rows, "method", "seed").items():
        uncut = {row["kind"]: sign * row[by] for row in of_run if row["k"] == 0}
        if uncut.keys() >= CUTS.keys() and uncut["remove"] > uncut["keep"]:
            gain = uncut["remove"] - uncut["keep"]
            shares += [
                {
                    "method": method,
                    "seed": seed,
                    "kind": row["kind"],
                    "k": row["k"],
                    "share": (sign * row[by] - uncut["keep"]) / gain,
                }
                for row in of_run
            ]
    return shares


def sizes(rows: Sequence[Row], by: str = SCORE) -> Figure:
    """Draw score or loss, and the concentration of ΔW, against MultiLoRA's n and r.

    rows: of sizes.csv. Left: n modules at one n·r; right: ranks at one n, both being those that
    most runs share.
    """
    products = Counter(row["n"] * row["r"] for row in rows)
    modules = Counter(row["n"] for row in rows)
    product, n = products.most_common(1)[0][0], modules.most_common(1)[0][0]
    of_product = [row for row in rows if row["n"] * row["r"] == product]
    of_n = [row for row in rows if row["n"] == n]
    columns = (
        ("n", f"number of modules n, n·r = {product}", of_product),
        ("r", f"rank r of a module, n = {n}", of_n),
    )
    what = {
        by: "loss per token, nats" if by == LOSS else "score",
        "top_share_1": "top-1 share",
        "democracy": "effective rank / chance",
    }
    figure = Figure(figsize=(8.4, 7.2), layout="constrained")
    axes = figure.subplots(len(what), 2, sharey="row", sharex="col")
    for column, (along, title, of_column) in zip(axes.T, columns, strict=True):
        of_column = sorted(of_column, key=lambda row: row[along])
        x = [row[along] for row in of_column]
        for ax, measure in zip(column, what, strict=True):
            ax.plot(x, [row[measure] for row in of_column], "o-", color=MULTILORA)
            if measure == "top_share_1":
                by_chance = [row["null_top_share_1"] for row in of_column]
                ax.plot(x, by_chance, ":", color="0.4", label="random update")
                ax.legend(fontsize=8)
            ax.grid(alpha=0.3)
        column[0].set_xscale("log", base=2)
        column[-1].set_xlabel(title)
        column[-1].set_xticks(x, [str(value) for value in x])
    for ax, words in zip(axes[:, 0], what.values(), strict=True):
        ax.set_ylabel(words)
    return figure


def _share_label(method: str, values: Sequence[Sequence[float]], counts: Sequence[int]) -> str:
    """Return the label of a line: the method's name and its mean at k = MARKED, if it has one."""
    marked = values[counts.index(MARKED)] if MARKED in counts else ()
    return f"{name_of(method)}: {np.mean(marked):.0f} %" if len(marked) else name_of(method)


def _label_cuts(ax: Axes, counts: Sequence[int], title: str) -> None:
    """Mark base, whole update and k = MARKED, and label the axes; counts: all k."""
    for level in (0, 100):
        ax.axhline(level, color="0.6", linewidth=0.8, zorder=0)
    ax.axvline(MARKED, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    ax.set_xscale("symlog", base=2, linthresh=1, linscale=0.6)
    ax.set_xticks([k for k in counts if k & (k - 1) == 0])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.set(title=title, xlabel="k, number of directions")


ROUNDED = {
    "effective_rank": "effective rank",
    "gini": "Gini coefficient",
    "top_share_1": "share of the energy in $s_1$",
    "above_floor_share": "above the noise floor",
}


def rounding_floor(rows: Sequence[Row]) -> Figure:
    """Draw the spectrum that rounding to bfloat16 leaves of a full fine-tuning, by its size.

    rows: of `rounding.table`. Lines are means over seeds, bands their range. The estimate without
    the noise is drawn if the rows have it.
    """
    figure = Figure(figsize=(12.5, 3.7), layout="constrained")
    axes = figure.subplots(1, len(ROUNDED))
    ratios = sorted({row["ratio"] for row in rows})

    def values(column: str) -> list[list[float]]:
        return [
            [row[column] for row in rows if row["ratio"] == ratio and row[column] is not None]
            for ratio in ratios
        ]

    for ax, (measure, label) in zip(axes, ROUNDED.items(), strict=True):
        after = {"label": "ΔW of rounded weights", "marker": "o", "markersize": 4}
        plot_over_seeds(ratios, values(measure), ax, **after, color=FULL, linestyle="--")
        if measure == "above_floor_share":
            ax.set(ylim=(0, 1.03), ylabel="share of the values")
        else:
            plot_over_seeds(ratios, values(f"{measure}_true"), ax, label="ΔW itself", color=FULL)
            if f"{measure}_denoised" in rows[0]:
                look = {"label": "without the noise", "marker": "D", "linestyle": "-."}
                plot_over_seeds(ratios, values(f"{measure}_denoised"), ax, **look, color="0.45")
        if measure == "effective_rank":
            noise = values("effective_rank_noise")
            plot_over_seeds(ratios, noise, ax, label="noise alone", color="0.55", linestyle=":")
            ax.legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.68))
        ax.set(xscale="log", xlabel=r"$\|\Delta W\|_F / \|W_0\|_F$", title=label)
        ax.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("mean over modules")
    own = np.mean([row["own_ratio"] for row in rows])
    figure.suptitle(f"A full fine-tuning, scaled down and stored in bfloat16 (unscaled: {own:.2f})")
    return figure


WILD = (style(1), style(5), style(6))  # runs of others


def wild_adapters(rows: Sequence[Row]) -> Figure:
    """Draw the top-1 share of every module of adapters in the wild, with chance, and over steps.

    rows: of `wild.table`. Left: the last step of each adapter, by rank. Right: adapters with
    several steps, medians over modules with their 10–90 % range.
    """
    adapters = grouped(rows, "adapter")
    last = {name: _last_step(of_adapter) for (name,), of_adapter in adapters.items()}
    order = sorted(last, key=lambda name: (last[name][0]["r"], name))
    figure = Figure(figsize=(12.5, 1.8 + 0.36 * len(order)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for y, name in enumerate(order):
        _wild_row(left, -y, last[name], first=y == 0)
    names = [f"{name.rpartition('-run')[0] or name}, r = {last[name][0]['r']}" for name in order]
    left.set_yticks([-y for y in range(len(order))], names, fontsize=8)
    left.set(xlabel="share of ΔW's energy in its first direction", xlim=(0, 1.02))
    left.set_title("every module of each adapter")
    left.grid(axis="x", alpha=0.3)
    left.legend(loc="upper left", fontsize=8)
    steps = {
        name: of_adapter
        for (name,), of_adapter in adapters.items()
        if len({row["step"] for row in of_adapter}) > 1
    }
    for i, (name, of_adapter) in enumerate(steps.items()):
        _wild_steps(right, name, of_adapter, i)
    right.set(xlabel="step of training", ylabel="share of the energy in $s_1$", ylim=(0, 1.02))
    right.set_title("over training: median, 10–90 % of modules")
    right.grid(alpha=0.3)
    if steps:
        right.legend(loc="lower right", fontsize=8)
    return figure


def _last_step(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of one adapter at its last step, and those without a step."""
    last = max(row["step"] or 0 for row in rows)
    return [row for row in rows if row["step"] == last or not row["step"]]


def _wild_row(ax: Axes, y: float, rows: Sequence[Row], first: bool) -> None:
    """Draw the modules of one adapter at height y; first: True to label them for the legend."""
    shares = np.array([row["top_share_1"] for row in rows])
    heights = y + np.linspace(-0.22, 0.22, shares.size)
    labels = ("one module", "median", "median by chance") if first else (None, None, None)
    ax.plot(shares, heights, ".", markersize=5, alpha=0.5, mew=0, color=LORA, label=labels[0])
    ax.plot(np.median(shares), y, "D", color=FULL, markersize=5, label=labels[1])
    chance = np.median([row["null_top_share_1"] for row in rows])
    ax.plot([chance], [y], "|", color="0.4", markersize=12, mew=2, label=labels[2])


def _wild_steps(ax: Axes, name: str, rows: Sequence[Row], i: int) -> None:
    """Draw one adapter over its steps; name: the adapter; i: its place among the styles."""
    by_step = dict(sorted((step, of_step) for (step,), of_step in grouped(rows, "step").items()))
    values = [[row["top_share_1"] for row in of_step] for of_step in by_step.values()]
    low, middle, high = (np.array([np.quantile(v, q) for v in values]) for q in (0.1, 0.5, 0.9))
    short = name.rpartition("-run")[0] or name
    plot_steps(list(by_step), low, middle, high, ax, label=short, **WILD[i % len(WILD)])
    chance = np.median([row["null_top_share_1"] for row in rows])
    ax.axhline(chance, linewidth=1.5, color=WILD[i % len(WILD)]["color"], linestyle=(0, (1, 2)))
    ax.annotate(
        f"by chance, r = {rows[0]['r']}",
        (1, chance),
        (-4, 3),
        fontsize=8,
        ha="right",
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
    )


def dynamics(rows: Sequence[Row]) -> Figure:
    """Draw how concentrated ΔW is over the steps of training, one line per method.

    rows: of `dynamics.table`. Lines are means over seeds, bands their range.
    """
    methods = ordered(rows)
    look = styles(methods)
    k = rows[0]["k"]
    measures = {
        "top_share_1": "share of the energy in $s_1$",
        "effective_rank_k": f"effective rank of $s_1 … s_{{{k}}}$",
        "gini_k": f"Gini coefficient of $s_1 … s_{{{k}}}$",
        "frobenius_norm": r"$\|\Delta W\|_F$",
    }
    figure = Figure(figsize=(12.5, 4), layout="constrained")
    axes = figure.subplots(1, len(measures))
    steps = sorted({row["step"] for row in rows})
    for ax, (measure, label) in zip(axes, measures.items(), strict=True):
        for method in methods:
            chosen = [row for row in rows if row["method"] == method]
            values = [[row[measure] for row in chosen if row["step"] == step] for step in steps]
            plot_over_seeds(steps, values, ax, label=name_of(method), marker=".", **look[method])
        ax.set(xlabel="step of training", title=label, xlim=(0, None), ylim=(0, None))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("mean over modules")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(7, len(labels)))
    return figure
