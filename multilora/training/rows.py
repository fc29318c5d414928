"""Examples → the rows that a run is trained on, in order, from its first step to its last."""

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
    """What is trained on: a row is an example, or with packing several.

    cut: prompts of which the left did not fit into the context; left_out: examples whose answer
    alone does not; real: the share of tokens that are no padding; context: tokens of a row, at
    most.
    """

    rows: list[TrainingRow]
    cut: int
    left_out: int
    real: float
    context: int

    def steps(self, arguments: TrainArguments) -> int:
        """Optimiser steps that they make."""
        return math.ceil(len(self.rows) / trainer.batch_of(arguments))

    def notes(self) -> list[str]:
        """What a user should know of them, in lines."""
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
    """The rows in their order, drawn from the seed: same for any number of workers, processes.

    encoded, tasks: of each example; None for one that does not fit. mixture_of: how often each
    task comes (mixture.temperature); packing: fill rows of `context` tokens, where rows that tell
    the model their task hold examples of one task only. Raises ValueError where nothing is left.
    """
    kept = [(row, task) for row, task in zip(encoded, tasks, strict=True) if row is not None]
    if not kept:
        raise UserError(f"none of {len(encoded)} training examples fits {context} tokens")
    examples, names = [row for row, _ in kept], [task for _, task in kept]
    batch, lengths = trainer.batch_of(arguments), [len(row.ids) for row in examples]
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    rng = random.Random(f"order/{seed}")
    drawn = mixture.draw(names, rng, mixture.temperature(mixture_of))
    of_steps = arguments.max_steps * batch if arguments.max_steps > 0 else None
    of_epochs = int(arguments.num_train_epochs * len(examples)) if of_steps is None else None
    rows: list[TrainingRow]
    if packing:
        groups = names if examples[0].task is not None else ()
        packs = mixture.pack(itertools.islice(drawn, of_epochs), lengths, context, rng, groups)
        packed = list(itertools.islice(packs, of_steps))
        rows = [[examples[i] for i in row] for row in packed]
        widths = [sum(lengths[i] for i in row) for row in packed]
    else:
        indices = list(itertools.islice(drawn, of_epochs if of_steps is None else of_steps))
        indices = mixture.bucket(indices, lengths, batch, rng)
        rows = [examples[i] for i in indices]
        widths = [lengths[i] for i in indices]
    at_once = arguments.train_batch_size
    batches = [widths[i : i + at_once] for i in range(0, len(widths), at_once)]
    spent = sum(max(widths) * len(widths) for widths in batches)
    cut, left_out = sum(row.cut > 0 for row in examples), len(encoded) - len(kept)
    return Rows(rows, cut, left_out, sum(widths) / max(spent, 1), context)


@torch.no_grad()
def check_packing(model: Any, vocabulary: int) -> None:
    """ValueError where the model lets one example of a packed row see another.

    Two examples are packed behind one another, and then behind another neighbour: the logits of
    the second must not change, and must be those that it has alone.
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
        # A cache would switch the separation off; Trainer trains without one.
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
