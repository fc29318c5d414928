"""Task ids of a batch: the key that carries them, their checks, and gradient checkpointing.

A method with parameters per task needs the task of each row of a batch. The batch carries them as
`multilora_task_ids`, a LongTensor (batch,) of indices into the method's tasks. (PEFT would drop
the plain name `task_ids`.)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

KEY = "multilora_task_ids"


@dataclass(frozen=True, eq=False)
class TaskIds:
    """The task ids of a batch.

    ids: (batch,), int64.
    repeat: allow inputs with k·batch rows, in which k consecutive rows (beams, for example) belong
        to one id.
    largest: the largest id, computed once so that no layer has to wait for the device.
    """

    ids: torch.Tensor
    repeat: bool
    largest: int

    @classmethod
    def of(cls, ids: Any, repeat: bool = False) -> "TaskIds":
        """Check the ids of a batch; raise ValueError unless they are whole numbers (batch,) ≥ 0."""
        ids = torch.as_tensor(ids)
        integers = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        if ids.ndim != 1 or not len(ids) or not integers:
            raise ValueError(
                f"{KEY} is {tuple(ids.shape)}, {ids.dtype}; expected a LongTensor (batch,), one "
                "whole number per row"
            )
        smallest, largest = map(int, ids.aminmax())
        if smallest < 0:
            raise ValueError(f"{KEY} holds {smallest}; expected indices of tasks, from 0")
        return cls(ids.long(), repeat, largest)

    def for_rows(self, rows: int, tasks: int) -> torch.Tensor:
        """Return the id of each row of an input, (rows,).

        rows: number of rows of the input.
        tasks: number of tasks of the method.

        Raises ValueError if an id is not below `tasks`, or if `rows` is not the number of ids (or
        a multiple of it, with `repeat`).
        """
        if self.largest >= tasks:
            raise ValueError(
                f"{KEY} holds {self.largest}; expected 0 to {tasks - 1}, indices of {tasks} tasks"
            )
        times, rest = divmod(rows, len(self.ids))
        if rest or (times != 1 and not self.repeat):
            raise ValueError(
                f"{KEY} has {len(self.ids)} entries for {rows} rows; expected one per row (models "
                "that join the rows of a batch into one, such as OPT, are not supported)"
            )
        return self.ids.repeat_interleave(times)


_FUNCTION = "_gradient_checkpointing_func"  # private to transformers: hence a test


def checkpointed(model: nn.Module) -> list[nn.Module]:
    """Return the modules that run under gradient checkpointing."""
    return [module for module in model.modules() if _FUNCTION in vars(module)]


@contextmanager
def recomputed(
    modules: Sequence[nn.Module], context: Callable[[], AbstractContextManager[Any]]
) -> Iterator[None]:
    """Make gradient checkpointing recompute `modules` inside `context()`.

    A module that runs within this context manager runs again in the backward pass, when the tasks
    of the batch are no longer set; `context` sets them again.
    """

    def checkpoint(original: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with context():
                return function(*args, **kwargs)

        return original(run, *args, **kwargs)

    originals = [vars(module)[_FUNCTION] for module in modules]
    for module, original in zip(modules, originals, strict=True):
        setattr(module, _FUNCTION, partial(checkpoint, original))
    try:
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            setattr(module, _FUNCTION, original)
