"""Trained runs → what came out: tables, figures, and the text that is printed.

One row a run in methods.csv, the differences between methods paired by seed in differences.csv,
which directions they share, beside the repeatability of each, in similarity_by_method.csv, and what
`measures` takes for the claims, whose verdicts stand in claims.md and claims.json.
"""

import itertools
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from analysis import UserError, results, similarity, spectrum, store
from analysis.figures import similarity as similarity_figures
from analysis.formats import Options
from analysis.numerics.statistics import paired_in_common
from analysis.pairs import repeatability
from analysis.pairs.repeatability import Label
from analysis.results import Row, Similarity, Spectra
from analysis.tables import similarity as similarity_table
from analysis.tables import text
from multilora import budget, delta, record
from multilora.methods import peft as peft_methods
from multilora.reproduction import experiments, figures, measures, tables
from multilora.reproduction.claims import judge
from multilora.reproduction.claims import text as claims_text
from multilora.reproduction.studies import overlap
from multilora.reproduction.trained import MAIN, Trained, check_alike
from multilora.tasks import data, scoring
from multilora.tasks.example import FAMILIES
from multilora.training.settings import BY_TASK


def method_tables(rows: Sequence[Row], base_scores: Mapping[str, Any]) -> str:
    """What is printed: concentration and scores, means over seeds ± half the seeds' range."""
    repeatability = list(dict.fromkeys(row["method"] for row in rows))
    by_method = {m: [row for row in rows if row["method"] == m] for m in repeatability}
    shares = [["", "seeds", "parameters", "top-1", "top-4", "top-16", "eff. rank", "Gini", "held"]]
    scores = [["", *FAMILIES, "mean"]]
    for method, of_method in by_method.items():
        cells = [_over_seeds(of_method, f"top_share_{k}", ".3f") for k in (1, 4, 16)]
        cells.append(_over_seeds(of_method, "effective_rank_k", ".1f"))
        cells += [_over_seeds(of_method, name, ".3f") for name in ("gini_k", "held_k")]
        shares.append([method, str(len(of_method)), f"{of_method[0]['parameters']:,}", *cells])
        columns = (*(f"score_{family}" for family in FAMILIES), "score")
        scores.append([method, *(_over_seeds(of_method, c, ".1f", 100) for c in columns)])
    before = [*base_scores["families"].values(), base_scores["mean"]]
    chance = [*base_scores["chance"].values()]
    scores.append(["before training", *(f"{100 * v:.1f}" for v in before)])
    scores.append(["chance", *(f"{100 * v:.1f}" for v in chance), ""])
    legend = LEGEND.format(k=rows[0]["k"])
    return "\n".join(
        [
            "How concentrated ΔW is, means over modules:",
            *text.aligned(shares),
            *("", legend, ""),
            "Scores on held-out items, %:",
            *text.aligned(scores),
        ]
    )


LEGEND = """\
top-k: share of ΔW's energy in its k largest singular values. eff. rank, Gini: of the first {k}
values only, – where a method has fewer; held: the share of the energy in these.
± half the range of the seeds."""


def _over_seeds(rows: Sequence[Row], column: str, form: str, factor: float = 1) -> str:
    values = [factor * row[column] for row in rows if row[column] is not None]
    if not values:
        return "–"
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):{form}} ±{half:{form}}"


MEASURES = ("top_share_1", "top_share_4", "top_share_16", "effective_rank_k", "gini_k", "score")


def differences(rows: Sequence[Row]) -> list[Row]:
    """Every two methods, paired by seed: the mean of a − b and its Student interval, by measure.

    Over the seeds that both have: mean is None without any, low and high for one; above, below: in
    how many of them a is.
    """
    by_method: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["seed"]] = row
    compared = []
    for (a, of_a), (b, of_b) in itertools.combinations(by_method.items(), 2):
        for measure in MEASURES:
            values = [{seed: row[measure] for seed, row in of.items()} for of in (of_a, of_b)]
            found, _ = paired_in_common(*values)
            seeds = len(found.values) if found else 0
            known = found if seeds > 1 else None
            compared.append(
                {
                    **{"method_a": a, "method_b": b, "measure": measure},
                    **{"seeds": seeds, "mean": found.mean if found else None},
                    **{"low": known.low if known else None, "high": known.high if known else None},
                    "above": found.positive if found else 0,
                    "below": found.negative if found else 0,
                }
            )
    return compared


