"""The loss of each example of a batch, from logits at the positions of its answer only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from multilora.tasks.encoding import IGNORED


def predicted(labels: torch.Tensor) -> torch.Tensor:
    """Return where the next token is part of an answer: bool (batch, length), like `labels`."""
    last = torch.full_like(labels[:, :1], IGNORED)
    return torch.cat([labels[:, 1:], last], dim=1) != IGNORED


@contextmanager
def only(head: nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """Let the output head see hidden states (batch, length, width) at some positions only.

    positions: bool (batch, length), n of them true. The logits of the model are (n, vocabulary)
    then, in the order of the positions: with a large vocabulary, all of them would take more
    memory than the model.
    """
    handle = head.register_forward_pre_hook(lambda _, given: (given[0][positions],))
    try:
        yield
    finally:
        handle.remove()


def sum_of_means(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum over examples of the mean cross entropy of their answer tokens, in nats.

    logits (n, vocabulary): at the positions `predicted(labels)`; labels (batch, length).
    """
    rows, columns = torch.nonzero(predicted(labels), as_tuple=True)
    losses = F.cross_entropy(logits.float(), labels[rows, columns + 1], reduction="none")
    counts = torch.bincount(rows, minlength=len(labels)).clamp(min=1)
    return (losses / counts[rows]).sum()


def count(batches: list[dict[str, Any]]) -> int:
    """Return the number of examples of some batches."""
    return sum(len(batch["labels"]) for batch in batches)
