"""Train LoRA, MultiLoRA and full fine-tuning from one base and compare their updates.

    python -m multilora.reproduce [--preset quick] [--seeds 0,1] [--methods full,lora,multilora] …
    python -m multilora.reproduce --preset full [--seeds 5] [--dry_run] [--report_only]
    python -m multilora.reproduce --preset smollm2 --data DIR [--model MODEL]
    python -m multilora.reproduce --preset paper --model LLAMA/ --tasks alpaca:FILE,mmlu:DIR,…

quick: two seeds from the base that comes with the package, 6 to 10 minutes on two cores. full:
twelve methods with five seeds, each from a base of its own, a grid of settings and a sweep of
learning rates; hours. smollm2: a pretrained language model of 135 M parameters, or --model, on
public data in --data: a sweep of learning rates, then three seeds; hours. paper: prints the
commands for a LLaMA and public data. Runs go to --runs; tables, figures and claims go to --figures
and are printed. Runs that exist, made from the same settings by the same code, are not made again.
The presets full and smollm2 proceed seed by seed and write the tables of a seed to FIGURES/blocks
as soon as its runs are finished.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from analysis import UserError
from multilora import base, command, models
from multilora.reproduction import blocks, presets, pretrained, reference, report, tables
from multilora.reproduction.blocks import Block
from multilora.reproduction.presets import Run
from multilora.reproduction.publishing import publish
from multilora.reproduction.running import seconds_per_step, train_all, train_bases, train_on
from multilora.reproduction.studies.forgetting import HeldOut
from multilora.tasks.builtin import pretrained as builtin
from multilora.tasks.public import files

# The settings of a preset that are not given on the command line.
PRESETS = {
    "quick": {
        "methods": ",".join(presets.CORE),
        "seeds": "0,1",
        "steps": 1500,
        "claims": "1a,4b,4c,4d,5",
    },
    "full": {"methods": ",".join(presets.EVERY), "seeds": "5,6,7,8,9", "steps": 1500},
    "smollm2": {
        "methods": ",".join(pretrained.METHODS),
        "seeds": ",".join(map(str, pretrained.SEEDS)),
        "steps": pretrained.STEPS,
        "judged_by": tables.LOSS,
    },
    "paper": {},
}


# How many steps are timed for the estimate of --dry_run.
STEPS_TIMED = {"quick": 20, "full": 20, "smollm2": 5}


@dataclass(frozen=True)
class ReproduceSettings:
    """Settings of a reproduction; those that are not given are taken from the preset."""

    preset: str = field(default="quick", metadata={"help": "quick, full, smollm2 or paper"})
    runs: str = field(
        default="", metadata={"help": "directory of the runs; runs/PRESET by default"}
    )
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
        default="",
        metadata={
            "help": "separated by commas; 0,1 by default, 5 to 9 for full, 0 to 2 for smollm2"
        },
    )
    steps: int = field(
        default=0,
        metadata={"help": "optimiser steps of each run; 1500 by default, 200 for smollm2"},
    )
    batch: int = field(default=pretrained.BATCH, metadata={"help": "smollm2: sequences of a step"})
    data: str = field(
        default="", metadata={"help": "smollm2: directory of public data, as in docs/paper.md"}
    )
    train_base: bool = field(
        default=False,
        metadata={"help": "quick: train the base here instead of using that of the package"},
    )
    base_steps: int = field(
        default=2000, metadata={"help": "optimiser steps of a base that is trained here"}
    )
    processes: int = field(default=0, metadata={"help": "runs at a time; one per core by default"})
    scheduler: str = field(
        default="",
        metadata={
            "help": "train the runs on the workers of a dask scheduler, such as tcp://host:8786; "
            "docs/scale.md"
        },
    )
    dry_run: bool = field(
        default=False, metadata={"help": "list the missing runs and how long they would take here"}
    )
    report_only: bool = field(
        default=False, metadata={"help": "train nothing; report on what is finished"}
    )
    adapters: str = field(
        default="", metadata={"help": "directory of adapters that others trained, for claim 9"}
    )
    claims: str = field(
        default="", metadata={"help": "claims to judge, separated by commas; quick: 1a,4b,4c,4d,5"}
    )
    text: str = field(
        default="",
        metadata={"help": f"smollm2: a plain text; by default that of DATA/{pretrained.TEXT}"},
    )
    judged_by: str = field(
        default="",
        metadata={
            "help": "what claims 1b, 2, 6 and 8 go by: score, or nll, the loss of answers; by "
            "default nll for smollm2, else score"
        },
    )
    publish: bool = field(default=False, metadata={"help": "copy the results to figures/"})
    model: str = field(
        default="",
        metadata={
            "help": "the language model to fine-tune, a directory or hub name; smollm2: by default "
            "SmolLM2-135M-Instruct from the package index"
        },
    )
    tasks: str = field(
        default="", metadata={"help": "paper, or smollm2 without --data: as in docs/tasks.md"}
    )

    def __post_init__(self) -> None:
        if self.publish and self.preset != "full":
            raise UserError(
                f"publish with preset {self.preset}; expected preset full: published results have"
                " five seeds"
            )
        if self.preset not in PRESETS:
            raise UserError(f"preset is {self.preset!r}; expected one of {', '.join(PRESETS)}")
        if self.judged_by not in ("", tables.SCORE, tables.LOSS):
            raise UserError(
                f"judged_by is {self.judged_by!r}; expected {tables.SCORE} or {tables.LOSS}"
            )
        if self.preset == "smollm2" and bool(self.data) == bool(self.tasks):
            raise UserError(
                "preset smollm2: expected --data DIR with"
                f" {', '.join(place for _, place in pretrained.DATA)}, or --tasks (docs/tasks.md)"
            )
        if self.train_base and self.preset != "quick":
            raise UserError(
                f"train_base with preset {self.preset}; expected preset quick: full trains a base"
                " for every seed, smollm2 and paper take one that is trained"
            )
        usual = {
            "runs": f"runs/{self.preset}",
            "figures": f"figures/{self.preset}",
            "judged_by": tables.SCORE,
        }
        for name, value in (usual | PRESETS[self.preset]).items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    def recorded(self) -> dict[str, Any]:
        """Return the settings that tables are recorded with: all but where runs are trained."""
        return {name: value for name, value in asdict(self).items() if name != "scheduler"}


def reproduce(settings: ReproduceSettings) -> str:
    """Train and measure block by block, report on all blocks, and return the text to print.

    A block is measured as soon as something was trained for it; if nothing was, once and at the
    end, the last of its name. With report_only, nothing is trained, and blocks without a finished
    run are taken as they are. A block of the full preset is left out, with a note on stderr, if its
    base does not learn what the tasks need.
    """
    out = Path(settings.figures)
    left: dict[str, Block] = {}
    for block in planned(settings):
        left[block.name] = block
        finished = bool(block.runs) and all(run.is_done() for run in block.runs)
        if settings.report_only or finished:
            continue
        processes = settings.processes or torch.get_num_threads()
        try:
            train_bases(bases(settings, block), processes)
        except UserError as error:
            if settings.preset != "full":
                raise
            print(f"{block.name}: is left out: {error}", file=sys.stderr)
            del left[block.name]
            continue
        if settings.scheduler:
            train_on(block.runs, settings.scheduler)
        else:
            train_all(block.runs, processes)
        if block.measure is not None:
            blocks.write(block, settings.recorded(), out / tables.BLOCKS)
            del left[block.name]
    for block in left.values():
        blocks.write(block, settings.recorded(), out / tables.BLOCKS)
    text = report.report(settings.recorded())
    if settings.publish:
        publish(out, to=Path("figures"))
    if settings.preset == "quick" and (distance := reference.distance(out)):
        text += f"\n\n{distance}"
    return text


def planned(settings: ReproduceSettings) -> Iterator[Block]:
    """Yield the blocks of a preset, in the order in which they are trained.

    The full preset has the seeds, each with a base of its own, then the grid from the base of the
    first seed, the sweep of learning rates, and the adapters of others if there are any.
    """
    methods, seeds = _distinct(settings.methods), [int(s) for s in _distinct(settings.seeds)]
    out, steps = Path(settings.runs), settings.steps
    if settings.preset == "smollm2":
        yield from _of_language_model(settings, methods, seeds)
        return
    if settings.preset == "quick":
        model = _model(settings, seed=0)
        runs = presets.plan(methods, seeds, steps, model, out)
        yield Block("seeds", runs, model, partial(blocks.of_base, model=model))
        return
    for seed in seeds:
        model = _model(settings, seed)
        runs = presets.of_base(methods, seed, steps, model, out / f"seed-{seed}")
        measure = partial(blocks.of_base, model=model, unit=seed, thorough=presets.HELD_OUT)
        yield Block(f"seed-{seed}", runs, model, measure)
    if set(presets.CORE) <= set(methods):
        model = _model(settings, seeds[0])
        points = presets.grid(seeds[0], steps, out, partial(_model, settings, seeds[0]))
        runs = list({run.out: run for _, _, run in points}.values())
        yield Block("grid", runs, model, partial(blocks.of_grid, points=points, model=model))
    model = _model(settings, presets.SWEEP_SEED)
    runs = presets.sweep(methods, steps, model, out)
    measure = partial(blocks.of_sweep, model=model, by=tables.SCORE, least=len(presets.SWEPT))
    yield Block("sweep", runs, model, measure)
    if settings.adapters:
        measure = partial(blocks.of_adapters, directory=Path(settings.adapters))
        yield Block("wild", [], model, measure)


def _of_language_model(
    settings: ReproduceSettings, methods: Sequence[str], seeds: Sequence[int]
) -> Iterator[Block]:
    """Yield the sweep in parts, then the seeds, again for each of them, then single seeds.

    The rates of the seeds are those of the sweep, whose runs must be finished when the next block
    is asked for; otherwise the middle ones.
    """
    tasks = settings.tasks or pretrained.tasks_in(Path(settings.data))
    model = Path(settings.model) if settings.model else models.ensure("smollm2")
    plan = pretrained.Plan(model, tasks, settings.steps, settings.batch, Path(settings.runs))
    swept = plan.sweep(methods)
    yield Block("sweep", swept, model, None)
    while more := pretrained.further(swept):
        swept = [*swept, *more]
        yield Block("sweep", swept, model, None)
    measure = partial(blocks.of_sweep, model=model, by=tables.LOSS, least=pretrained.RATES)
    yield Block("sweep", swept, model, measure)
    rates = pretrained.chosen(swept)
    held_out = HeldOut(tasks, pretrained.HELD_OUT, _plain_text(settings))
    runs: list[Run] = []
    for seed in seeds:
        runs += plan.of_seed(methods, seed, rates)
        measure = partial(blocks.of_language_model, model=model, held_out=held_out)
        yield Block("seeds", list(runs), model, measure)
    context = pretrained.COMMON["max_length"]
    measure = partial(blocks.of_families, model=model, held_out=held_out, context=context)
    yield Block("alone", plan.alone(seeds[0], rates), model, measure)
    yield Block("relatives", plan.relatives(seeds[0], rates), model, blocks.of_parts)
    usual = [run for run in runs if (run.settings.name, run.seed) == ("multilora", seeds[0])]
    if sizes := plan.sizes(seeds[0], rates):
        measure = partial(blocks.of_sizes, model=model)
        yield Block("sizes", [*usual, *sizes], model, measure)


def _plain_text(settings: ReproduceSettings) -> str:
    """Return the text whose loss is measured before and after fine-tuning; "" if there is none."""
    if settings.text:
        return files.read_text(Path(settings.text))[0]
    return pretrained.text_in(Path(settings.data)) if settings.data else ""


def bases(settings: ReproduceSettings, block: Block) -> list[base.BaseSettings]:
    """Return the settings of the bases that the runs of a block need and that are trained here."""
    needed = {run.settings.model for run in block.runs}
    # Seed 0 is that of the quick preset, whose own seeds may name it again.
    seeds = dict.fromkeys([0, presets.SWEEP_SEED, *map(int, _distinct(settings.seeds))])
    widths = [base.BaseSettings.width, *(int(v) for s, v, _ in presets.GRID if s == "width")]
    possible = [_base(settings, seed, width) for seed in seeds for width in widths]
    return [one for one in possible if str(base.directory(one)) in needed]


def listing(settings: ReproduceSettings) -> str:
    """Return the list of missing runs and an estimate of their duration on this machine."""
    runs = list({run.out: run for block in planned(settings) for run in block.runs}.values())
    missing = [run for run in runs if not run.is_done()]
    steps = sum(run.steps for run in missing)
    processes = settings.processes or torch.get_num_threads()
    seconds = seconds_per_step(missing[0], STEPS_TIMED[settings.preset]) if missing else 0.0
    minutes = steps * seconds / processes / 60
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


def _model(settings: ReproduceSettings, seed: int, width: int = base.BaseSettings.width) -> Path:
    """Return the directory of the base of a seed and width, which need not exist yet."""
    if settings.preset == "quick" and not settings.train_base:
        return builtin.ensure(Path(settings.runs) / "base")
    return base.directory(_base(settings, seed, width))


def _base(settings: ReproduceSettings, seed: int, width: int) -> base.BaseSettings:
    """Return the settings of the base of a seed and width, with the usual proportions."""
    out = str(Path(settings.runs) / "base")
    usual = base.BaseSettings(out=out, seed=seed, steps=settings.base_steps)
    return replace(usual, width=width, mlp=usual.mlp * width // usual.width)


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
