"""Plan the runs of the preset smollm2: a pretrained language model, fine-tuned on public data.

Three families of tasks in equal shares: Alpaca (instruction); RTE, CB, COPA and WSC of SuperGLUE
(understanding); ARC-Easy, OpenBookQA and MMLU's dev questions (knowledge). The learning rate of
each method is the best of a sweep on seed 100, by the loss on validation items; then every method
is trained with the same seeds, data and steps.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from analysis import UserError
from multilora import record
from multilora.reproduction import presets
from multilora.reproduction.presets import CORE, SWEEP_SEED, Run, settings_of
from multilora.tasks import data
from multilora.tasks.example import FAMILIES
from multilora.tasks.public import files
from multilora.training import names
from multilora.training.settings import TrainSettings

# LoRA of rank 24 and MultiLoRA of 3 × 8, with and without B at zero, have equally many parameters.
METHODS = (*CORE, "multilora zero")
STEPS, BATCH, SEEDS = 200, 8, (0, 1, 2)
ALONE = ("lora", "multilora")  # are also trained on each family alone, with one seed
# MultiLoRA of other numbers of modules at n·r = 24, and of other ranks at n = 3; one seed.
SIZES = ((1, 24), (2, 12), (6, 4), (3, 2), (3, 4), (3, 16))
RELATIVES = presets.RELATIVES  # have an update for each task, or several heads; one seed
SAVES = 4  # checkpoints of a run whose dynamics are measured
# Rows are short and the loss of an example does not depend on the length of its answer, so that
# the long answers of one family do not outweigh the one-word answers of the others.
COMMON: dict[str, Any] = {
    "max_length": 192,
    "loss": "example",
    "mixture": "families",
    "decode": False,
}
SCORED, SCORED_IN_SWEEP = 100, 50  # held-out items of a task
HELD_OUT = 25  # the same in studies that score a run many times

# The sweep: steps, and the learning rates of each method. A method whose best rate is the lowest or
# highest gets another beyond it, at most FURTHER times.
SWEEP_STEPS, FURTHER = 60, 3
_FULL = (1e-5, 3e-5, 1e-4)
_ADAPTERS = (3e-4, 1e-3, 3e-3)
RATES = len(_FULL)

# What the data directory holds: the part of the specification of tasks, and its place. Of a file
# pattern the largest file is taken.
DATA = (
    ("alpaca=alpaca", "alpaca/*.json"),
    ("arc_easy@knowledge=llm-adapters", "llm_adapters/ARC-Easy"),
    ("openbookqa@knowledge=llm-adapters", "llm_adapters/openbookqa"),
    ("mmlu=mmlu", "mmlu"),
    ("superglue", "superglue/CB"),
    ("superglue", "superglue/COPA"),
    ("superglue", "superglue*/RTE"),
    ("superglue", "superglue/WSC"),
)
TEXT = "superglue/BoolQ/train.jsonl"  # plain text, if it is there
Rates = Mapping[str, float]  # the learning rate of each method


@dataclass(frozen=True)
class Plan:
    """What the runs on one language model have in common.

    model: the directory of the base.
    tasks: the specification of the tasks.
    steps: optimiser steps of each run after the sweep.
    batch: sequences of a step.
    out: the directory of the runs.
    """

    model: Path
    tasks: str
    steps: int
    batch: int
    out: Path

    def sweep(self, methods: Iterable[str]) -> list[Run]:
        """Return the runs of the sweep: SWEEP_STEPS steps with each rate of each method."""
        runs = []
        for method in methods:
            settings = self._settings(method, per_task_scored=SCORED_IN_SWEEP)
            for rate in _usual(settings):
                place = f"sweep/{names.run_name(settings.name, {}, SWEEP_SEED)}-lr{rate:g}"
                run = self._run(settings, SWEEP_SEED, rate, place)
                runs.append(replace(run, steps=SWEEP_STEPS))
        return runs

    def of_seed(self, methods: Iterable[str], seed: int, rates: Rates) -> list[Run]:
        """Return one run per method; LoRA, MultiLoRA and full fine-tuning keep checkpoints."""
        runs = []
        for method in methods:
            settings = self._settings(method)
            place = f"seed-{seed}/{names.run_name(settings.name, {}, seed)}"
            run = self._run(settings, seed, rates[settings.name], place)
            runs.append(replace(run, saves=SAVES if method in CORE else 0))
        return runs

    def alone(self, seed: int, rates: Rates) -> list[Run]:
        """Return a run of each method of ALONE on each family of tasks alone.

        A method without a rate is left out, as in the other methods.
        """
        runs = []
        for method in (method for method in ALONE if method in rates):
            for family, own in by_family(self.tasks).items():
                settings = self._settings(method, tasks=own)
                place = f"alone/{names.run_name(method, {}, seed)}-{family}"
                runs.append(self._run(settings, seed, rates[method], place))
        return runs

    def relatives(self, seed: int, rates: Rates) -> list[Run]:
        """Return a run of each method of RELATIVES, with the rate of LoRA.

        Experts are trained by the loss per token: `loss example` does not belong to them.
        """
        runs = []
        for method in RELATIVES if "lora" in rates else ():
            loss = "token" if method == "expert" else COMMON["loss"]
            place = f"relatives/{names.run_name(method, {}, seed)}"
            runs.append(self._run(self._settings(method, loss=loss), seed, rates["lora"], place))
        return runs

    def sizes(self, seed: int, rates: Rates) -> list[Run]:
        """Return a run of MultiLoRA for each (n, r) of SIZES."""
        runs = []
        for n, r in SIZES if "multilora" in rates else ():
            place = f"sizes/{names.run_name('multilora', {'n': n, 'r': r}, seed)}"
            settings = self._settings("multilora", n=n, r=r)
            runs.append(self._run(settings, seed, rates["multilora"], place))
        return runs

    def _settings(self, method: str, **changes: Any) -> TrainSettings:
        """Return the settings of a method or variant; changes: of the common ones."""
        common = COMMON | {"tasks": self.tasks, "per_task_scored": SCORED} | changes
        return replace(settings_of(method, self.model), **common)

    def _run(self, settings: TrainSettings, seed: int, rate: float, place: str) -> Run:
        """Return a run: products in bfloat16, weights in float32; place: below the directory."""
        given = {
            "per_device_train_batch_size": self.batch,
            "bf16": True,
            "use_cpu": not torch.cuda.is_available(),
            "logging_steps": 10,
        }
        return Run(settings, seed, self.steps, self.out / place, rate, given=given)


def _usual(settings: TrainSettings) -> tuple[float, ...]:
    """Return the rates with which the sweep of a method begins."""
    return _FULL if settings.method == "full" else _ADAPTERS


def by_family(tasks: str) -> dict[str, str]:
    """Return the specification of the tasks of each family."""
    parts: dict[str, list[str]] = {}
    for part in tasks.split(","):
        for family in set(data.load(part).family_of.values()):
            parts.setdefault(family, []).append(part)
    return {family: ",".join(parts[family]) for family in FAMILIES if family in parts}


def further(runs: Sequence[Run]) -> list[Run]:
    """Return the runs by which the sweep goes beyond its lowest or highest rates.

    runs: all runs of the sweep so far. A method gets a run if its best rate is at an edge, unless
    it has FURTHER of them already or its runs are not finished.
    """
    added = []
    for own in _by_method(runs):
        best, rates = best_rate(own), sorted(run.rate for run in own)
        if best is None or len(rates) >= len(_usual(own[0].settings)) + FURTHER:
            continue
        if best == rates[0]:
            added.append(_at_rate(own[0], _beyond(best, -1)))
        elif best == rates[-1]:
            added.append(_at_rate(own[0], _beyond(best, +1)))
    return added


def _at_rate(run: Run, rate: float) -> Run:
    """Return a run of the sweep with another rate."""
    stem = run.out.name.removesuffix(f"-lr{run.rate:g}")
    return replace(run, rate=rate, out=run.out.with_name(f"{stem}-lr{rate:g}"))


def _beyond(rate: float, side: int) -> float:
    """Return the next rate of the series 1, 3, 10, 30, … above (+1) or below (−1) one of it.

    >>> _beyond(3e-4, -1), _beyond(3e-4, +1)
    (0.0001, 0.001)
    """
    tens, half = divmod(round(2 * math.log10(rate)) + side, 2)
    return float(f"{3 if half else 1}e{tens}")


def best_rate(runs: Iterable[Run]) -> float | None:
    """Return the rate with the lowest loss on validation items, the lowest of equals.

    runs: of one method. None if one of them is not finished.
    """
    losses: dict[float, float] = {}
    for run in runs:
        if not run.is_done():
            return None
        scores = record.read_json(run.out / "run.json")["scores"]["validation"]
        losses[run.rate] = scores["nll"]["mean"]
    return min(losses, key=lambda rate: (losses[rate], rate))


def chosen(runs: Sequence[Run]) -> dict[str, float]:
    """Return the rate of each method: the best of its sweep, or the middle one until it is known.

    runs: of the sweep.
    """
    return {
        own[0].settings.name: best_rate(own) or sorted(run.rate for run in own)[len(own) // 2]
        for own in _by_method(runs)
    }


def _by_method(runs: Iterable[Run]) -> list[list[Run]]:
    """Return the runs of each method, in the order of the methods."""
    of_method: dict[str, list[Run]] = {}
    for run in runs:
        of_method.setdefault(run.settings.name, []).append(run)
    return list(of_method.values())


# The data


def tasks_in(directory: Path) -> str:
    """Return the specification of the tasks in a directory of public data.

    Raises UserError, naming what to put where, if something is missing.
    """
    parts = []
    for kind, pattern in DATA:
        found = sorted(directory.glob(pattern), key=_size)
        if not found:
            where = ", ".join(place for _, place in DATA)
            raise UserError(
                f"{directory / pattern}: missing; --data expects {where}, in the forms of"
                " docs/tasks.md (ARC-Easy and openbookqa: train.json and test.json of LLM-Adapters)"
            )
        parts.append(f"{kind}:{found[-1]}")
    return ",".join(parts)


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a directory."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def text_in(directory: Path) -> str:
    """Return plain text of the data directory: passages of BoolQ; "" if they are not there.

    They are encyclopaedic and no run is trained on them.
    """
    file = directory / TEXT
    if not file.is_file():
        return ""
    content, _ = files.read_text(file)
    passages = [files.string(row, "passage") for _, row in files.json_rows(file, content)]
    return "\n\n".join(dict.fromkeys(passages))
