"""Draw the figures of a reproduction from its tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from analysis import UserError, store
from analysis.results import Row, Spectra
from multilora.reproduction.pictures import claims, costs, experiments, spectra
from multilora.reproduction.pictures.spectra import PROJECTIONS
from multilora.reproduction.tables import parsed

bands_table, histogram_table = spectra.bands_table, spectra.histogram_table


def spectra_by_method(
    found: Spectra, method_of: Mapping[str, str], projections: Sequence[str] = PROJECTIONS
) -> Figure:
    """The figure of that name of spectra that are at hand; method_of: run -> method."""
    bands, histograms = bands_table(found, method_of), histogram_table(found, method_of)
    return spectra.spectra_by_method(bands, histograms, projections)


class Source(NamedTuple):
    """What a figure is drawn from: tables, each with the columns that it must have, and how."""

    tables: dict[str, str]
    figure: Callable[..., Figure]


DRAWN = {
    "spectra_by_method": Source(
        {
            "spectra_by_method.csv": "kind method index low median high",
            "spectra_histogram.csv": "axis method left right share",
        },
        spectra.spectra_by_method,
    ),
    "subspace_similarity": Source(
        {
            "similarity_by_method.csv": "method_a method_b k left_phi_k left_chance_k right_phi_k"
            " right_chance_k"
        },
        spectra.subspace_similarity,
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
    "cut_curves": Source({"cuts.csv": "method seed kind k score"}, experiments.cut_curves),
    "dynamics": Source(
        {"dynamics.csv": "method seed step k top_share_1 effective_rank_k gini_k frobenius_norm"},
        experiments.dynamics,
    ),
    "resources": Source({"resources.csv": "what setting method value ratio"}, costs.resources),
    "budget": Source({"budget.csv": "model n r share"}, costs.budget),
    "scale_grid": Source({"grid.csv": "setting value seed method"}, claims.scale_grid),
    "wild_adapters": Source(
        {"wild.csv": "adapter step r top_share_1 null_top_share_1"}, experiments.wild_adapters
    ),
}


def draw(directory: Path, names: Iterable[str] = DRAWN) -> list[Path]:
    """Draw those figures whose tables are in `directory`, beside them; the PNG files.

    Raises ValueError where a table is none, has no row, or lacks a column.
    """
    drawn = []
    for name in names:
        source = DRAWN[name]
        if all((directory / table).is_file() for table in source.tables):
            tables = [
                _table(directory / table, columns.split())
                for table, columns in source.tables.items()
            ]
            store.save_figure(source.figure(*tables), directory / name)
            drawn.append(directory / f"{name}.png")
    return drawn


def _table(path: Path, needed: Sequence[str]) -> list[Row]:
    rows = parsed(path, path.read_bytes(), needed)
    if not rows:
        raise UserError(f"{path}: has no row; expected at least one")
    return rows
