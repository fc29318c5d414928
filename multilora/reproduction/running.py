"""Train the runs of a preset side by side, one process each."""

import multiprocessing
import os
import queue
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from multilora import base, record, train
from multilora.reproduction.presets import Run
from multilora.training import prepare
from multilora.training.settings import TrainSettings


def train_all(runs: Sequence[Run], processes: int) -> None:
    """Train what is not there yet, several runs side by side, one thread each.

    On small models that is the fast way to use a machine's cores. What the runs print goes to
    train.log beside them; a bar shows the steps of all.
    """
    missing = [run for run in runs if not run.is_done()]
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
    """One thread, everything that is printed to `log`, and no life after the parent's."""
    global _steps
    _steps = steps
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


def _end_with_parent() -> None:
    """Wait for the parent to end, however it does; a run half done is begun again next time."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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


def seconds_a_step(steps: int = 20) -> float:
    """How long a step of LoRA takes here, with one thread: measured, the median of a few."""
    tokenizer = base.build_tokenizer(64)
    model = base.build_model(base.BaseSettings(), tokenizer)
    model = prepare.prepare(model, TrainSettings(method="lora"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters)
    ids = torch.randint(len(tokenizer), (32, 20))
    taken = []
    with record.threads(1):
        for _ in range(steps):
            start = time.perf_counter()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)
