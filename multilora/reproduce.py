"""Trains LoRA, MultiLoRA and full fine-tuning from one base and compares what they did to it.

    python -m multilora.reproduce [--seeds 0,1] [--steps 1500] [--methods full,lora,multilora] …

Runs go to --out; the figure and the tables behind it go to --figures and are printed. What is
there already, made from the same settings by the same code, is not made again.
"""

import multiprocessing
import os
import queue
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from multilora import base, command, report, train


@dataclass(frozen=True)
class ReproduceSettings:
    """The quick preset: two seeds of each method."""

    out: str = field(default="runs/quick", metadata={"help": "where the runs go"})
    figures: str = field(default="figures/quick", metadata={"help": "where the results go"})
    methods: str = field(
        default="full,lora,multilora",
        metadata={
            "help": "separated by commas; also lora+, multilora s×5, rlora, mtllora, expert and"
            " peft:NAME"
        },
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


def main(argv: Sequence[str] | None = None) -> int:
    def work() -> str:
        settings = command.settings_from(ReproduceSettings, __doc__, argv)
        model = base.ensure(base.BaseSettings(steps=settings.base_steps))
        runs = plan(settings, model)
        train_all(runs, settings.processes or min(len(runs), torch.get_num_threads()))
        return report.report(asdict(settings), [report.trained(run.out) for run in runs], model)

    return command.run("multilora.reproduce", work)


if __name__ == "__main__":
    sys.exit(main())
