"""Score finished runs with every ΔW cut, to see if the top directions carry the skill.

With ΔW = U diag(s) Vᵀ, the cut "keep" k leaves the top k directions of every module and "remove" k
takes them away. Keep 0 is the base, and remove 0 the run as it was trained.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from analysis import UserError, checkpoint
from analysis.formats import Options
from analysis.numerics import decompose
from analysis.results import Row
from analysis.update import LowRankUpdate, Update
from multilora import delta
from multilora.reproduction.trained import Trained
from multilora.tasks.builtin import suite
from multilora.tasks.example import FAMILIES, Example
from multilora.tasks.scoring import score

COUNTS = (0, 1, 2, 4, 8, 16, 24, 32, 64, 128)
PER_TASK = 50
SCORES = tuple(f"score_{family}" for family in FAMILIES)
COLUMNS = ("method", "seed", "kind", "k", *SCORES, "score")


def table(runs: Iterable[Trained], base: Path, per_task: int = PER_TASK) -> list[Row]:
    """Return cuts.csv: the curves of runs of one base, on `per_task` test items of each task."""
    model, tokenizer = delta.load_base(str(base))
    examples = suite.load("test", per_task)
    rows = []
    for run in runs:
        of_run = {"method": run.method, "seed": run.seed}
        updates = checkpoint.read(run.path, options=Options(base=base))
        rows += [of_run | row for row in curve(updates, model, tokenizer, examples)]
    return rows


def curve(
    updates: Iterable[Update],
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    counts: Sequence[int] = COUNTS,
) -> list[Row]:
    """Return the scores of a base with cut updates, as rows {kind, k, score_FAMILY, score}.

    updates: of one checkpoint. A method with an update for each task (MTL-LoRA, experts) is scored
        task by task, each with its own update; R-LoRA is represented by the mean of its heads.
    model, tokenizer: the base; it has its own weights again afterwards.
    examples: the items to score.
    counts: values of k; only those below the largest capacity of a module are used, and this
        capacity itself.

    Scores are in [0, 1]. All decompositions are in memory, in float64. Raises UserError if an
    update does not belong to a module of the model, or a module has parts that are not the tasks
    of the examples.
    """
    groups = _by_part(updates, examples)
    parts = [([_matrix(update, model) for update in group], items) for group, items in groups]
    capacity = max(matrix.s.numel() for matrices, _ in parts for matrix in matrices)
    known: dict[tuple[int, int], dict[str, float]] = {}
    rows = []
    for kind in ("keep", "remove"):
        for k in (*(k for k in counts if k < capacity), capacity):
            start, stop = (0, k) if kind == "keep" else (k, capacity)
            ends = (start, stop) if start < stop else (0, 0)  # every empty cut is the base
            if ends not in known:
                known[ends] = _scores(parts, slice(*ends), model, tokenizer)
            rows.append({"kind": kind, "k": k, **known[ends]})
    return rows


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A weight of the model, its W0, and the decomposition of its ΔW.

    transposed: True if the model stores W0ᵀ.
    """

    weight: nn.Parameter
    W0: torch.Tensor
    U: torch.Tensor
    s: torch.Tensor
    Vh: torch.Tensor
    transposed: bool

    def put(self, chosen: slice) -> None:
        """Set the weight to W0 plus the chosen directions of ΔW, added in float64."""
        dW = (self.U[:, chosen] * self.s[chosen]) @ self.Vh[chosen]
        dW = (dW.T if self.transposed else dW).to(self.W0.device)
        self.weight.data = (self.W0.double() + dW).to(self.W0.dtype)

    def restore(self) -> None:
        """Set the weight to W0."""
        self.weight.data = self.W0


def _matrix(update: Update, model: Any) -> _Matrix:
    """Decompose an update and find the weight of the model that it belongs to."""
    try:
        layer = model.get_submodule(update.name)
    except AttributeError:
        raise UserError(
            f"{update.source}: {update.name} is not a module of the model; is that its base?"
        ) from None
    transposed = isinstance(layer, Conv1D)
    shape = tuple(layer.weight.T.shape if transposed else layer.weight.shape)
    if shape != update.shape:
        raise UserError(
            f"{update.source}: {update.name} is {update.shape}; the model's weight is {shape}"
        )
    U, s, Vh = (torch.from_numpy(M) for M in decompose.svd(update))
    return _Matrix(layer.weight, layer.weight.data, U, s, Vh, transposed)


def _by_part(
    updates: Iterable[Update], examples: Sequence[Example]
) -> list[tuple[list[Update], list[Example]]]:
    """Group updates that are put in together, each group with its examples."""
    by_part: dict[str, list[Update]] = {}
    for update in updates:
        by_part.setdefault(update.part, []).append(update)
    means = [part for part, group in by_part.items() if all(map(_is_mean, group))]
    if len(by_part) == 1 or means:
        (part,) = means or by_part
        return [(by_part[part], list(examples))]
    tasks = list(dict.fromkeys(example.task for example in examples))
    if missing := [task for task in tasks if task not in by_part]:
        source = next(iter(by_part.values()))[0].source
        raise UserError(
            f"{source}: its modules have parts {', '.join(map(repr, by_part))}; expected one part,"
            f" or one for each task, as {missing[0]!r}"
        )
    return [(by_part[task], [e for e in examples if e.task == task]) for task in tasks]


def _is_mean(update: Update) -> bool:
    return isinstance(update, LowRankUpdate) and update.of_parts


def _scores(
    parts: Sequence[tuple[Sequence[_Matrix], Sequence[Example]]],
    chosen: slice,
    model: Any,
    tokenizer: Any,
) -> dict[str, float]:
    """Return the scores by family and their mean.

    parts: groups of matrices, each with the examples that are scored with it.
    chosen: the directions of every ΔW that are kept.
    model, tokenizer: the base.
    """
    tasks: dict[str, float] = {}
    for matrices, examples in parts:
        with _put(matrices, chosen):
            tasks |= score(model, tokenizer, examples)["tasks"]
    family_of = {example.task: example.family for _, of_part in parts for example in of_part}
    families = {
        f"score_{family}": statistics.fmean(
            tasks[task] for task, of_task in family_of.items() if of_task == family
        )
        for family in dict.fromkeys(family_of.values())
    }
    return families | {"score": statistics.fmean(families.values())}


@contextmanager
def _put(matrices: Sequence[_Matrix], chosen: slice) -> Iterator[None]:
    """Put the chosen directions into the model; restore its weights on exit."""
    try:
        for matrix in matrices:
            matrix.put(chosen)
        yield
    finally:
        for matrix in matrices:
            matrix.restore()
