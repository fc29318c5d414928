"""Scores of a checkpoint on the tasks' held-out items.

    python -m multilora.evaluate CKPT [--model BASE] [--split test] [--per_task 100] [--json]

CKPT is an adapter or a full fine-tuning checkpoint of ΔW; `base` scores the model itself. Without
--model the base is the one that the checkpoint was trained on. Tasks
with options are scored by the likelihood of each option, the others by exact match of the greedy
continuation. The table gives each task, the mean of each family and the mean over families, in
percent.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from multilora import base, command, delta
from multilora.tasks import suite
from multilora.tasks.encoding import (
    IGNORED,
    Encoded,
    collate,
    context_of,
    encode,
    index_of,
    tasks_of,
)
from multilora.tasks.example import FAMILIES, Example


@dataclass(frozen=True)
class EvaluateSettings:
    """What is scored, and on what."""

    checkpoint: str = field(metadata={"help": "directory of a checkpoint, or 'base'"})
    model: str = field(
        default="",
        metadata={"help": "base: a directory or hub name; the checkpoint's own by default"},
    )
    split: str = field(default="test", metadata={"help": "validation or test"})
    per_task: int = field(default=100, metadata={"help": "items of each task"})
    json: bool = field(default=False, metadata={"help": "print JSON instead of the table"})


def score(model: Any, tokenizer: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """Share of right answers, in [0, 1]: {"tasks": …, "families": …, "mean": …, "chance": …}.

    A family is the mean of its tasks, `mean` that of the families.
    """
    right = correct(model, tokenizer, examples)
    tasks: dict[str, float] = {}
    chance: dict[str, float] = {}
    for task in dict.fromkeys(e.task for e in examples):
        chosen = [i for i, e in enumerate(examples) if e.task == task]
        tasks[task] = statistics.fmean(right[i] for i in chosen)
        chance[task] = statistics.fmean(examples[i].chance for i in chosen)
    family_of = {e.task: e.family for e in examples}

    def by_family(values: dict[str, float]) -> dict[str, float]:
        return {
            family: statistics.fmean(v for task, v in values.items() if family_of[task] == family)
            for family in FAMILIES
            if family in family_of.values()
        }

    families = by_family(tasks)
    return {
        "tasks": tasks,
        "families": families,
        "mean": statistics.fmean(families.values()),
        "chance": by_family(chance),
    }


def correct(model: Any, tokenizer: Any, examples: Sequence[Example]) -> list[bool]:
    """Whether each example is answered right.

    With options: the answer's tokens are likelier, together, than those of every other option.
    Without: each of the answer's tokens, and the end after them, is the most likely one given
    those before it, which is to say that greedy decoding writes just this answer.
    """
    context, tasks = context_of(model, tokenizer), tasks_of(model)
    rows: list[Encoded] = []
    for e in examples:
        answers, end = (e.options, False) if e.options else ((e.answer,), True)
        task = index_of(e.task, tasks)
        rows += [encode(tokenizer, e.prompt, answer, context, end, task) for answer in answers]
    likelihood, greedy = _score_rows(model, rows, tokenizer.pad_token_id or 0)
    right, start = [], 0
    for e in examples:
        if e.options:
            stop = start + len(e.options)
            best = max(range(start, stop), key=likelihood.__getitem__)
            right.append(e.options[best - start] == e.answer)
        else:
            stop = start + 1
            right.append(greedy[start])
        start = stop
    return right


@torch.no_grad()
def _score_rows(
    model: Any, rows: Sequence[Encoded], pad: int, batch: int = 128
) -> tuple[list[float], list[bool]]:
    """Log-likelihood of each row's answer, and whether it is the greedy continuation."""
    model.eval()
    device = next(model.parameters()).device
    likelihood, greedy = [0.0] * len(rows), [False] * len(rows)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    starts = range(0, len(rows), batch)
    for start in tqdm(starts, "evaluate", leave=False, delay=2, disable=None):
        chosen = by_length[start : start + batch]
        inputs = collate([rows[i] for i in chosen], pad)
        labels = inputs.pop("labels")[:, 1:]
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        logits = model(**inputs).logits[:, :-1].float().cpu()
        answers = labels != IGNORED
        losses = F.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )
        hits = (logits.argmax(-1) == labels) | ~answers
        for i, loss, hit in zip(chosen, losses.sum(1).tolist(), hits.all(1).tolist(), strict=True):
            likelihood[i], greedy[i] = -loss, hit
    return likelihood, greedy


def table(scores: dict[str, Any], family_of: dict[str, str]) -> str:
    """The scores in percent, a line a task, grouped by family."""
    lines = []
    for family, mean in scores["families"].items():
        chance = scores["chance"][family]
        lines.append(f"{family:<16}{100 * mean:6.1f}   (chance {100 * chance:.1f})")
        lines += [
            f"  {task:<14}{100 * value:6.1f}"
            for task, value in scores["tasks"].items()
            if family_of[task] == family
        ]
    return "\n".join([*lines, f"{'mean':<16}{100 * scores['mean']:6.1f}"])


def _base_of(settings: EvaluateSettings) -> str:
    """The base to put the checkpoint on; ValueError where it is not the one it was trained on.

    Without --model it is the one that the checkpoint's run.json names.
    """
    if settings.checkpoint == "base":
        return settings.model or str(base.ensure(base.BaseSettings()))
    path = Path(settings.checkpoint) / "run.json"
    if not path.is_file():
        if settings.model:
            return settings.model
        raise ValueError(f"{path} is not there to tell the base; pass it, --model DIR")
    trained_on = json.loads(path.read_text(encoding="utf-8"))["base"]
    model = settings.model or trained_on["path"]
    if delta.weight_files(model) != trained_on["sha256"]:
        raise ValueError(
            f"{settings.checkpoint} was trained on {trained_on['path']}; "
            f"the weights of {model} are others (SHA-256)"
        )
    return str(model)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--checkpoint")

    def work() -> str:
        settings = command.settings_from(EvaluateSettings, __doc__, arguments)
        path = _base_of(settings)
        model, tokenizer = delta.load_base(path)
        if settings.checkpoint != "base":
            model = delta.load_tuned(model, Path(settings.checkpoint))
        scores = score(model, tokenizer, suite.load(settings.split, settings.per_task))
        if settings.json:
            return json.dumps(scores, indent=2)
        return table(scores, suite.FAMILY_OF)

    return command.run("multilora.evaluate", work)


if __name__ == "__main__":
    sys.exit(main())
