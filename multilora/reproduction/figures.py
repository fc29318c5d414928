"""Draw the figures of a reproduction from its tables."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from analysis import UserError
from analysis.results import Row
from analysis.store import save_figure
from multilora.reproduction.pictures import claims, experiments, grid, spectra, tasks
from multilora.reproduction.tables import judged_by, parsed


class Source(NamedTuple):
    """The tables and the function that a figure is drawn from.

    tables: file name of each table -> the columns that it must have, separated by blanks.
    figure: the function that takes the rows of these tables and returns the figure.
    by_worth: True if the function also takes what the claims go by, score or loss.
    """

    tables: dict[str, str]
    figure: Callable[..., Figure]
    by_worth: bool = False


SOURCES = {
    "spectra_by_method": Source(
        {"spectra_by_method.csv": "kind method index low median high"}, spectra.spectra_by_method
    ),
    "subspace_similarity": Source(
        {"phi_grids.csv": "method_a method_b side i j1"}, spectra.subspace_similarity
    ),
    "module_overlap": Source(
        {"module_overlap.csv": "method seed n r kind left_phi left_chance right_phi right_chance"},
        claims.module_overlap,
    ),
    "dominance_ablation": Source(
        {"methods.csv": "method seed k top_share_1 effective_rank_k gini_k"},
        claims.dominance_ablation,
    ),
    "rounding_floor": Source(
        {
            "rounding_floor.csv": "ratio own_ratio effective_rank effective_rank_true"
            " effective_rank_noise gini gini_true top_share_1 top_share_1_true above_floor_share"
        },
        experiments.rounding_floor,
    ),
    "cut_curves": Source(
        {"cuts.csv": "method seed kind k score"}, experiments.cut_curves, by_worth=True
    ),
    "singular_values": Source(
        {"histogram_by_projection.csv": "kind method left right count"}, spectra.singular_values
    ),
    "sizes": Source({"sizes.csv": "n r top_share_1 democracy score"}, experiments.sizes, True),
    "gradients": Source({"gradients.csv": "task_a task_b cosine"}, tasks.gradients),
    "task_structure": Source(
        {"parts.csv": "method part_a part_b layer cosine"}, tasks.task_structure
    ),
    "mixing": Source({"forgetting.csv": "method trained_on text"}, tasks.mixing),
    "dynamics": Source(
        {"dynamics.csv": "method seed step k top_share_1 effective_rank_k gini_k frobenius_norm"},
        experiments.dynamics,
    ),
    "scale_grid": Source({"grid.csv": "setting value seed method"}, grid.scale_grid),
    "wild_adapters": Source(
        {"wild.csv": "adapter step r top_share_1 null_top_share_1"}, experiments.wild_adapters
    ),
}


def draw(directory: Path, names: Iterable[str] = SOURCES) -> list[Path]:
    """Draw the figures whose tables exist in `directory` there, and return their PNG files.

    Raises UserError if a table has no row or lacks a column.
    """
    drawn = []
    for name in names:
        source = SOURCES[name]
        if all((directory / table).is_file() for table in source.tables):
            tables = [_rows(directory / table, of.split()) for table, of in source.tables.items()]
            given = {"by": judged_by(directory)} if source.by_worth else {}
            save_figure(source.figure(*tables, **given), directory / name)
            drawn.append(directory / f"{name}.png")
    return drawn


def _rows(path: Path, needed: Sequence[str]) -> list[Row]:
    """Read a table that must have rows and the needed columns."""
    rows = parsed(path, path.read_bytes(), needed)
    if not rows:
        raise UserError(f"{path}: has no row; expected at least one")
    return rows