def difference_table(compared: Sequence[Row]) -> str:
    """What is printed of `differences`."""
    cells = [["", *HEADINGS]]
    for (a, b), of_pair in results.grouped(compared, "method_a", "method_b").items():
        cells.append([f"{a} − {b}", *(_difference(row) for row in of_pair)])
    seeds = "–".join(map(str, sorted({row["seeds"] for row in compared if row["seeds"]})))
    title = (
        f"Differences paired by seed, mean, 95 % interval (Student, n = {seeds}), seeds above 0:"
    )
    return "\n".join([title, *text.aligned(cells)])


HEADINGS = ("top-1", "top-4", "top-16", "eff. rank", "Gini", "score, %")


def _difference(row: Row) -> str:
    factor, form = (100, "+.1f") if row["measure"] == "score" else (1, "+.3f")
    form = "+.2f" if row["measure"] == "effective_rank_k" else form
    mean, low, high = (
        "–" if row[name] is None else format(factor * row[name], form)
        for name in ("mean", "low", "high")
    )
    return f"{mean} [{low}, {high}] {row['above']}/{row['seeds']}"


def _analyse(runs: Sequence[Trained], model: Path) -> Spectra:
    """The spectra of all runs; PEFT's own methods are read with the base, and their start."""
    whole = Spectra()
    for run in runs:
        found = spectrum.analyse(run.path, options=_reading(run, model), progress=True)
        rows = [row for row in found.rows if not _is_head(row["method"], row["part"])]
        whole.rows.extend(rows)
        whole.s.update({row["key"]: found.s[row["key"]] for row in rows})
        whole.other.extend(found.other)
        if found.skipped:
            raise UserError(f"{run.path}: {found.skipped[0]['reason']}")
    return whole


def _is_head(method: str, part: str | None) -> bool:
    """Whether a row is of one of R-LoRA's heads: their mean stands for the module, as elsewhere."""
    return method == "rlora" and part != "mean"


def _reading(run: Trained, model: Path) -> Options:
    if not peft_methods.is_named(run.facts["settings"]["method"]):
        return Options()
    initial = run.path / peft_methods.INITIAL
    return Options(base=model, initial=initial if initial.is_dir() else None)


def _alike(runs: Sequence[Trained], model: Path) -> Similarity:
    """Which directions every two runs share."""
    order = list(dict.fromkeys(run.method for run in runs))
    together = sorted(runs, key=lambda run: order.index(run.method))
    # One way of reading for all: what starts off zero, as PiSSA, is left out.
    named = any(peft_methods.is_named(run.facts["settings"]["method"]) for run in runs)
    options = Options(base=model) if named else Options()
    found = similarity.analyse([run.path for run in together], options=options, parts=False)
    rows = [
        row
        for row in found.rows
        if not any(_is_head(row[f"method_{side}"], row[f"part_{side}"]) for side in "ab")
    ]
    return replace(found, rows=rows)


@dataclass(frozen=True)
class Beyond:
    """What the full preset measures beside the runs that are compared.

    swept: the runs of which the learning rates are chosen; points: those of the grid; adapters: a
    directory of adapters of others.
    """

    swept: Sequence[Trained] = ()
    points: Sequence[experiments.Point] = ()
    adapters: Path | None = None


