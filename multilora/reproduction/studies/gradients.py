"""Measure whether tasks pull the base in the same direction: the cosines of their gradients."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.results import Row
from multilora import delta
from multilora.tasks import answers, data, encoding
from multilora.tasks.example import Example
from multilora.training import prepare
from multilora.training.settings import TrainSettings

BATCH = 4  # examples at a time
BLOCK = 2**22  # entries of a vector that are converted to float64 at a time


def table(base: Path, tasks: str, per_task: int, context: int) -> list[Row]:
    """Return gradients.csv: the cosine of the gradients of every two tasks, one row per pair.

    base: the model whose gradients are taken, of the weights that full fine-tuning trains.
    tasks: their specification.
    per_task: training examples of a task, of which the gradient is a mean.
    context: tokens of an example at most.

    cosine: in [−1, 1]; None if a gradient is zero. The row of a task with itself compares the
    gradients of two halves of its examples: what their number lets a cosine reach. Two gradients
    of every task are in memory, each as large as the weights.
    """
    model, tokenizer = delta.load_base(str(base))
    model = prepare.prepare(model, TrainSettings(method="full", model=str(base)))
    examples = data.load(tasks).split("train", per_task)
    by_task: dict[str, list[Example]] = {}
    for example in examples:
        by_task.setdefault(example.task, []).append(example)
    halves = [
        _gradient(model, tokenizer, own[i::2], context) for own in by_task.values() for i in (0, 1)
    ]
    gram = np.array([[_product(g, h) for h in halves] for g in halves])
    whole = gram.reshape(len(by_task), 2, len(by_task), 2).sum(axis=(1, 3))
    rows: list[Row] = []
    for (i, a), (j, b) in itertools.combinations_with_replacement(enumerate(by_task), 2):
        of, at = (gram, (2 * i, 2 * i + 1)) if i == j else (whole, (i, j))
        norms = float(np.sqrt(of[at[0], at[0]] * of[at[1], at[1]]))
        cosine = float(of[at]) / norms if norms > 0 else None
        rows.append({"task_a": a, "task_b": b, "cosine": cosine})
    return rows


def _gradient(
    model: Any, tokenizer: Any, examples: Sequence[Example], context: int
) -> torch.Tensor:
    """Return the gradient of the sum over examples of the mean loss of an answer, as one vector."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    encoded = [e for e in encoding.encode_all(tokenizer, examples, context) if e is not None]
    head = model.get_output_embeddings()
    for start in range(0, len(encoded), BATCH):
        batch = encoding.collate(encoded[start : start + BATCH], tokenizer.pad_token_id or 0)
        labels = batch.pop("labels")
        with answers.only(head, answers.predicted(labels)):
            logits = model(**batch).logits
        answers.sum_of_means(logits, labels).backward()
    gradient = torch.cat([torch.zeros_like(p).ravel() if p.grad is None else p.grad.ravel()
                          for p in parameters])  # fmt: skip
    model.zero_grad()
    return gradient


def _product(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the inner product of two float32 vectors, summed in float64 block by block."""
    blocks = zip(a.split(BLOCK), b.split(BLOCK), strict=True)
    return sum(float(x.double() @ y.double()) for x, y in blocks)
