"""Score a checkpoint on the held-out items of the tasks.

    python -m multilora.evaluate CKPT [--model BASE] [--tasks KIND:PATH,…] [--split test] [--json] …

CKPT is a directory with an adapter or with the ΔW of a full fine-tuning; `base` scores the model
itself. Base and tasks are those that the checkpoint was trained on, unless --model and --tasks say
otherwise. An item with options counts as right if its answer is the likeliest option; a second
column uses the likelihood per character instead. The other items must be matched exactly by
greedy decoding. The table gives each task, the mean of each family and the mean over the families,
in percent, with a 95 % bootstrap interval over the items. Every prediction is written to
predictions-SPLIT.jsonl in --out, and the table to scores-SPLIT.json.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis import UserError, store
from analysis.files import exchange
from analysis.tables import text
from multilora import base, checked, command, delta, record
from multilora.tasks import data, scoring
from multilora.tasks.example import FAMILIES
from multilora.tasks.scoring import Prediction


@dataclass(frozen=True)
class EvaluateSettings:
    """The checkpoint to score, and the items to score it on."""

    checkpoint: str = field(metadata={"help": "directory of a checkpoint, or 'base'"})
    model: str = field(
        default="",
        metadata={"help": "base: a directory or hub name; by default the checkpoint's own"},
    )
    tasks: str = field(
        default="",
        metadata={"help": "KIND:PATH, separated by commas; by default the checkpoint's own"},
    )
    split: str = field(default="test", metadata={"help": "validation or test"})
    per_task: int = field(
        default=0, metadata={"help": "items per task; 0: 100 of the built-in tasks, all of files"}
    )
    resamples: int = field(default=2000, metadata={"help": "number of bootstrap resamples"})
    seed: int = field(default=0, metadata={"help": "seed of the bootstrap"})
    out: str = field(
        default="",
        metadata={"help": "directory for the files; by default CKPT, or runs/scores for 'base'"},
    )
    json: bool = field(default=False, metadata={"help": "print JSON instead of the table"})

    def __post_init__(self) -> None:
        if self.per_task < 0:
            raise UserError(f"per_task is {self.per_task}; expected 0 or more")
        if not 1 <= self.resamples <= 10**6:
            raise UserError(f"resamples is {self.resamples}; expected 1 to 1,000,000")


def summarise(predictions: Sequence[Prediction], resamples: int, seed: int) -> list[dict[str, Any]]:
    """Rows of the table: the tasks, the families and the mean over families.

    Columns: level ("task", "family" or "all"); name; family; items; accuracy and
    accuracy_by_length, in [0, 1]; low and high, the 95 % bootstrap interval of accuracy; chance;
    cut, the number of prompts that did not fit; too_long, the number of items whose answer did not
    fit. A family is the mean of its tasks and "mean" the mean of the families. Each resample draws
    the items of every task with replacement.
    """
    rng = np.random.default_rng(seed)
    tasks: dict[str, list[Prediction]] = {}
    for p in predictions:
        tasks.setdefault(p.example.task, []).append(p)
    rows: list[dict[str, Any]] = []
    of_task: dict[str, np.ndarray] = {}
    for task, own in tasks.items():
        share = statistics.fmean(p.right for p in own)
        # Items are right or wrong, so the mean of n resampled items is binomial.
        of_task[task] = rng.binomial(len(own), share, resamples) / len(own)
        rows.append(
            {
                "level": "task",
                "name": task,
                "family": own[0].example.family,
                "items": len(own),
                "accuracy": share,
                "accuracy_by_length": statistics.fmean(p.right_by_length for p in own),
                "chance": statistics.fmean(p.example.chance for p in own),
                "cut": sum(p.cut > 0 for p in own),
                "too_long": sum(p.answer is None for p in own),
            }
        )
    families, of_family = [], {}
    for family in (f for f in FAMILIES if any(row["family"] == f for row in rows)):
        members = [row for row in rows if row["family"] == family]
        families.append(_mean("family", family, members))
        of_family[family] = np.mean([of_task[row["name"]] for row in members], axis=0)
    every = [*rows, *families, _mean("all", "mean", families)]
    resampled = [*of_task.values(), *of_family.values(), np.mean([*of_family.values()], axis=0)]
    for row, values in zip(every, resampled, strict=True):
        row["low"], row["high"] = np.quantile(values, (0.025, 0.975)).tolist()
    return every


def _mean(level: str, name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row for several: the means of their accuracies and the sums of their counts."""
    shares = ("accuracy", "accuracy_by_length", "chance")
    counts = ("items", "cut", "too_long")
    return {
        "level": level,
        "name": name,
        "family": name if level == "family" else None,
        **{key: statistics.fmean(row[key] for row in rows) for key in shares},
        **{key: sum(row[key] for row in rows) for key in counts},
    }


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table in percent, each family above its tasks."""
    lines = [["", "items", "accuracy", "95 % interval", "by length", "chance"]]
    for family in (row for row in rows if row["level"] == "family"):
        tasks = [r for r in rows if r["level"] == "task" and r["family"] == family["name"]]
        lines += [_cells(family, ""), *(_cells(row, "  ") for row in tasks)]
    lines.append(_cells(rows[-1], ""))
    counted = [
        f"{rows[-1][key]} {words}"
        for key, words in (
            ("cut", "prompts were cut on the left"),
            ("too_long", "answers are longer than the context and count as wrong"),
        )
        if rows[-1][key]
    ]
    return "\n".join([*text.aligned(lines), *counted])


def _cells(row: Mapping[str, Any], indent: str) -> list[str]:
    accuracy, low, high, by_length, chance = (
        f"{100 * row[key]:.1f}"
        for key in ("accuracy", "low", "high", "accuracy_by_length", "chance")
    )
    return [
        indent + row["name"],
        str(row["items"]),
        accuracy,
        f"{low} to {high}",
        by_length,
        chance,
    ]


def _line(p: Prediction) -> dict[str, Any]:
    """A prediction as one line of predictions-SPLIT.jsonl."""
    return {
        **asdict(p.example),
        "predicted": p.answer,
        "predicted_by_length": p.by_length,
        "right": p.right,
        "log_likelihoods": p.log_likelihoods,
        "cut": p.cut,
    }


def _base_of(settings: EvaluateSettings, facts: Mapping[str, Any]) -> str:
    """The base to put the checkpoint on: --model, or the one that the checkpoint names in `facts`.

    Raises UserError if its weights are not those that the checkpoint was trained on.
    """
    if settings.checkpoint == "base":
        return base.path_of(settings.model, settings.tasks)
    if not facts:
        if settings.model:
            return settings.model
        path = Path(settings.checkpoint) / "run.json"
        raise UserError(f"{path} is missing, so the base is unknown; pass it with --model DIR")
    trained_on = facts["base"]
    model = settings.model or trained_on["path"]
    if delta.weight_files(model) != trained_on.get("sha256"):
        raise UserError(
            f"{settings.checkpoint} was trained on {trained_on['path']}; "
            f"the weights of {model} are others (SHA-256 differs)"
        )
    return str(model)


def _tuned(model: Any, checkpoint: Path) -> Any:
    """Return the base with the ΔW of a checkpoint; UserError if that cannot or must not be read."""
    if checkpoint.is_dir():
        checked.adapter(checkpoint, [name for name, _ in model.named_modules()])
    with checked.loading(checkpoint):
        return delta.load_tuned(model, checkpoint)


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Score the checkpoint, write both files and return the content of scores-SPLIT.json.

    The content is {"record": …, "rows": see `summarise`, "notes": what was left out of the data}.
    Raises UserError for a base that is not the checkpoint's, tasks that cannot be read, or a split
    without items.
    """
    facts = {} if settings.checkpoint == "base" else record.of_run(Path(settings.checkpoint))
    path = _base_of(settings, facts)
    spec = settings.tasks or facts.get("settings", {}).get("tasks", "")
    tasks = data.load(spec)
    items = tasks.split(settings.split, settings.per_task)
    if not items:
        raise UserError(f"tasks {spec!r}: there are no {settings.split} items")
    quantised = facts.get("settings", {}).get("quantised", 0)
    model, tokenizer = delta.load_base(path, quantised)
    if settings.checkpoint != "base":
        model = _tuned(model, Path(settings.checkpoint))
    predictions = scoring.predict(model, tokenizer, items)
    scores = {
        "record": {
            "command": "multilora.evaluate",
            "settings": asdict(settings),
            "base": {"path": path, "sha256": delta.weight_files(path)},
            "tasks": spec,
            "files": tasks.files,
            "items": data.sha256(items),
            "environment": record.environment(),
        },
        "rows": summarise(predictions, settings.resamples, settings.seed),
        "notes": tasks.notes,
    }
    _write(settings, predictions, scores)
    return scores


def _write(
    settings: EvaluateSettings, predictions: Sequence[Prediction], scores: Mapping[str, Any]
) -> None:
    """Replace predictions-SPLIT.jsonl and scores-SPLIT.json, both or none."""
    usual = "runs/scores" if settings.checkpoint == "base" else settings.checkpoint
    out = Path(settings.out or usual)
    lines = (json.dumps(_line(p), ensure_ascii=False) + "\n" for p in predictions)
    with exchange.replacing(out) as new:
        store.write_text(new / f"predictions-{settings.split}.jsonl", "".join(lines))
        record.write_json(new / f"scores-{settings.split}.json", scores)


def main(argv: Sequence[str] | None = None) -> int:
    def work(settings: EvaluateSettings) -> str:
        scores = evaluate(settings)
        for note in scores["notes"]:
            print(note, file=sys.stderr)
        return json.dumps(scores, indent=2) if settings.json else as_table(scores["rows"])

    return command.run(
        "multilora.evaluate",
        parse=lambda: command.settings_from(EvaluateSettings, __doc__, argv, first="checkpoint"),
        work=work,
    )


if __name__ == "__main__":
    sys.exit(main())
