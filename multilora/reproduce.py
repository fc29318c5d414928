"""Train LoRA, MultiLoRA and full fine-tuning from one base and compare their updates.

    python -m multilora.reproduce [--preset quick] [--seeds 0,1] [--methods full,lora,multilora] …
    python -m multilora.reproduce --preset full [--dry_run] [--report_only]
    python -m multilora.reproduce --preset paper --model LLAMA/ --tasks alpaca:FILE,mmlu:DIR,…

quick: two seeds, 8 to 13 minutes on two cores. full: five seeds, learning rates from sweeps on
validation items, ablations, relatives and a grid of settings; hours. paper: prints the commands for
a LLaMA and public data. Runs go to --out; tables, figures and claims go to --figures and are
printed. What is there already, made from the same settings by the same code, is not made again.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from analysis import UserError
from multilora import base, command
from multilora.reproduction import presets, report, trained
from multilora.reproduction.presets import Run, Runs
from multilora.reproduction.running import seconds_a_step, train_all


@dataclass(frozen=True)
class ReproduceSettings:
    """What is trained and where it goes; what is left out is the preset's."""

    preset: str = field(default="quick", metadata={"help": "quick, full or paper"})
    out: str = field(default="", metadata={"help": "where the runs go; runs/PRESET"})
    figures: str = field(default="", metadata={"help": "where results go; figures/PRESET"})
    methods: str = field(
        default="",
        metadata={
            "help": f"separated by commas: full,lora,multilora, {', '.join(presets.VARIANTS)}, "
            "rlora, mtllora, expert, peft:NAME"
        },
    )
    seeds: str = field(default="", metadata={"help": "separated by commas; two, or full: five"})
    steps: int = field(default=1500, metadata={"help": "optimiser steps of each run"})
    base_steps: int = field(default=2000, metadata={"help": "optimiser steps of the base"})
    processes: int = field(default=0, metadata={"help": "runs at a time; one a core by default"})
    dry_run: bool = field(
        default=False, metadata={"help": "list the runs, and how long they would take here"}
    )
    report_only: bool = field(
        default=False, metadata={"help": "train nothing: report on the runs that are there"}
    )
    adapters: str = field(
        default="", metadata={"help": "directory of adapters of others, for claim 9"}
    )
    claims: str = field(default="", metadata={"help": "which are judged; quick: 1,2,4,5"})
    publish: bool = field(default=False, metadata={"help": "copy the results to figures/"})
    model: str = field(default="", metadata={"help": "paper: the LLaMA to fine-tune"})
    tasks: str = field(default="", metadata={"help": "paper: the data, as in docs/tasks.md"})

    def __post_init__(self) -> None:
        if self.publish and self.preset != "full":
            raise UserError("publish belongs to the preset full; what is published has five seeds")
        if self.preset not in PRESETS:
            raise UserError(f"preset is {self.preset!r}; expected one of {', '.join(PRESETS)}")
        places = {"out": f"runs/{self.preset}", "figures": f"figures/{self.preset}"}
        for name, value in (PRESETS[self.preset] | places).items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)


# What a preset settles where nothing else is asked for.
PRESETS = {
    "quick": {"methods": ",".join(presets.CORE), "seeds": "0,1", "claims": "1,2,4,5"},
    "full": {"methods": ",".join(presets.EVERY), "seeds": "0,1,2,3,4"},
    "paper": {},
}


def stages(settings: ReproduceSettings, base_of: Callable[[int], Path]) -> Iterator[Runs]:
    """The runs that there are so far, stage by stage: those of a stage can be trained side by side.

    base_of: the base of a width. The learning rates of a stage come from the sweep before it.
    """
    methods, seeds = _distinct(settings.methods), [int(s) for s in _distinct(settings.seeds)]
    out, steps, model = Path(settings.out), settings.steps, base_of(base.BaseSettings.width)
    runs = Runs()
    if settings.preset == "quick":
        runs.compared = presets.plan(methods, seeds, steps, model, out)
        yield runs
        return
    core = [m for m in methods if m in presets.CORE]
    for part in (core, [m for m in methods if m not in core]):
        runs.swept += presets.sweep(part, steps, model, out)
        yield runs
        rates = presets.best_rates(runs.swept)
        runs.compared += presets.plan(part, seeds, steps, model, out, rates, saves=True)
        yield runs
    rates = presets.best_rates(runs.swept)
    runs.grid = presets.grid(seeds[:2], steps, out, rates, base_of)
    yield runs


def _distinct(listed: str) -> list[str]:
    """The items of a list separated by commas; ValueError where one stands twice."""
    items = [item.strip() for item in listed.split(",")]
    if len(set(items)) < len(items):
        raise UserError(f"{listed!r} names something twice")
    return items


def listing(settings: ReproduceSettings) -> str:
    """The runs that are missing, and an estimate of how long they take on this machine.

    Where learning rates are not chosen yet, runs stand with the defaults of their methods.
    """
    runs = list(stages(settings, lambda width: base.directory(_base(settings, width))))[-1].all()
    missing = [run for run in runs if not run.is_done()]
    steps = sum(run.steps for run in missing)
    processes = settings.processes or torch.get_num_threads()
    minutes = steps * seconds_a_step() / processes / 60
    lines = [f"{run.out}  {run.steps} steps, learning rate {_rate(run)}" for run in missing]
    lines.append(
        f"{len(missing)} of {len(runs)} runs to train, {steps:,} steps, about {minutes:.0f} minutes"
        f" with {processes} at a time on this machine; bases, tables and figures beside"
    )
    return "\n".join(lines)


def _rate(run: Run) -> str:
    return f"{run.arguments().learning_rate:g}"


def _base(settings: ReproduceSettings, width: int) -> base.BaseSettings:
    """The base of a width; the others' proportions are kept."""
    usual = base.BaseSettings(steps=settings.base_steps)
    return replace(usual, width=width, mlp=usual.mlp * width // usual.width)


def reproduce(settings: ReproduceSettings) -> str:
    """Train what is missing, report, and return what is printed."""
    base_of = base.directory if settings.report_only else base.ensure
    runs = Runs()
    for runs in stages(settings, lambda width: base_of(_base(settings, width))):
        if not settings.report_only:
            count = settings.processes or min(len(runs.all()), torch.get_num_threads())
            train_all(runs.all(), count)

    def done(wanted: Sequence[Run]) -> list[trained.Trained]:
        return [trained.trained(run.out) for run in wanted if run.is_done()]

    points = [(s, v, trained.trained(run.out)) for s, v, run in runs.grid if run.is_done()]
    model = base.directory(_base(settings, base.BaseSettings.width))
    beyond = None
    if settings.preset == "full":
        adapters = Path(settings.adapters) if settings.adapters else None
        beyond = report.Beyond(done(runs.swept), points, adapters)
    text = report.report(asdict(settings), done(runs.compared), model, beyond)
    if settings.publish:
        report.publish(Path(settings.figures), Path("figures"))
    return text


def main(argv: Sequence[str] | None = None) -> int:
    def work(settings: ReproduceSettings) -> str:
        if settings.preset == "paper":
            return "\n".join(presets.paper(settings.model, settings.tasks))
        return listing(settings) if settings.dry_run else reproduce(settings)

    return command.run(
        "multilora.reproduce",
        parse=lambda: command.settings_from(ReproduceSettings, __doc__, argv),
        work=work,
    )


if __name__ == "__main__":
    sys.exit(main())
