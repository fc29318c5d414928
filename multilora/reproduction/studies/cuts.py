"""Finished runs → their scores when every ΔW is cut: whether the top directions carry the skill.

With ΔW = U diag(s) Vᵀ, "keep" k leaves the top k directions of every module, "remove" k takes them
away. Both ends are known: keep 0 is the base, remove 0 the run as it was trained.
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
from multilora import delta, record
from multilora.tasks.builtin import suite
from multilora.tasks.example import FAMILIES, Example
from multilora.tasks.scoring import score

COUNTS = (0, 1, 2, 4, 8, 16, 24, 32, 64, 128)
PER_TASK = 50
COLUMNS = (
    *("method", "seed", "kind", "k"),
    *(f"score_{family}" for family in FAMILIES),
    "score",
)


def table(runs: Iterable[Path], base: str | Path, per_task: int = PER_TASK) -> list[Row]:
    """The curves of finished runs of one base, on `per_task` test items of each task."""
    model, tokenizer = delta.load_base(str(base))
    examples = suite.load("test", per_task)
    rows = []
    for run in runs:
        facts = record.read_json(run / "run.json")
        of_run = {"method": facts["method"], "seed": facts["seed"]}
        updates = checkpoint.read(run, options=Options(base=Path(base)))
        rows += [of_run | row for row in curve(updates, model, tokenizer, examples)]
    return rows


def curve(
    updates: Iterable[Update],
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    counts: Sequence[int] = COUNTS,
) -> list[Row]:
    """Scores in [0, 1] of the base `model` with the cut updates: {kind, k, score_FAMILY, score}.

    k: those of `counts` below the largest capacity of a module, and this capacity itself. A method
    with an update a task (MTL-LoRA, experts) is scored task by task, each with its own; R-LoRA is
    taken at the mean of its heads. The whole decomposition is in memory, in float64. The model has
    its own weights again afterwards. Raises ValueError where an update is of no module of the
    model, and where a module has parts that are not the tasks of the examples.
    """
    groups = _by_part(updates, examples)
    parts = [([_matrix(update, model) for update in group], items) for group, items in groups]
    capacity = max(matrix.s.numel() for matrices, _ in parts for matrix in matrices)
    known: dict[tuple[int, int], dict[str, float]] = {}
    rows = []
    for kind in ("keep", "remove"):
        for k in (*(k for k in counts if k < capacity), capacity):
            start, stop = (0, k) if kind == "keep" else (k, capacity)
            ends = (start, stop) if start < stop else (0, 0)  # the base, whichever are removed
            if ends not in known:
                known[ends] = _scores(parts, slice(*ends), model, tokenizer)
            rows.append({"kind": kind, "k": k, **known[ends]})
    return rows


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A weight of the model, its W0 and the decomposition of its ΔW; turned: stored as W0ᵀ."""

    weight: nn.Parameter
    W0: torch.Tensor
    U: torch.Tensor
    s: torch.Tensor
    Vh: torch.Tensor
    turned: bool

    def put(self, chosen: slice) -> None:
        """Let the weight be W0 and the chosen directions of ΔW, added in float64."""
        dW = (self.U[:, chosen] * self.s[chosen]) @ self.Vh[chosen]
        dW = (dW.T if self.turned else dW).to(self.W0.device)
        self.weight.data = (self.W0.double() + dW).to(self.W0.dtype)

    def restore(self) -> None:
        """Let the weight be W0 itself again."""
        self.weight.data = self.W0


def _matrix(update: Update, model: Any) -> _Matrix:
    try:
        layer = model.get_submodule(update.name)
    except AttributeError:
        raise UserError(
            f"{update.source}: {update.name} is not a module of the model; is that its base?"
        ) from None
    turned = isinstance(layer, Conv1D)
    shape = tuple(layer.weight.T.shape if turned else layer.weight.shape)
    if shape != update.shape:
        raise UserError(
            f"{update.source}: {update.name} is {update.shape}; the model's weight is {shape}"
        )
    U, s, Vh = (torch.from_numpy(M) for M in decompose.svd(update))
    return _Matrix(layer.weight, layer.weight.data, U, s, Vh, turned)


def _by_part(
    updates: Iterable[Update], examples: Sequence[Example]
) -> list[tuple[list[Update], list[Example]]]:
    """Updates that are put in together, with the examples that are theirs."""
    by_part: dict[str, list[Update]] = {}
    for update in updates:
        by_part.setdefault(update.part, []).append(update)
    means = [p for p, group in by_part.items() if all(_is_mean(update) for update in group)]
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
    """By family, and their mean; each group of examples with its own matrices put in."""
    tasks: dict[str, float] = {}
    for matrices, examples in parts:
        with _put(matrices, chosen):
            tasks |= score(model, tokenizer, examples)["tasks"]
    family_of = {example.task: example.family for _, of_part in parts for example in of_part}
    families = {
        f"score_{family}": statistics.fmean(
            tasks[task] for task, of in family_of.items() if of == family
        )
        for family in dict.fromkeys(family_of.values())
    }
    return families | {"score": statistics.fmean(families.values())}


@contextmanager
def _put(matrices: Sequence[_Matrix], chosen: slice) -> Iterator[None]:
    try:
        for matrix in matrices:
            matrix.put(chosen)
        yield
    finally:
        for matrix in matrices:
            matrix.restore()
