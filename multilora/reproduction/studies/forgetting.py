"""Measure what a fine-tuning does to tasks that it was not trained on, and to plain text."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from analysis.results import Row
from multilora import cuts, delta
from multilora.reproduction.tables import LOSS
from multilora.reproduction.trained import Trained
from multilora.tasks import data, encoding, scoring
from multilora.tasks.example import FAMILIES

BASE = "base"  # stands for a method in the row of the base
WINDOW = 512  # tokens of the text that the model sees at a time


@dataclass(frozen=True)
class HeldOut:
    """What the base and every run are measured on.

    tasks: the specification of all tasks, also of those that a run is not trained on.
    per_task: test items of each task.
    text: a plain text; "" if there is none.
    """

    tasks: str
    per_task: int
    text: str = ""


def table(runs: Iterable[Trained | None], base: Path, held_out: HeldOut) -> list[Row]:
    """Return forgetting.csv: the losses of each run, one row each; those of the base for None.

    trained_on: the families that the run was trained on, none for the base; nll_FAMILY, nll: the
    loss per token of the right answers, in nats; text: that of the text, None without one.
    """
    items = data.load(held_out.tasks).split("test", held_out.per_task)
    rows = []
    for run in runs:
        model, tokenizer = delta.load_base(str(base))
        if run is not None:
            model = delta.load_tuned(model, run.path)
        losses = scoring.score(model, tokenizer, items, decode=False)["nll"]
        row: Row = {
            "method": BASE if run is None else run.method,
            "seed": None if run is None else run.seed,
            "trained_on": "" if run is None else _trained_on(run),
        }
        row |= {f"{LOSS}_{family}": losses["families"].get(family) for family in FAMILIES}
        row |= {LOSS: losses["mean"], "text": None}
        if held_out.text:
            (ids,) = encoding.ids_of(tokenizer, [held_out.text])
            row["text"] = cuts.of_text(model, ids, WINDOW)["text"]
        rows.append(row)
    return rows


def _trained_on(run: Trained) -> str:
    """Return the families of a run's tasks, joined by +."""
    own = set(data.load(run.facts["settings"].get("tasks", "")).family_of.values())
    return "+".join(family for family in FAMILIES if family in own)
