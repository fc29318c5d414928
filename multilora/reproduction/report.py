"""Report on finished runs: measure them, write tables, figures and claims, and return the text.

Written to the results directory: methods.csv, one row per run; differences.csv, differences
between methods paired by seed; similarity_by_method.csv, the directions that methods share next to
the repeatability of each; the other tables of `tables_of` and, for the full preset, of
`experiments`; a figure for each table that has one; claims.md and claims.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis import UserError, store
from analysis.pairs import repeatability
from analysis.pairs.repeatability import Label
from analysis.results import Row, Similarity, Spectra
from analysis.tables import similarity as similarity_table
from multilora import budget, delta, record
from multilora.reproduction import analysing, bands, experiments, figures, measures, tables
from multilora.reproduction.claims import judge
from multilora.reproduction.claims import text as claims_text
from multilora.reproduction.claims.evidence import Judgement
from multilora.reproduction.experiments import Extras
from multilora.reproduction.studies import overlap
from multilora.reproduction.text import difference_table, method_tables
from multilora.reproduction.trained import Trained, check_comparable
from multilora.tasks import data, scoring


@dataclass(frozen=True, eq=False)
class Measured:
    """Finished runs of one base and the analysis of their updates.

    runs, model: the runs and the directory of their base.
    spectra: the spectra of all runs.
    similarity: the directions that runs share, without methods that have an update per task.
    overlaps: the comparisons between the modules of each MultiLoRA run.
    """

    runs: Sequence[Trained]
    model: Path
    spectra: Spectra
    similarity: Similarity
    overlaps: Sequence[overlap.ModulePairs]

    @cached_property
    def k(self) -> int:
        """The number of values and directions that are compared between methods."""
        return measures.common_k(self.runs, self.spectra)

    @cached_property
    def labels(self) -> dict[str, Label]:
        """Method and seed by name of the run."""
        return {run.name: Label(run.method, run.seed) for run in self.runs}


def report(
    settings: Mapping[str, Any],
    runs: Sequence[Trained],
    model: Path,
    extras: Extras | None = None,
) -> str:
    """Analyse the runs, write tables, figures and claims, and return the text to print.

    settings: those of `reproduce`; "figures" is the directory that is written.
    runs: finished runs of one base, each of another method or seed.
    model: the directory of their base.
    extras: input of the measurements that only the full preset makes.

    Raises UserError if there is no run, or the runs cannot be compared.
    """
    out = Path(settings["figures"])
    if not runs:
        raise UserError(f"{settings['out']}: no run is finished; nothing to report on")
    check_comparable(runs)
    measured = measure(runs, model)
    store.save(out, measured.spectra, _made_by(settings, measured, tables.hashes(out)))
    rows_of = tables_of(measured)
    if extras:
        rows_of |= experiments.tables(runs, model, measured.overlaps, extras)
    tables.write(out, rows_of)
    drawn = figures.draw(out)
    judged = judge.write(out)
    return text_of(measured, rows_of, judged, files=[*drawn, out / "claims.md"])


def measure(runs: Sequence[Trained], model: Path) -> Measured:
    """Analyse the updates of the runs."""
    return Measured(
        runs=runs,
        model=model,
        spectra=analysing.spectra_of(runs, model),
        similarity=analysing.similarity_of(runs, model),
        overlaps=overlap.module_pairs(runs),
    )


def tables_of(measured: Measured) -> dict[str, list[Row]]:
    """Return the tables of every preset, by name."""
    runs, spectra, similarity = measured.runs, measured.spectra, measured.similarity
    labels, k = measured.labels, measured.k
    method_of = {run.name: run.method for run in runs}
    rows = measures.of_runs(runs, spectra)
    return {
        "methods": rows,
        "spectra_by_method": bands.bands_table(spectra, method_of),
        "spectra_histogram": bands.histogram_table(spectra, method_of),
        "differences": measures.differences(rows),
        "similarity_by_method": repeatability.between(similarity.rows, similarity.phi, labels, k),
        "nearness": measures.nearness(similarity, labels, spectra, k),
        "overlap": overlap.by_run(measured.overlaps),
        "llama_budget": budget.llama_budget(),
    }


def text_of(
    measured: Measured,
    rows_of: Mapping[str, Sequence[Row]],
    judged: Sequence[Judgement],
    files: Sequence[Path],
) -> str:
    """Return the text to print: tables, claims and the files that were written.

    measured: the runs; rows_of: their tables by name; judged: the claims; files: to be listed.
    """
    sections = [method_tables(rows_of["methods"], _base_scores(measured))]
    if compared := rows_of["differences"]:
        sections.append(difference_table(compared))
    if similar := rows_of["similarity_by_method"]:
        sections.append("\n".join(similarity_table.method_lines(similar)))
    sections.append(claims_text.as_text(judged))
    sections.append("\n".join(map(str, files)))
    return "\n\n".join(sections)


def _made_by(
    settings: Mapping[str, Any], measured: Measured, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Return record.json; hashes: of the tables that exist already."""
    paths = [run.path for run in measured.runs]
    return store.record("multilora.reproduce", paths, dict(settings)) | {
        "seed": sorted({run.seed for run in measured.runs}),
        "base": str(measured.model),
        "runs": {run.name: run.facts["fingerprint"] for run in measured.runs},
        "environment": record.environment(),
        tables.HASHES: hashes,
    }


def _base_scores(measured: Measured) -> dict[str, Any]:
    """Score the base on the items that the runs were scored on."""
    model, tokenizer = delta.load_base(str(measured.model))
    per_task = measured.runs[0].facts["settings"]["per_task_scored"]
    return scoring.score(model, tokenizer, data.load().split("test", per_task))
