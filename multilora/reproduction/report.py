"""Report on a reproduction from the tables of its blocks: pool them, draw, judge, and print.

Written to the results directory: methods.csv, one row per run; differences.csv, differences
between methods paired by seed; similarity_by_method.csv, the directions that methods share next to
the repeatability of each; the other tables of `pooled`; a figure for each table that has one;
claims.md and claims.json. Only the tables in DIR/blocks/ are read, so that a report can be made
again without any run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import UserError, store
from analysis.numerics import statistics
from analysis.results import Row, Spectra
from analysis.tables import similarity as similarity_table
from analysis.tables.text import plain
from multilora import budget, record
from multilora.reproduction import bands, measures, presets, tables
from multilora.reproduction.claims import judge
from multilora.reproduction.claims import text as claims_text
from multilora.reproduction.text import difference_table, method_tables

# Tables whose rows do not belong to one run, and the columns that tell the rows apart: their values
# are means over the blocks.
AVERAGED = {
    "similarity_by_method": ("method_a", "method_b"),
    "phi_grids": ("method_a", "method_b", "side", "i"),
}


@dataclass(frozen=True, eq=False)
class Pool:
    """The results of all blocks.

    rows_of: rows of the tables, by name, block by block.
    spectra: of the methods that figures show.
    records: record.json by name of the block.
    units: the names of the blocks that have rows of methods.csv.
    """

    rows_of: Mapping[str, Sequence[Row]]
    spectra: Spectra
    records: Mapping[str, Mapping[str, Any]]
    units: Sequence[str]


def report(settings: Mapping[str, Any]) -> str:
    """Pool the blocks, write tables, figures and claims, and return the text to print.

    settings: those of `reproduce`; "figures" is the directory of the results. Raises UserError if
    there is no block.
    """
    out = Path(settings["figures"])
    pool = read(out)
    rows_of = pooled(pool)
    tables.write(out, rows_of, _made_by(settings, pool, tables.hashes(out)))
    from multilora.reproduction import figures  # matplotlib, which --help can do without

    drawn = figures.draw(out)
    judged = judge.write(out)
    of_bases = _base_scores(pool.records[name] for name in pool.units)
    sections = [method_tables(rows_of["methods"], of_bases)]
    if compared := rows_of["differences"]:
        sections.append(difference_table(compared))
    if similar := rows_of["similarity_by_method"]:
        sections.append("\n".join(plain(similarity_table.method_lines(similar))))
    sections.append(claims_text.as_text(judged))
    sections.append("\n".join(map(str, [*drawn, out / "claims.md"])))
    return "\n\n".join(sections)


def read(out: Path) -> Pool:
    """Read the blocks in out/blocks, in the order of their names.

    Raises UserError if there is none, a table was edited, or two blocks have the same run.
    """
    rows_of: dict[str, list[Row]] = {}
    spectra = Spectra()
    records, units, place = {}, [], out / tables.BLOCKS
    for directory in sorted(path for path in place.glob("*") if path.is_dir()):
        of_block = tables.load_all(directory)
        for name, rows in of_block.rows.items():
            rows_of.setdefault(name, []).extend(rows)
        own, _ = store.load(directory)
        spectra.rows.extend(own.rows)
        spectra.s.update(own.s)
        records[directory.name] = of_block.record
        if of_block.of("methods"):
            units.append(directory.name)
    if not rows_of.get("methods"):
        raise UserError(f"{place}: no run is finished and measured; nothing to report on")
    seen = [(row["method"], row["seed"]) for row in rows_of["methods"]]
    if len(set(seen)) < len(seen):
        raise UserError(f"{place}: two blocks hold the same method and seed; remove one")
    return Pool(rows_of, spectra, records, units)


def pooled(pool: Pool) -> dict[str, list[Row]]:
    """Return all tables by name: rows of all blocks, and what is computed from them together."""
    rows_of = {name: list(rows) for name, rows in pool.rows_of.items()}
    for name, keys in AVERAGED.items():
        rows_of[name] = measures.averaged(rows_of.get(name, []), keys)
    method_of = {
        run: method
        for made_by in pool.records.values()
        for run, method in made_by["methods"].items()
    }
    rows = rows_of["methods"]
    return rows_of | {
        "spectra_by_method": bands.bands_table(pool.spectra, method_of),
        "spectra_histogram": bands.histogram_table(pool.spectra, method_of),
        "histogram_by_projection": bands.by_projection_table(pool.spectra, method_of),
        "differences": measures.differences(rows),
        "spread": measures.spread(rows, rows_of.get("repeats", []), presets.REPEAT),
        "llama_budget": budget.llama_budget(),
    }


def _made_by(settings: Mapping[str, Any], pool: Pool, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return record.json; hashes: of the tables that exist already."""
    records = pool.records.values()
    machines = [machine for made_by in records for machine in made_by["trained_on"]]
    return store.record("multilora.reproduce", [], dict(settings)) | {
        "seed": sorted({row["seed"] for row in pool.rows_of["methods"]}),
        "bases": {name: made_by["base"] for name, made_by in pool.records.items()},
        "runs": {run: mark for made_by in records for run, mark in made_by["runs"].items()},
        "methods": {run: m for made_by in records for run, m in made_by["methods"].items()},
        "environment": record.environment(),
        "trained_on": [m for i, m in enumerate(machines) if m not in machines[:i]],
        tables.HASHES: hashes,
    }


def _base_scores(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the scores of the base before training, means over the bases; records: of units."""
    known = [made_by["base_scores"] for made_by in records if made_by["base_scores"]]
    return {
        what: {
            family: statistics.mean(scores[what][family] for scores in known)
            for family in known[0][what]
        }
        for what in ("families", "chance")
    } | {
        "mean": statistics.mean(scores["mean"] for scores in known),
        "nll": _base_losses([scores["nll"] for scores in known if "nll" in scores]),
    }


def _base_losses(known: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the losses of the base, means over the bases; None if no record has them."""
    if not known:
        return None
    families = {
        family: statistics.mean(losses["families"][family] for losses in known)
        for family in known[0]["families"]
    }
    return {"families": families, "mean": statistics.mean(losses["mean"] for losses in known)}
