"""Trains LoRA, MultiLoRA and full fine-tuning from one base and compares what they did to it.

    python -m multilora.reproduce [--seeds 0,1] [--steps 1500] [--methods full,lora,multilora] …

Runs go to --out; the figure and the tables behind it go to --figures and are printed. What is
there already, made from the same settings by the same code, is not made again.
"""

import csv
import io
import json
import multiprocessing
import os
import queue
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from analysis import spectrum, store, table
from analysis.figures import save
from analysis.statistics import comparable
from analysis.store import Row, Spectra
from multilora import base, command, delta, evaluate, figures, record, train
from multilora.tasks import suite
from multilora.tasks.example import FAMILIES


@dataclass(frozen=True)
class ReproduceSettings:
    """The quick preset: two seeds of each method."""

    out: str = field(default="runs/quick", metadata={"help": "where the runs go"})
    figures: str = field(default="figures/quick", metadata={"help": "where the results go"})
    methods: str = field(
        default="full,lora,multilora",
        metadata={"help": "separated by commas; also lora+, multilora s×5, rlora and mtllora"},
    )
    seeds: str = field(default="0,1", metadata={"help": "separated by commas"})
    steps: int = field(default=1500, metadata={"help": "optimiser steps of each run"})
    base_steps: int = field(default=2000, metadata={"help": "optimiser steps of the base"})
    processes: int = field(default=0, metadata={"help": "runs at a time; one a core by default"})


@dataclass(frozen=True)
class Run:
    """One training run: what, from which seed, and where it goes."""

    settings: train.TrainSettings
    seed: int
    steps: int
    out: Path

    def arguments(self) -> train.TrainArguments:
        """How it is trained."""
        arguments = train.TrainArguments(
            output_dir=str(self.out),
            max_steps=self.steps,
            seed=self.seed,
            save_strategy="no",
            disable_tqdm=True,
        )
        train.complete(self.settings, arguments)
        return arguments

    def result(self) -> dict[str, Any]:
        """Its run.json."""
        return json.loads((self.out / "run.json").read_text(encoding="utf-8"))


# Methods whose learning rates differ within the adapter: a ratio makes another method.
VARIANTS: dict[str, dict[str, Any]] = {
    "lora+": {"method": "lora+", "b_lr_ratio": 4.0},
    "multilora s×5": {"method": "multilora", "scale_lr_ratio": 5.0},
}


def plan(settings: ReproduceSettings, model: Path) -> list[Run]:
    """Every run of the settings, seed by seed."""
    runs = []
    for seed in map(int, _distinct(settings.seeds)):
        for method in _distinct(settings.methods):
            given = VARIANTS.get(method, {"method": method})
            trained = train.TrainSettings(model=str(model), **given)
            out = Path(settings.out) / trained.run_name(seed)
            runs.append(Run(trained, seed, settings.steps, out))
    return runs


def _distinct(listed: str) -> list[str]:
    """The items of a list separated by commas; ValueError where one stands twice."""
    items = [item.strip() for item in listed.split(",")]
    if len(set(items)) < len(items):
        raise ValueError(f"{listed!r} names something twice")
    return items


def train_all(runs: Sequence[Run], processes: int) -> None:
    """Train what is not there yet, several runs side by side, one thread each.

    On small models that is the fast way to use a machine's cores. What the runs print goes to
    train.log beside them; a bar shows the steps of all.
    """
    missing = [run for run in runs if not train.is_done(run.settings, run.arguments())]
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    steps: Any = context.Queue()
    log = missing[0].out.parent / "train.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        ProcessPoolExecutor(processes, context, _start_worker, (steps, log)) as pool,
        tqdm(desc="fine-tuning", total=sum(run.steps for run in missing), unit="step") as bar,
    ):
        waiting = [pool.submit(_train_one, run) for run in missing]
        try:
            while waiting:
                bar.update(_drain(steps))
                for future in [future for future in waiting if future.done()]:
                    future.result()  # raises what the run raised
                    waiting.remove(future)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _CountSteps(transformers.TrainerCallback):
    """Tells the parent process of every step."""

    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.put(1)


_steps: Any = None  # the queue to the parent, in a worker


def _start_worker(steps: Any, log: Path) -> None:
    """One thread, and everything that is printed to `log`."""
    global _steps
    _steps = steps
    torch.set_num_threads(1)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


def _train_one(run: Run) -> None:
    train.run(run.settings, run.arguments(), callbacks=[_CountSteps(_steps)])


