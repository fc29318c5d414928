"""What ends a training run early, and what it leaves behind: an error of one line, nothing half.

A loss that is no number stops the run at its step, a write that fails takes its half-written
checkpoint with it, and a launch that would train otherwise than asked for is refused.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from analysis import UserError

WRITING_FAILS = (OSError, RuntimeError, SafetensorError)  # python, torch and safetensors
_LEAST_FREE = 1 << 20  # bytes; a disk with less is a full one


@contextmanager
def refusals() -> Iterator[None]:
    """Raise what PEFT or a method refuses, a ValueError, as a UserError."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


class DivergedError(UserError):
    """The loss or a trained parameter is no longer a number."""


def check_launch(arguments: transformers.TrainingArguments) -> None:
    """Say how many processes train; ValueError for what would train otherwise than asked for."""
    fsdp = bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    device = arguments.device.type
    if fsdp and device == "cpu":
        raise UserError(
            "FSDP was asked for on the CPU, where accelerate trains with plain data parallelism "
            "without a word; leave FSDP out, or shard the model in a loop of your own "
            "(torch.distributed.fsdp.fully_shard)"
        )
    if fsdp or transformers.integrations.is_deepspeed_zero3_enabled():
        raise UserError(
            "FSDP and DeepSpeed's ZeRO-3 shard the weights, and ΔW is taken of whole ones; "
            "use plain data parallelism or DeepSpeed's ZeRO-1 or ZeRO-2"
        )
    if arguments.process_index:
        return
    count, threads = arguments.world_size, torch.get_num_threads()
    line = f"{count} process{'es' * (count > 1)} of {threads} thread{'s' * (threads > 1)}"
    if count == 1 and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        line += (
            "; accelerate launch --cpu starts one process on one machine, however many it is "
            "asked for: use torchrun --nproc_per_node N"
        )
    print(f"training on {device}: {line}", file=sys.stderr)


def check_loss(loss: torch.Tensor, step: int) -> None:
    """DivergedError for a loss that is NaN or Inf."""
    if not torch.isfinite(loss).all():
        raise DivergedError(f"training diverged: the loss of step {step} is {float(loss.mean())}")


def check_parameters(model: Any, step: int) -> None:
    """DivergedError where a trained parameter holds NaN or Inf."""
    for name, p in model.named_parameters():
        if p.requires_grad and not torch.isfinite(p).all():
            raise DivergedError(f"training diverged: {name} holds NaN or Inf after step {step}")


class Guard(transformers.TrainerCallback):
    """Keeps a diverged model out of the checkpoints, and half a checkpoint off the disk."""

    def __init__(self, kept: Callable[[], Path | None]) -> None:
        """kept: the newest whole checkpoint, asked for when a run ends early."""
        self.kept = kept
        self.saving: Path | None = None  # the checkpoint that is being written

    def _before_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            check_parameters(kwargs["model"], state.global_step)
            self.saving = Path(args.output_dir) / f"checkpoint-{state.global_step}"

    on_step_end = on_epoch_end = _before_save

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint is whole."""
        self.saving = None

    @contextmanager
    def watching(self, arguments: transformers.TrainingArguments) -> Iterator[None]:
        """Around training: its errors, with what is left to go on from."""
        try:
            yield
        except DivergedError as error:
            rate = f"the learning rate is {arguments.learning_rate:g}, try a lower one"
            raise DivergedError(f"{error}; {rate}; {self._left()}") from error
        except WRITING_FAILS as error:
            if self.saving is None:
                raise
            why = _why(error, self.saving.parent)
            if arguments.should_save:
                shutil.rmtree(self.saving, ignore_errors=True)
            raise OSError(f"{self.saving} cannot be written: {why}; {self._left()}") from error

    def _left(self) -> str:
        kept = self.kept()
        return f"the last whole checkpoint is {kept}" if kept else "no checkpoint was written"


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Around the writing of results: OSError that names the directory and what is the matter."""
    try:
        yield
    except WRITING_FAILS as error:
        raise OSError(f"{out}: the result cannot be written: {_why(error, out)}") from error


def _why(error: Exception, where: Path) -> str:
    """What is the matter, in words; torch says no more than that a write failed."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if where.is_dir() and shutil.disk_usage(where).free < _LEAST_FREE:
        return "No space left on device"
    return " ".join(str(error).split())


# NEEDIMPORT
