"""Train the runs of a preset side by side, one process each, here or on other machines."""

import contextlib
import multiprocessing
import os
import queue
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from analysis import UserError
from analysis.work import cluster
from multilora import base, delta, record, train
from multilora.reproduction.presets import Run
from multilora.tasks.encoding import IGNORED
from multilora.training import prepare
from multilora.training.settings import TrainSettings


def train_all(runs: Sequence[Run], processes: int) -> None:
    """Train the missing runs, `processes` at a time with one thread each.

    For small models this is the fastest way to use the cores of a machine. The output of the runs
    goes to train.log next to their directories, and a progress bar counts the steps of all runs.
    Raises whatever a run raises.
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
                bar.update(_count_steps(steps))
                for future in [future for future in waiting if future.done()]:
                    future.result()  # raises the exception of the run, if any
                    waiting.remove(future)
        except BrokenProcessPool:
            pool.shutdown(wait=False, cancel_futures=True)
            needed = max(map(least_memory, missing)) / 2**30
            raise UserError(
                f"a run was killed from outside, most likely for want of memory; see {log}. One of"
                f" these runs needs {needed:.1f} GiB and more, and {processes} were trained at a"
                " time: pass a smaller number with --processes; finished runs are kept"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def train_on(runs: Sequence[Run], scheduler: str) -> None:
    """Train the missing runs on the workers of a dask scheduler, one for each of their threads.

    A run computes with one thread, as in `train_all`, and gives the same bits. Workers must see the
    directories of the runs and of their base under the same paths. The output of the runs goes to
    train.log next to them. Raises whatever a run raises, and UserError if one was lost; finished
    runs are kept.
    """
    missing = [run for run in runs if not run.is_done()]
    if not missing:
        return

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    with cluster.at(scheduler, say) as found:
        done = found.each(_train_there, missing, lambda run: run.steps)
        for run, result in tqdm(done, desc="fine-tuning", total=len(missing), unit="run"):
            if isinstance(result, cluster.Lost):
                raise UserError(f"{run.out}: {result.reason}; finished runs are kept")
            if not run.is_done():
                raise UserError(
                    f"{run.out}: was trained, but not here or by other code; expected workers of"
                    f" --scheduler {scheduler} with this code and these directories"
                )


def _train_there(run: Run) -> None:
    """Train a run in a worker, with its output in train.log next to its directory."""
    torch.set_num_threads(1)
    log = run.out.parent / "train.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        train.run(run.settings, run.arguments())


def least_memory(run: Run) -> int:
    """Return the bytes that a run needs for its weights, their gradients and AdamW's two moments.

    Activations come on top. 0 if the base is not a directory of safetensors.
    """
    weights = sum(file.stat().st_size for file in Path(run.settings.model).glob("*.safetensors"))
    return weights * (4 if run.settings.method == "full" else 1)


def train_bases(bases: Sequence[base.BaseSettings], processes: int) -> None:
    """Train the missing bases, `processes` at a time; their output goes to train.log."""
    missing = [one for one in bases if not base.directory(one).is_dir()]
    if not missing:
        return
    log = Path(missing[0].out) / "train.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_worker, (None, log)) as pool:
        done = pool.map(base.ensure, missing)
        for _ in tqdm(done, desc="pretraining", total=len(missing), unit="base"):
            pass


def _count_steps(steps: Any) -> int:
    """Return the number of steps reported since the last call; wait up to 0.5 s for the first."""
    count = 0
    try:
        count += steps.get(timeout=0.5)
        while True:
            count += steps.get_nowait()
    except queue.Empty:
        return count


_steps: Any = None  # in a worker process: the queue to the parent


class _ReportSteps(transformers.TrainerCallback):
    """Report every step to the parent process."""

    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.put(1)


def _start_worker(steps: Any, log: Path) -> None:
    """Use one thread, send all output to `log`, and end when the parent process ends."""
    global _steps
    _steps = steps
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


def _end_with_parent() -> None:
    """End this process when the parent ends for any reason; the next call continues the run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train_one(run: Run) -> None:
    train.run(run.settings, run.arguments(), callbacks=[_ReportSteps(_steps)])


def seconds_per_step(run: Run, steps: int) -> float:
    """Median duration of a training step of LoRA on this machine, with one thread, in seconds.

    run: one of those that are meant. On tasks from files, its base is loaded, and the step is that
        of rows of half their greatest length; else the step is that of a built-in base.
    steps: how many are timed.
    """
    if not run.settings.tasks:
        tokenizer = base.build_tokenizer(64)
        model = base.build_model(base.BaseSettings(), tokenizer)
        shape, precise = (32, 20), True
    else:
        model, tokenizer = delta.load_base(run.settings.model)
        arguments = run.arguments()
        shape = (arguments.per_device_train_batch_size, max(2, run.settings.max_length // 2))
        precise = not arguments.bf16
    model = prepare.prepare(model, TrainSettings(method="lora"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.randint(len(tokenizer), shape)
    labels = ids.clone()
    labels[:, : shape[1] // 2] = IGNORED
    durations = []
    with record.threads(1):
        for _ in range(steps):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
                loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            durations.append(time.perf_counter() - start)
    return statistics.median(durations)
