"""Arrange the training examples into the rows of a run, in order from first to last step."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from analysis import UserError
from multilora.tasks import encoding, mixture
from multilora.tasks.encoding import Encoded
from multilora.training import trainer
from multilora.training.trainer import TrainArguments

TrainingRow = Encoded | list[Encoded]


@dataclass(frozen=True)
class Rows:
    """The rows of all steps in order: each is an example or, with packing, several.

    cut: number of prompts cut on the left to fit the context; left_out: number of examples whose
    answer alone does not fit; real: share of tokens that are not padding, in [0, 1]; context: the
    largest number of tokens in a row.
    """

    rows: list[TrainingRow]
    cut: int
    left_out: int
    real: float
    context: int

    def steps(self, arguments: TrainArguments) -> int:
        """Number of optimiser steps that the rows make."""
        return math.ceil(len(self.rows) / trainer.batch_of(arguments))

    def notes(self) -> list[str]:
        """Lines for the user about what was cut and left out."""
        lines = []
        if self.cut:
            lines.append(f"{self.cut} prompts were cut on the left to fit {self.context} tokens")
        if self.left_out:
            lines.append(
                f"{self.left_out} training examples were left out: the answer alone has more than "
                f"{self.context - 1} tokens"
            )
        return lines


def arrange(
    encoded: Sequence[Encoded | None],
    tasks: Sequence[str],
    arguments: TrainArguments,
    context: int,
    mixture_of: str = mixture.PROPORTIONAL,
    packing: bool = False,
) -> Rows:
    """Draw the rows of a run from its seed, equal for any number of workers and processes.

    encoded: the tokens of each example; None for one that does not fit.
    tasks: the task of each example.
    arguments: seed, batch size, and the number of steps or epochs.
    context: the largest number of tokens in a row.
    mixture_of: how often each task is drawn (see `mixture.temperature`).
    packing: fill rows of `context` tokens with several examples, all of one task if the model
        needs the task of each row.

    Raises UserError if no example fits, or if the epochs are too short for a single row.
    """
    kept = [(row, task) for row, task in zip(encoded, tasks, strict=True) if row is not None]
    if not kept:
        raise UserError(f"none of {len(encoded)} training examples fits {context} tokens")
    examples, names = [row for row, _ in kept], [task for _, task in kept]
    batch, lengths = trainer.batch_of(arguments), [len(row.ids) for row in examples]
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    rng = random.Random(f"order/{seed}")
    drawn = mixture.draw(names, rng, mixture.temperature(mixture_of))
    most = arguments.max_steps * batch if arguments.max_steps > 0 else None  # rows
    if most is None:
        drawn = itertools.islice(drawn, _examples_of_epochs(arguments, len(examples)))
    if packing:
        groups = names if examples[0].task is not None else ()
        packs = mixture.pack(drawn, lengths, context, rng, groups)
        indices = list(itertools.islice(packs, most))
    else:
        order = mixture.bucket(list(itertools.islice(drawn, most)), lengths, batch, rng)
        indices = [[i] for i in order]
    widths = [sum(lengths[i] for i in row) for row in indices]
    return Rows(
        [[examples[i] for i in row] if packing else examples[row[0]] for row in indices],
        cut=sum(row.cut > 0 for row in examples),
        left_out=len(encoded) - len(kept),
        real=_share_real(widths, arguments.train_batch_size),
        context=context,
    )


def _examples_of_epochs(arguments: TrainArguments, count: int) -> int:
    """Number of examples in num_train_epochs epochs of `count` examples; UserError for zero."""
    drawn = int(arguments.num_train_epochs * count)
    if drawn < 1:
        raise UserError(
            f"num_train_epochs {arguments.num_train_epochs:g} of {count} training examples makes 0 "
            f"steps; pass --num_train_epochs {math.ceil(1e4 / count) / 1e4:g} or more, or "
            "--max_steps"
        )
    return drawn


def _share_real(widths: Sequence[int], at_once: int) -> float:
    """Share of tokens that are not padding when rows of these widths are padded per batch."""
    batches = [widths[i : i + at_once] for i in range(0, len(widths), at_once)]
    spent = sum(max(batch) * len(batch) for batch in batches)
    return sum(widths) / max(spent, 1)


@torch.no_grad()
def check_packing(model: Any, vocabulary: int) -> None:
    """Raise UserError if the model lets an example of a packed row see the one before it.

    An example is packed after each of two others: its logits must be those that it has alone, with
    either neighbour. vocabulary: number of tokens to draw the examples from.
    """
    device = next(model.parameters()).device
    task = 0 if encoding.tasks_of(model) else None
    rng = random.Random(0)
    first, other, second = (
        Encoded([rng.randrange(vocabulary) for _ in range(size)], 1, task) for size in (5, 5, 7)
    )
    was = model.training
    model.eval()

    def logits(row: list[Encoded]) -> torch.Tensor:
        inputs = encoding.collate([row, row], 0)
        del inputs["labels"]
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        # With a cache, attention would not be separated; Trainer trains without one.
        return model(**inputs, use_cache=False).logits[0, -7:].float()

    alone = logits([second])
    leak = max(float((logits([by, second]) - alone).abs().max()) for by in (first, other))
    model.train(was)
    if leak > 1e-2 * float(alone.abs().max()):
        raise UserError(
            f"packing: {type(model).__name__} lets an example see its neighbour in the row "
            f"(logits change by {leak:.2g}); train without --packing, or with another "
            "attn_implementation"
        )
