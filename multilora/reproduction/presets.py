"""Plan the runs of the presets quick, full and paper."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis import UserError
from multilora import base, budget
from multilora.training import identity
from multilora.training.settings import TrainSettings, complete, defaults
from multilora.training.trainer import TrainArguments

# Names in --methods that are not methods of the training command, and their settings.
VARIANTS: dict[str, dict[str, Any]] = {
    "lora+": {"method": "lora+", "b_lr_ratio": 4.0},
    "lora r=26": {"method": "lora", "r": 26},  # more parameters than MultiLoRA of 3 × 8
    "multilora s×5": {"method": "multilora", "scale_lr_ratio": 5.0},
    "multilora n=1": {"method": "multilora", "n": 1, "r": 24},
    "multilora n=1 zero": {"method": "multilora", "n": 1, "r": 24, "start": "zero"},
    "multilora zero": {"method": "multilora", "start": "zero"},
}
CORE = ("full", "lora", "multilora")
ABLATIONS = ("multilora zero", "multilora n=1", "multilora n=1 zero", "lora+", "multilora s×5")
RELATIVES = ("rlora", "mtllora", "expert")
EVERY = (*CORE, *ABLATIONS, "lora r=26", *RELATIVES)

# The learning rates of variants, if not the default of their method. These and the defaults were
# chosen by the sweep that was published with seeds 0 to 4 and are fixed, so that a replication has
# nothing to choose; the sweep of the full preset shows whether it would choose them again.
RATES = {
    "multilora zero": 3e-3,
    "multilora n=1 zero": 3e-3,
    "multilora s×5": 3e-3,
}
# Methods that are also trained with a second seed from each base: only directions of updates of one
# base can be compared, and two runs of one seed see the same data in the same order.
REPEATED = ("full", "lora", "multilora", "multilora zero")
REPEAT = 10  # what is added to the seed of a base for its second seed
SAVES = 10  # checkpoints of a run whose dynamics are measured
HELD_OUT = 50  # items of each task in studies that score a run many times

# The seed of all sweeps, which is not reported, and the learning rates as multiples of a middle.
# The middle is the method's default, or that of MIDDLE for methods whose default a sweep chose
# below it.
SWEEP_SEED, SWEPT = 100, (0.25, 0.5, 1.0, 2.0)
MIDDLE = {"lora+": 3e-3, "rlora": 3e-3, "mtllora": 6e-3}
UNSWEPT = ("lora r=26",)  # takes the learning rate of LoRA

# One setting changed at a time, for LoRA, MultiLoRA and full fine-tuning: the setting, its value,
# and what it changes for each method; {} if the method does not have the setting.
GRID: tuple[tuple[str, float, dict[str, dict[str, Any]]], ...] = (
    ("rate", 1, {method: {} for method in CORE}),
    ("steps", 500, {method: {"steps": 500} for method in CORE}),
    ("rate", 0.5, {method: {"rate": 0.5} for method in CORE}),
    ("rate", 2, {method: {"rate": 2.0} for method in CORE}),
    ("width", 64, {method: {"width": 64} for method in CORE}),
    ("n·r", 12, {"full": {}, "lora": {"r": 12}, "multilora": {"r": 4}}),
    ("n·r", 48, {"full": {}, "lora": {"r": 48}, "multilora": {"r": 16}}),
    ("n", 2, {"full": {}, "lora": {}, "multilora": {"n": 2, "r": 12}}),
    ("n", 6, {"full": {}, "lora": {}, "multilora": {"n": 6, "r": 4}}),
)


@dataclass(frozen=True)
class Run:
    """A training run that is planned.

    settings: the method and its settings, with the base.
    seed: the seed.
    steps: the number of optimiser steps.
    out: the directory of the run.
    rate: the learning rate; 0 for the default of the method.
    saves: how many checkpoints are kept during training, for its dynamics.
    given: other arguments of the training command.
    """

    settings: TrainSettings
    seed: int
    steps: int
    out: Path
    rate: float = 0.0
    saves: int = 0
    given: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> TrainArguments:
        """Return the arguments of the training command."""
        arguments = TrainArguments(
            output_dir=str(self.out),
            max_steps=self.steps,
            seed=self.seed,
            learning_rate=self.rate,
            save_strategy="steps" if self.saves else "no",
            save_steps=max(1, self.steps // max(1, self.saves)),
            disable_tqdm=True,
            report_to="none",
            **self.given,
        )
        complete(self.settings, arguments)
        return arguments

    def is_done(self) -> bool:
        """Return whether the run is finished, with the same settings and code."""
        return identity.is_done(self.settings, self.arguments())


def settings_of(method: str, model: Path) -> TrainSettings:
    """Return the settings of a method or variant, with the base at `model`."""
    return TrainSettings(model=str(model), **VARIANTS.get(method, {"method": method}))


def plan(
    methods: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    model: Path,
    out: Path,
    saves: int = 0,
) -> list[Run]:
    """Return one run per method and seed, seed by seed, with the learning rates of RATES.

    methods: names of methods and variants.
    seeds: the seeds.
    steps: the number of optimiser steps of each run.
    model: the directory of the base.
    out: the directory that the runs go to.
    saves: how many checkpoints of LoRA, MultiLoRA and full fine-tuning are kept.
    """
    runs = []
    for seed in seeds:
        for method in methods:
            settings = settings_of(method, model)
            place = out / settings.run_name(seed)
            kept = saves if method in CORE else 0
            runs.append(Run(settings, seed, steps, place, RATES.get(method, 0.0), kept))
    return runs


def of_base(methods: Sequence[str], seed: int, steps: int, model: Path, out: Path) -> list[Run]:
    """Return the runs of the base of a seed: all methods, then the second seed of REPEATED."""
    repeated = [method for method in methods if method in REPEATED]
    return [
        *plan(methods, [seed], steps, model, out, saves=SAVES),
        *plan(repeated, [seed + REPEAT], steps, model, out),
    ]


def sweep(methods: Sequence[str], steps: int, model: Path, out: Path) -> list[Run]:
    """Return one run per method and learning rate of its sweep, from SWEEP_SEED."""
    runs = []
    for method in methods:
        if method in UNSWEPT:
            continue
        settings = settings_of(method, model)
        middle = MIDDLE.get(settings.method, defaults(settings.method)["learning_rate"])
        for rate in (factor * middle for factor in SWEPT):
            name = f"{settings.run_name(SWEEP_SEED)}-lr{rate:g}"
            runs.append(Run(settings, SWEEP_SEED, steps, out / "sweep" / name, rate))
    return runs


def best_of(scored: Iterable[tuple[str, float, float]], least: int) -> dict[str, float]:
    """Return the rate of each method with the best score, the lowest of equals.

    scored: (method, rate, score) of each run. A method with fewer than `least` rates is left out.
    """
    scores: dict[str, dict[float, float]] = {}
    for method, rate, score in scored:
        scores.setdefault(method, {})[rate] = score
    return {
        method: min(of_rate, key=lambda rate: (-of_rate[rate], rate))
        for method, of_rate in scores.items()
        if len(of_rate) >= least
    }


def grid(
    seed: int, steps: int, out: Path, base_of: Callable[[int], Path]
) -> list[tuple[str, float, Run]]:
    """Return (setting, value, run) of the grid: one setting changed at a time from `plan`.

    seed: of the base; the runs have this seed and the second one.
    steps: the number of optimiser steps, unless they are changed.
    out: the directory that the runs of the full preset go to.
    base_of: returns the directory of the base of a width.

    If a setting changes nothing for a method, its run is that of `of_base`.
    """
    points = []
    for setting, value, of_method in GRID:
        for run_seed in (seed, seed + REPEAT):
            for method, change in of_method.items():
                own = dict(change)
                settings = settings_of(method, base_of(own.pop("width", base.BaseSettings.width)))
                rate = defaults(method)["learning_rate"] * own.pop("rate", 1.0)
                length = own.pop("steps", steps)
                settings = replace(settings, **own)
                where = f"grid/{setting}-{value:g}" if change else f"seed-{seed}"
                place = out / where / settings_of(method, Path()).run_name(run_seed)
                saves = SAVES if not change and run_seed == seed else 0  # as in `of_base`
                rate = rate if change else 0.0
                points.append((setting, value, Run(settings, run_seed, length, place, rate, saves)))
    return points


def paper(model: str, tasks: str) -> list[str]:
    """Return the commands of the paper's own setting: three methods on a LLaMA and public data.

    MultiLoRA with n = 3 and the rank nearest to 2.5 % of the model's parameters, LoRA of the same
    n·r, and full fine-tuning; then scores and spectra. Learning rates are common ones, not the
    paper's: sweep them on validation items (--split validation). Raises UserError if model or
    tasks are not given.
    """
    if not model or not tasks:
        raise UserError(
            "preset paper: expected --model DIR of a LLaMA and --tasks alpaca:FILE,mmlu:DIR,"
            "superglue:DIR (docs/tasks.md)"
        )
    sizes = budget.sizes_of(model)
    r = sizes.nearest_rank(budget.share_of("2.5%") * sizes.parameters, 3)
    common = f"--model {shlex.quote(model)} --tasks {shlex.quote(tasks)} --packing --bf16 True"
    rates = {"multilora": f"--n 3 --r {r} --learning_rate 2e-4"}
    rates["lora"] = f"--r {3 * r} --learning_rate 2e-4"
    rates["full"] = "--learning_rate 2e-5"
    train_all = [
        f"python -m multilora.train --method {method} {own} {common} --max_steps -1"
        f" --num_train_epochs 3 --per_device_train_batch_size 8 --gradient_accumulation_steps 4"
        f" --gradient_checkpointing True --output_dir runs/paper/{method}-s0"
        for method, own in rates.items()
    ]
    score_all = [f"python -m multilora.evaluate runs/paper/{method}-s0" for method in rates]
    return [
        *train_all,
        *score_all,
        "python -m analysis.spectrum " + " ".join(f"runs/paper/{m}-s0" for m in rates),
        "python -m analysis.similarity " + " ".join(f"runs/paper/{m}-s0" for m in rates),
    ]
