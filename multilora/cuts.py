"""Measure how much of a fine-tuning's gain its top singular directions carry.

    python -m multilora.cuts CKPT --base MODEL --text FILE [--counts 0,1,2,4,8,16] [--out DIR]
    python -m multilora.cuts RUN [--tasks KIND:PATH,…] [--split test] [--per_task 50] …

With ΔW = U diag(s) Vᵀ of every module, "keep k" leaves the top k directions in the model and
"remove k" takes them away. The loss is the mean −log of the likelihood per token, in nats: of all
tokens of a text, or of the right answers of held-out items. share is the part of the gain over the
base, (loss of base − loss)/(loss of base − loss of all of ΔW). CKPT is a checkpoint that
`python -m analysis.spectrum` reads; a RUN of multilora.train names its base and its tasks itself.
What a checkpoint changes besides the matrices of ΔW (saved heads, biases, norms) is not put in, and
is said on stderr.
"""

import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from analysis import CheckpointError, UserError, checkpoint, store
from analysis.files.regular import read_text
from analysis.formats import Options
from analysis.numerics import decompose
from analysis.results import Row
from analysis.tables import text as tables
from analysis.update import LowRankUpdate, Other, Remark, Skipped, Update
from multilora import command, delta, record
from multilora.tasks import data, encoding, scoring
from multilora.tasks.example import Example

COUNTS = (0, 1, 2, 4, 8, 16, 24, 32, 64, 128)
COLUMNS = ("kind", "k", "loss", "share")
TABLE = "cuts.csv"
# Updates that are put into the model together, and what is measured with them: name → number.
Group = tuple[Sequence[Update], Callable[[], dict[str, float]]]

# Cutting updates


def curve(groups: Iterable[Group], model: Any, counts: Sequence[int] = COUNTS) -> list[Row]:
    """Return the numbers of a base with cut updates, as rows {kind, k, name of a number: value}.

    groups: of one checkpoint; their numbers have different names.
    model: the base; it has its own weights again afterwards.
    counts: values of k; only those below the largest capacity of a module are used, and this
        capacity itself.

    All decompositions are in memory, in float64. Raises UserError if an update does not belong to
    a module of the model.
    """
    parts = [([_matrix(update, model) for update in group], take) for group, take in groups]
    capacity = max(matrix.s.numel() for matrices, _ in parts for matrix in matrices)
    known: dict[tuple[int, int], dict[str, float]] = {}
    rows = []
    for kind in ("keep", "remove"):
        for k in (*(k for k in counts if k < capacity), capacity):
            start, stop = (0, k) if kind == "keep" else (k, capacity)
            ends = (start, stop) if start < stop else (0, 0)  # every empty cut is the base
            if ends not in known:
                known[ends] = _numbers(parts, slice(*ends))
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


def _numbers(
    parts: Sequence[tuple[Sequence[_Matrix], Callable[[], dict[str, float]]]], chosen: slice
) -> dict[str, float]:
    """Return the numbers of all groups with the chosen directions of every ΔW in the model."""
    numbers: dict[str, float] = {}
    for matrices, take in parts:
        with _put(matrices, chosen):
            numbers |= take()
    return numbers


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


def by_part(
    updates: Iterable[Update], examples: Sequence[Example]
) -> list[tuple[list[Update], list[Example]]]:
    """Group updates that are put in together, each group with its examples.

    A method with an update for each task (MTL-LoRA, experts) has a group for each task; R-LoRA is
    represented by the mean of its heads. Raises UserError if a module has parts that are not the
    tasks of the examples.
    """
    grouped: dict[str, list[Update]] = {}
    for update in updates:
        grouped.setdefault(update.part, []).append(update)
    means = [part for part, group in grouped.items() if all(map(_is_mean, group))]
    if len(grouped) == 1 or means:
        (part,) = means or grouped
        return [(grouped[part], list(examples))]
    tasks = list(dict.fromkeys(example.task for example in examples))
    if missing := [task for task in tasks if task not in grouped]:
        source = next(iter(grouped.values()))[0].source
        raise UserError(
            f"{source}: its modules have parts {', '.join(map(repr, grouped))}; expected one part,"
            f" or one for each task, as {missing[0]!r}"
        )
    return [(grouped[task], [e for e in examples if e.task == task]) for task in tasks]