def _drain(steps: Any) -> int:
    """Number of steps told of since the last call; waits up to half a second for the first."""
    count = 0
    try:
        count += steps.get(timeout=0.5)
        while True:
            count += steps.get_nowait()
    except queue.Empty:
        return count


def measure(runs: Sequence[Run], spectra: Spectra) -> list[Row]:
    """One row a run: what may be compared between methods, averaged over modules, and scores.

    k is the smallest capacity of all: effective_rank_k and gini_k are those of s[:k], held_k is
    the share of the energy that s[:k] holds. Modules with ΔW = 0 are left out.
    """
    k = min(row["capacity"] for row in spectra.rows)
    rows = []
    for run in runs:
        of_run = [row for row in spectra.rows if row["run"] == run.out.name]
        values = [comparable(spectra.s[r["key"]], k) for r in of_run if r["spectral_norm"] > 0]
        if not values:
            raise ValueError(f"{run.out}: every ΔW is zero: nothing was trained")
        result = run.result()
        scores = result["scores"]["test"]
        rows.append(
            {
                "method": run.settings.name,
                "seed": run.seed,
                "parameters": result["parameters"],
                "k": k,
                **{name: statistics.fmean(v[name] for v in values) for name in values[0]},
                **{f"score_{family}": scores["families"][family] for family in FAMILIES},
                "score": scores["mean"],
            }
        )
    return rows


def tables(rows: Sequence[Row], base_scores: Mapping[str, Any]) -> str:
    """What is printed: concentration and scores, means over seeds ± half the seeds' range."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    by_method = {m: [row for row in rows if row["method"] == m] for m in methods}
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
            *table.aligned(shares),
            *("", legend, ""),
            "Scores on held-out items, %:",
            *table.aligned(scores),
        ]
    )


LEGEND = """\
top-k: share of ΔW's energy in its k largest singular values. eff. rank, Gini: of the first {k}
values only, the capacity that all methods have; held: the share of the energy in these.
± half the range of the seeds."""


def _over_seeds(rows: Sequence[Row], column: str, form: str, factor: float = 1) -> str:
    values = [factor * row[column] for row in rows]
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):{form}} ±{half:{form}}"


def report(settings: ReproduceSettings, runs: Sequence[Run], model: Path) -> str:
    """Analyse the runs, write tables and figures, and return what is printed."""
    out = Path(settings.figures)
    spectra = _without_heads(spectrum.analyse([run.out for run in runs], progress=True))
    if spectra.skipped:
        raise RuntimeError(f"{spectra.skipped[0]['run']}: {spectra.skipped[0]['reason']}")
    method_of = {run.out.name: run.settings.name for run in runs}
    read = [run.out for run in runs]
    made_by = store.record("multilora.reproduce", read, asdict(settings)) | {
        "seed": sorted({run.seed for run in runs}),
        "base": str(model),
        "runs": {run.out.name: run.result()["fingerprint"] for run in runs},
        "environment": record.environment(),
    }
    store.save(out, spectra, made_by)
    rows = measure(runs, spectra)
    _write_csv(out / "methods.csv", rows)
    _write_csv(out / "spectra_by_method.csv", figures.bands_table(spectra, method_of))
    figure = figures.spectra_by_method(spectra, method_of)
    figure.suptitle(
        f"ΔW after {settings.steps} steps on {len(suite.TASKS)} tasks, "
        f"{len(settings.seeds.split(','))} seeds a method"
    )
    save(figure, out / "spectra_by_method")
    base_model, tokenizer = delta.load_base(str(model))
    items = suite.load("test", runs[0].settings.per_task_scored)
    scores = evaluate.score(base_model, tokenizer, items)
    return f"{tables(rows, scores)}\n\n{out / 'spectra_by_method.png'}"


def _without_heads(spectra: Spectra) -> Spectra:
    """Of R-LoRA's modules the mean of the heads alone: as the other methods, one update each."""
    rows = [r for r in spectra.rows if (r["method"], r["part"] == "mean") != ("rlora", False)]
    return replace(spectra, rows=rows, s={row["key"]: spectra.s[row["key"]] for row in rows})


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    store.write_text(path, text.getvalue())


def main(argv: Sequence[str] | None = None) -> int:
    def work() -> str:
        settings = command.settings_from(ReproduceSettings, __doc__, argv)
        model = base.ensure(base.BaseSettings(steps=settings.base_steps))
        runs = plan(settings, model)
        train_all(runs, settings.processes or min(len(runs), torch.get_num_threads()))
        return report(settings, runs, model)

    return command.run("multilora.reproduce", work)


if __name__ == "__main__":
    sys.exit(main())