def report(
    settings: Mapping[str, Any],
    runs: Sequence[Trained],
    model: Path,
    beyond: Beyond | None = None,
) -> str:
    """Analyse the runs, write tables, figures and claims, and return what is printed."""
    out = Path(settings["figures"])
    if not runs:
        raise UserError(f"{settings['out']}: no run is finished; nothing to report on")
    check_alike(runs)
    spectra = _analyse(runs, model)
    made_by = store.record("multilora.reproduce", [run.path for run in runs], dict(settings)) | {
        "seed": sorted({run.seed for run in runs}),
        "base": str(model),
        "runs": {run.name: run.facts["fingerprint"] for run in runs},
        "environment": record.environment(),
        tables.HASHES: tables.hashes(out),
    }
    store.save(out, spectra, made_by)
    rows = measures.of_runs(runs, spectra)
    method_of = {run.name: run.method for run in runs}
    labels = {run.name: Label(run.method, run.seed) for run in runs}
    alike = _alike([run for run in runs if not _has_updates_by_task(run)], model)
    k = measures.common_k(runs, spectra)
    between = repeatability.between(alike.rows, alike.phi, labels, k)
    compared = differences(rows)
    written = {
        "methods": rows,
        "spectra_by_method": figures.bands_table(spectra, method_of),
        "spectra_histogram": figures.histogram_table(spectra, method_of),
        "differences": compared,
        "similarity_by_method": between,
        "nearness": measures.nearness(alike, labels, spectra, k),
        "overlap": overlap.by_run(runs),
        "llama_budget": budget.llama_budget(),
    }
    if beyond:
        written |= experiments.tables(runs, model, beyond.adapters)
        swept = measures.of_runs(beyond.swept, _analyse(beyond.swept, model))
        written["sweep"] = experiments.sweep(swept)
        written["grid"] = experiments.grid(
            beyond.points, lambda of: _analyse(of, model), lambda of: _alike(of, model)
        )
    tables.write(out, written)
    drawn = figures.draw(out)
    main = [run for run in runs if run.method in MAIN]
    if len(main) > 1:
        figure = similarity_figures.shared_by_many(_of(alike, main))
        store.save_figure(figure, out / "similarity_by_run")
    base_model, tokenizer = delta.load_base(str(model))
    items = data.load().split("test", runs[0].facts["settings"]["per_task_scored"])
    scores = scoring.score(base_model, tokenizer, items)
    parts = [method_tables(rows, scores), *([difference_table(compared)] if compared else [])]
    parts += ["\n".join(similarity_table.method_lines(between))] if between else []
    parts.append(claims_text.as_text(judge.write(out)))
    parts.append("\n".join(map(str, [*drawn, out / "claims.md"])))
    return "\n\n".join(parts)


def _has_updates_by_task(run: Trained) -> bool:
    """Whether a module has an update for each task, of which none stands for the run."""
    return run.facts["settings"]["method"] in BY_TASK


def _of(found: Similarity, runs: Sequence[Trained]) -> Similarity:
    """What was found between some of the runs."""
    names = {run.name for run in runs}
    return replace(found, rows=[r for r in found.rows if {r["run_a"], r["run_b"]} <= names])


# What is too large to be committed: every module's numbers and singular values.
_UNPUBLISHED = ("spectrum.csv", "spectra.safetensors")
# What the benchmarks made, not the runs.
_KEPT = ("resources.csv", "resources.json", "resources.png", "resources.pdf")


def publish(results: Path, to: Path) -> None:
    """Copy tables, figures, claims and record to `to`; what is there of an earlier run goes.

    Nothing goes before all of it is copied. Raises ValueError where both are one directory.
    """
    if results.resolve() == to.resolve():
        raise UserError(f"{results}: expected results beside {to}, to which they are published")
    kinds = (".csv", ".json", ".md", ".png", ".pdf")
    fresh = [f for f in sorted(results.iterdir()) if f.suffix in kinds and f.is_file()]
    fresh = [file for file in fresh if file.name not in _UNPUBLISHED]
    to.mkdir(parents=True, exist_ok=True)
    for file in fresh:
        store.replace(to / file.name, partial(shutil.copyfile, file))
    kept = {*_KEPT, *(file.name for file in fresh)}
    for old in [file for file in to.iterdir() if file.suffix in kinds and file.is_file()]:
        if old.name not in kept:
            old.unlink()