def _is_mean(update: Update) -> bool:
    return isinstance(update, LowRankUpdate) and update.of_parts


# Losses


def of_examples(model: Any, tokenizer: Any, examples: Sequence[Example]) -> dict[str, float]:
    """Return task → the mean loss per token of the right answers, in nats (`Prediction.nll`)."""
    return scoring.score(model, tokenizer, examples, decode=False)["nll"]["tasks"]


@torch.no_grad()
def of_text(model: Any, ids: Sequence[int], window: int) -> dict[str, float]:
    """Return {"text": the mean loss per token, in nats} of a text of at least two tokens.

    window: tokens that the model sees at a time; each token but the first of a window is predicted
    from those before it.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, window - 1):
        row = torch.tensor([ids[start : start + window]], device=device)
        logits = model(input_ids=row).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, row[0, 1:], reduction="sum"))
        count += row.shape[1] - 1
    if not math.isfinite(total):
        raise UserError(f"the loss of the text is {total}; expected a finite number")
    return {"text": total / count}


# The command


@dataclass(frozen=True)
class CutSettings:
    """The checkpoint whose ΔW is cut, and what the loss is measured on."""

    checkpoint: str = field(metadata={"help": "a checkpoint, or a run of multilora.train"})
    base: str = field(
        default="", metadata={"help": "the model that was fine-tuned; by default the run's own"}
    )
    text: str = field(default="", metadata={"help": "a file of text, UTF-8"})
    tasks: str = field(
        default="", metadata={"help": "KIND:PATH, separated by commas; by default the run's own"}
    )
    split: str = field(default="test", metadata={"help": "validation or test"})
    per_task: int = field(default=50, metadata={"help": "items per task; 0: all"})
    counts: str = field(
        default=",".join(map(str, COUNTS)), metadata={"help": "values of k, separated by commas"}
    )
    window: int = field(default=512, metadata={"help": "tokens of the text seen at a time"})
    scale: float | None = field(
        default=None, metadata={"help": "the scale of B·A, α/r, where no file gives it"}
    )
    initial: str = field(
        default="", metadata={"help": "the adapter before training (PiSSA, OLoRA, …)"}
    )
    transposed: bool = field(
        default=False, metadata={"help": "the factors are stored for x @ A @ B"}
    )
    out: str = field(default="", metadata={"help": f"directory for {TABLE} and record.json"})

    def __post_init__(self) -> None:
        if self.text and self.tasks:
            raise UserError("text and tasks are both given; expected one of them")
        if self.window < 2 or self.per_task < 0:
            raise UserError(
                f"window is {self.window}, per_task {self.per_task}; expected at least 2 and 0"
            )
        if not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", count) for count in self.counts.split(",")):
            raise UserError(f"counts is {self.counts!r}; expected whole numbers, such as 0,1,2,4")


def cut(settings: CutSettings) -> list[Row]:
    """Return rows {kind, k, loss, share}; write them to `settings.out` if it is given.

    Raises UserError if the base or the tasks are not known, CheckpointError if the checkpoint
    cannot be read.
    """
    facts = record.of_run(Path(settings.checkpoint))
    base = settings.base or facts.get("base", {}).get("path", "")
    if not base:
        raise UserError(
            f"{settings.checkpoint}: has no run.json that names its base; pass it with --base MODEL"
        )
    words = read_text(Path(settings.text)) if settings.text else ""
    options = Options(
        base=Path(base),
        initial=Path(settings.initial) if settings.initial else None,
        scale=settings.scale,
        transposed=settings.transposed,
    )
    updates = _read(settings.checkpoint, options)
    model, tokenizer = delta.load_base(base)
    groups = _groups(settings, facts, updates, model, tokenizer, words)
    counts = sorted({0, *(int(count) for count in settings.counts.split(","))})
    rows = _with_shares(curve(groups, model, counts))
    if settings.out:
        read = [Path(settings.checkpoint), Path(base)]
        made_by = store.record("multilora.cuts", read, asdict(settings))
        store.write(settings.out, {}, {TABLE: store.csv_text(rows, COLUMNS)}, made_by)
    return rows


def _read(path: str, options: Options) -> list[Update]:
    """Return the updates of a checkpoint; say on stderr what is assumed, and what is left out.

    Raises CheckpointError if a module cannot be read.
    """
    updates: list[Update] = []
    others = []
    for entry in checkpoint.scan(path, options):
        if isinstance(entry, Skipped):
            raise CheckpointError(entry.reason)
        if isinstance(entry, Remark):
            print(f"{entry.name}: {entry.what}", file=sys.stderr)
        elif isinstance(entry, Other):
            others.append(entry)
        else:
            updates.append(entry)
    if not updates:
        raise CheckpointError(f"{path}: has no update; expected at least one")
    if others:
        first = f"{others[0].name} ({others[0].what})"
        print(
            f"{path}: {len(others)} other tensors are not put in, such as {first}", file=sys.stderr
        )
    return updates


def _groups(
    settings: CutSettings,
    facts: dict[str, Any],
    updates: list[Update],
    model: Any,
    tokenizer: Any,
    words: str,
) -> list[Group]:
    """Return the updates in groups, each with the function that measures the loss.

    words: the text of --text; "" for the items of tasks.
    """
    if not settings.text:
        spec = settings.tasks or facts.get("settings", {}).get("tasks", "")
        if not facts and not spec:
            raise UserError(f"{settings.checkpoint}: pass what to measure, --text or --tasks")
        items = data.load(spec).split(settings.split, settings.per_task)
        return [
            (group, partial(of_examples, model, tokenizer, examples))
            for group, examples in by_part(updates, items)
        ]
    (ids,) = encoding.ids_of(tokenizer, [words])
    if len(ids) < 2:
        raise UserError(f"{settings.text}: has {len(ids)} token; expected at least two")
    window = min(settings.window, encoding.context_of(model, tokenizer))
    parts = dict.fromkeys(update.part for update in updates)
    if len(parts) > 1:
        raise UserError(
            f"{settings.checkpoint}: its modules have parts {', '.join(map(repr, parts))}; expected"
            " one update per module for a text"
        )
    return [(updates, partial(of_text, model, ids, window))]


def _with_shares(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the mean of their numbers as loss, and the share of the gain.

    share is None if all of ΔW gains nothing.
    """
    losses = [
        statistics.fmean(value for name, value in row.items() if name not in ("kind", "k"))
        for row in rows
    ]
    at = {(row["kind"], row["k"]): loss for row, loss in zip(rows, losses, strict=True)}
    base, whole = at["keep", 0], at["keep", max(row["k"] for row in rows)]
    return [
        {
            "kind": row["kind"],
            "k": row["k"],
            "loss": loss,
            "share": (base - loss) / (base - whole) if base > whole else None,
        }
        for row, loss in zip(rows, losses, strict=True)
    ]


def as_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table: one line per k, loss and share of the kept and of the rest."""
    at = {(row["kind"], row["k"]): row for row in rows}
    lines = [["k", "loss, keep k", "share", "loss, remove k", "share"]]
    for k in sorted({row["k"] for row in rows}):
        cells = [str(k)]
        for kind in ("keep", "remove"):
            row = at[kind, k]
            share = "–" if row["share"] is None else f"{row['share'] + 0.0:.0%}"
            cells += [f"{row['loss']:.4f}", share]
        lines.append(cells)
    return "\n".join(tables.aligned(lines))


def main(argv: Sequence[str] | None = None) -> int:
    return command.run(
        "multilora.cuts",
        parse=lambda: command.settings_from(CutSettings, __doc__, argv, first="checkpoint"),
        work=lambda settings: as_table(cut(settings)),
    )


if __name__ == "__main__":
    sys.exit(main())
