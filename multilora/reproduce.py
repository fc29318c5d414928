"""Train LoRA, MultiLoRA and full fine-tuning from one base and compare their updates.

    python -m multilora.reproduce [--preset quick] [--seeds 0,1] [--methods full,lora,multilora] …
    python -m multilora.reproduce --preset full [--dry_run] [--report_only]
    python -m multilora.reproduce --preset paper --model LLAMA/ --tasks alpaca:FILE,mmlu:DIR,…

quick: two seeds, 8 to 13 minutes on two cores. full: five seeds, learning rates from sweeps on
validation items, ablations, relatives and a grid of settings; hours. paper: prints the commands for
a LLaMA and public data. Runs go to --out; tables, figures and claims go to --figures and are
printed. Runs that exist, made from the same settings by the same code, are not made again.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from analysis import UserError
from multilora import base, command
from multilora.reproduction import presets, report
from multilora.reproduction.experiments import Extras
from multilora.reproduction.presets import Run, Runs
from multilora.reproduction.publishing import publish
from multilora.reproduction.running import seconds_per_step, train_all
from multilora.reproduction.trained import Trained, trained

# The settings of a preset that are not given on the command line.
PRESETS = {
    "quick": {"methods": ",".join(presets.CORE), "seeds": "0,1", "claims": "1,2,4,5"},
    "full": {"methods": ",".join(presets.EVERY), "seeds": "0,1,2,3,4"},
    "paper": {},
}


@dataclass(frozen=True)
class ReproduceSettings:
    """Settings of a reproduction; those that are not given are taken from the preset."""

    preset: str = field(default="quick", metadata={"help": "quick, full or paper"})
    out: str = field(default="", metadata={"help": "directory of the runs; runs/PRESET by default"})
    figures: str = field(
        default="", metadata={"help": "directory of the results; figures/PRESET by default"}
    )
    methods: str = field(
        default="",
        metadata={
            "help": f"separated by commas: full,lora,multilora, {', '.join(presets.VARIANTS)}, "
            "rlora, mtllora, expert, peft:NAME"
        },
    )
    seeds: str = field(
        default="", metadata={"help": "separated by commas; two by default, five for full"}
    )
    steps: int = field(default=1500, metadata={"help": "optimiser steps of each run"})
    base_steps: int = field(default=2000, metadata={"help": "optimiser steps of the base"})
    processes: int = field(default=0, metadata={"help": "runs at a time; one per core by default"})
    dry_run: bool = field(
        default=False, metadata={"help": "list the missing runs and how long they would take here"}
    )
    report_only: bool = field(
        default=False, metadata={"help": "train nothing; report on the finished runs"}
    )
    adapters: str = field(
        default="", metadata={"help": "directory of adapters that others trained, for claim 9"}
    )
    claims: str = field(
        default="", metadata={"help": "claims to judge, separated by commas; quick: 1,2,4,5"}
    )
    publish: bool = field(default=False, metadata={"help": "copy the results to figures/"})
    model: str = field(default="", metadata={"help": "paper: the LLaMA to fine-tune"})
    tasks: str = field(default="", metadata={"help": "paper: the data, as in docs/tasks.md"})

    def __post_init__(self) -> None:
        if self.publish and self.preset != "full":
            raise UserError(
                f"publish with preset {self.preset}; expected preset full: published results have"
                " five seeds"
            )
        if self.preset not in PRESETS:
            raise UserError(f"preset is {self.preset!r}; expected one of {', '.join(PRESETS)}")
        places = {"out": f"runs/{self.preset}", "figures": f"figures/{self.preset}"}
        for name, value in (PRESETS[self.preset] | places).items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)


def reproduce(settings: ReproduceSettings) -> str:
    """Train the missing runs, report on all of them, and return the text to print."""
    runs = Runs()
    for runs in stages(settings, base.directory if settings.report_only else base.ensure):
        if not settings.report_only:
            processes = settings.processes or min(len(runs.all()), torch.get_num_threads())
            train_all(runs.all(), processes)
    model = base.directory(_base(settings))
    extras = _extras(settings, runs) if settings.preset == "full" else None
    text = report.report(asdict(settings), _finished(runs.compared), model, extras)
    if settings.publish:
        publish(Path(settings.figures), to=Path("figures"))
    return text


def stages(
    settings: ReproduceSettings, make_base: Callable[[base.BaseSettings], Path]
) -> Iterator[Runs]:
    """Yield the runs planned so far, stage by stage; the runs of a stage can be trained together.

    make_base: returns the directory of a base. The learning rates of a stage come from the sweep
    before it, so each stage must be trained before the next is asked for.
    """

    def base_of(width: int) -> Path:
        return make_base(_base(settings, width))

    methods, seeds = _distinct(settings.methods), [int(s) for s in _distinct(settings.seeds)]
    out, steps, model = Path(settings.out), settings.steps, make_base(_base(settings))
    runs = Runs()
    if settings.preset == "quick":
        runs.compared = presets.plan(methods, seeds, steps, model, out)
        yield runs
        return
    core = [method for method in methods if method in presets.CORE]
    others = [method for method in methods if method not in core]
    for some in (core, others):
        runs.swept += presets.sweep(some, steps, model, out)
        yield runs
        rates = presets.best_rates(runs.swept)
        runs.compared += presets.plan(some, seeds, steps, model, out, rates, saves=True)
        yield runs
    rates = presets.best_rates(runs.swept)
    runs.grid = presets.grid(seeds[:2], steps, out, rates, base_of)
    yield runs


def listing(settings: ReproduceSettings) -> str:
    """Return the list of missing runs and an estimate of their duration on this machine.

    Before learning rates are chosen, runs are listed with the defaults of their methods.
    """
    runs = list(stages(settings, base.directory))[-1].all()
    missing = [run for run in runs if not run.is_done()]
    steps = sum(run.steps for run in missing)
    processes = settings.processes or torch.get_num_threads()
    minutes = steps * seconds_per_step() / processes / 60
    lines = [
        f"{run.out}  {run.steps} steps, learning rate {run.arguments().learning_rate:g}"
        for run in missing
    ]
    lines.append(
        f"{len(missing)} of {len(runs)} runs to train, {steps:,} steps, about {minutes:.0f} minutes"
        f" with {processes} at a time on this machine; bases, tables and figures are not included"
    )
    return "\n".join(lines)


def _distinct(listed: str) -> list[str]:
    """Split a list separated by commas; raise UserError if an item appears twice."""
    items = [item.strip() for item in listed.split(",")]
    if len(set(items)) < len(items):
        raise UserError(f"{listed!r} names an item twice; expected each once")
    return items


def _base(settings: ReproduceSettings, width: int = base.BaseSettings.width) -> base.BaseSettings:
    """Return the settings of the base of a width, with the usual proportions."""
    usual = base.BaseSettings(steps=settings.base_steps)
    return replace(usual, width=width, mlp=usual.mlp * width // usual.width)


def _finished(runs: Sequence[Run]) -> list[Trained]:
    """Read the runs that are finished."""
    return [trained(run.out) for run in runs if run.is_done()]


def _extras(settings: ReproduceSettings, runs: Runs) -> Extras:
    """Return the finished runs of sweeps and grid, and the adapters, for the full preset."""
    return Extras(
        swept=_finished(runs.swept),
        points=[(s, value, trained(run.out)) for s, value, run in runs.grid if run.is_done()],
        adapters=Path(settings.adapters) if settings.adapters else None,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Reproduce, or list what there is to do, and return the exit status."""

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
