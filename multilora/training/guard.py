"""Stop a run cleanly on divergence, a failed write or an unsupported launch.

Each is an error of one line. A loss that is NaN or infinite stops the run at its step, a
checkpoint that cannot be written completely is removed, and a launch that would train differently
from what was asked for is refused.
"""

import os
import re
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
from analysis.files.regular import is_plain
from multilora import record
from multilora.methods import experts

# What Python, torch and safetensors raise when a file cannot be written.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
# What training and its callbacks write into, besides checkpoint-N.
_DIRECTORIES = ("initial", "runs", "spectra")
_LEAST_FREE = 1 << 20  # bytes; a disk with less free space counts as full


@contextmanager
def refusals() -> Iterator[None]:
    """Turn the ValueError with which PEFT or a method refuses its settings into a UserError."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


class DivergedError(UserError):
    """The loss or a trained parameter is NaN or infinite."""


def check_launch(arguments: transformers.TrainingArguments) -> None:
    """Print the number of processes; raise UserError for an unsupported kind of parallelism."""
    fsdp = bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    device = arguments.device.type
    if fsdp and device == "cpu":
        raise UserError(
            "FSDP was requested on the CPU, where accelerate silently trains with plain data "
            "parallelism; leave FSDP out, or shard the model in your own training loop "
            "(torch.distributed.fsdp.fully_shard)"
        )
    if fsdp or transformers.integrations.is_deepspeed_zero3_enabled():
        raise UserError(
            "FSDP and DeepSpeed's ZeRO-3 shard the weights, but ΔW is computed from whole weights; "
            "use plain data parallelism or DeepSpeed's ZeRO-1 or ZeRO-2"
        )
    if arguments.process_index:
        return
    count, threads = arguments.world_size, torch.get_num_threads()
    line = f"{count} process{'es' * (count > 1)} of {threads} thread{'s' * (threads > 1)}"
    if count == 1 and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        line += (
            "; accelerate launch --cpu starts only one process per machine, whatever "
            "--num_processes says: use torchrun --nproc_per_node N"
        )
    print(f"training on {device}: {line}", file=sys.stderr)


def check_output(out: Path) -> None:
    """Raise UserError if something in the output directory would lead a write out of it."""
    for name in _named_experts(out / experts.CONFIG):
        if not is_plain(name):
            raise UserError(
                f"{out / experts.CONFIG}: names {name!r}; expected directories beside it: remove"
                " the file, or choose another --output_dir"
            )
    for path in out.glob("*"):
        if path.name in _DIRECTORIES or path.name.startswith("checkpoint-"):
            _check_links(path)


def _named_experts(listed: Path) -> list[Any]:
    """Return the tasks in experts.json; none if it is missing or broken, since it is replaced."""
    try:
        tasks = record.read_json(listed).get("tasks") if listed.is_file() else []
    except (UserError, OSError):
        return []
    return tasks if isinstance(tasks, list) else []


def _check_links(directory: Path) -> None:
    """Raise UserError if a directory, or something in it, is a symbolic link."""
    for path in (directory, *(() if directory.is_symlink() else directory.rglob("*"))):
        if path.is_symlink():
            raise UserError(f"{path}: is a link, and a write could follow it; remove it")


def check_loss(loss: torch.Tensor, step: int) -> None:
    """Raise DivergedError for a loss that is NaN or infinite."""
    if not torch.isfinite(loss).all():
        raise DivergedError(f"training diverged: the loss of step {step} is {float(loss.mean())}")


def check_parameters(model: Any, step: int) -> None:
    """Raise DivergedError if a trained parameter contains NaN or infinity."""
    for name, p in model.named_parameters():
        if p.requires_grad and not torch.isfinite(p).all():
            raise DivergedError(f"training diverged: {name} contains NaN or Inf after step {step}")


class Guard(transformers.TrainerCallback):
    """Trainer callback that saves no diverged model and leaves no incomplete checkpoint."""

    def __init__(self, newest: Callable[[], Path | None]) -> None:
        """newest: returns the newest complete checkpoint, to be named when a run ends early."""
        self.newest = newest
        self.saving: Path | None = None  # the checkpoint that is being written

    def _before_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            check_parameters(kwargs["model"], state.global_step)
            self.saving = Path(args.output_dir) / f"checkpoint-{state.global_step}"

    on_step_end = on_epoch_end = _before_save

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note that the checkpoint is complete."""
        self.saving = None

    @contextmanager
    def watching(self, arguments: transformers.TrainingArguments) -> Iterator[None]:
        """Add to an error of training which checkpoint is left to continue from."""
        try:
            yield
        except DivergedError as error:
            rate = f"the learning rate is {arguments.learning_rate:g}, try a lower one"
            raise DivergedError(f"{error}; {rate}; {self._left()}") from error
        except (*WRITE_ERRORS, MemoryError) as error:
            if size := not_allocated(error):
                raise UserError(
                    f"out of memory: {size} could not be allocated; try fewer rows at a time"
                    " (--per_device_train_batch_size, --gradient_accumulation_steps), shorter ones"
                    f" (--max_length) or --gradient_checkpointing True; {self._left()}"
                ) from error
            if self.saving is None:
                raise
            why = _why(error, self.saving.parent)
            if arguments.should_save:
                shutil.rmtree(self.saving, ignore_errors=True)
            raise OSError(f"{self.saving} cannot be written: {why}; {self._left()}") from error

    def _left(self) -> str:
        left = self.newest()
        return f"the last complete checkpoint is {left}" if left else "no checkpoint was written"


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn an error while results are written into an OSError that names the directory."""
    try:
        yield
    except WRITE_ERRORS as error:
        raise OSError(f"{out}: the result cannot be written: {_why(error, out)}") from error


def not_allocated(error: BaseException) -> str:
    """Return the size in words that an error could not allocate; "" for another error."""
    sized = re.search(r"[Tt]ried to allocate ([0-9.]+ (?:bytes|[KMGT]iB))", str(error))
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or sized:
        return sized[1] if sized else "what was needed"
    return ""


def _why(error: Exception, directory: Path) -> str:
    """The reason of a failed write, which torch does not state."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if directory.is_dir() and shutil.disk_usage(directory).free < _LEAST_FREE:
        return "No space left on device"
    return " ".join(str(error).split())
