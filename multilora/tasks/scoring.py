"""How a model answers: the likelihood of each option, or the text that greedy decoding writes."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from analysis import UserError
from multilora.tasks.encoding import (
    IGNORED,
    Encoded,
    TooLongError,
    answers_of,
    collate,
    context_of,
    ids_of,
    index_of,
    join,
    tasks_of,
)
from multilora.tasks.example import FAMILIES, Example

_TOKENS = 8192  # of one batch, at most, unless a single row is longer
_ROWS = 128
_SLACK = 4  # tokens beyond the answer's, for the same text in other tokens


@dataclass(frozen=True)
class Prediction:
    """What the model makes of one example.

    answer: the likeliest option, or the text that greedy decoding writes, as far as the right
    answer is long; None where the right answer is too long for the context, which counts as
    wrong. by_length: the likeliest option per character, None without options. log_likelihoods:
    of each option, or of the right answer with its end. cut: tokens of the prompt that did not
    fit.
    """

    example: Example
    answer: str | None
    by_length: str | None
    log_likelihoods: tuple[float, ...]
    cut: int = 0

    @property
    def right(self) -> bool:
        """Whether `answer` is the example's."""
        return self.answer is not None and self.answer.strip() == self.example.answer.strip()

    @property
    def right_by_length(self) -> bool:
        """Whether `by_length` is the example's answer; `right` without options."""
        return self.right if self.by_length is None else self.by_length == self.example.answer


def predict(model: Any, tokenizer: Any, examples: Sequence[Example]) -> list[Prediction]:
    """What the model answers to each example.

    With options: the one whose tokens are likeliest, together, after the prompt; the first of
    equals. Without: what greedy decoding writes until the end token. Raises ValueError where the
    model's log-likelihoods are no numbers.
    """
    context, tasks = context_of(model, tokenizer), tasks_of(model)
    rows: list[Encoded] = []
    owner: list[int] = []  # whose row it is
    prompts = ids_of(tokenizer, [e.prompt for e in examples])
    choices = [e.options or (e.answer,) for e in examples]
    answers = iter(answers_of(tokenizer, [answer for of_one in choices for answer in of_one]))
    for i, (e, prompt) in enumerate(zip(examples, prompts, strict=True)):
        own, task = [next(answers) for _ in choices[i]], index_of(e.task, tasks)
        try:
            made = [join(tokenizer, prompt, ids, context, not e.options, task) for ids in own]
        except TooLongError:
            continue
        rows += made
        owner += [i] * len(made)
    model.eval()
    pad = tokenizer.pad_token_id or 0
    likelihood, greedy = _score_rows(model, rows, context, pad)
    of: dict[int, list[int]] = {i: [] for i in range(len(examples))}
    for row, i in enumerate(owner):
        of[i].append(row)
    # Where every token of the answer is the likeliest, greedy decoding writes just the answer.
    unsure = [of[i][0] for i, e in enumerate(examples) if not e.options and of[i]]
    unsure = [row for row in unsure if not greedy[row]]
    texts = _write(model, tokenizer, [rows[row] for row in unsure], context)
    written = dict(zip(unsure, texts, strict=True))
    found = []
    for i, e in enumerate(examples):
        values = tuple(likelihood[row] for row in of[i])
        cut = max((rows[row].cut for row in of[i]), default=0)
        if not values:
            found.append(Prediction(e, None, None, (), 0))
        elif e.options:
            per_length = [v / len(option) for v, option in zip(values, e.options, strict=True)]
            best, best_by_length = values.index(max(values)), per_length.index(max(per_length))
            chosen = (e.options[best], e.options[best_by_length])
            found.append(Prediction(e, *chosen, values, cut))
        else:
            found.append(Prediction(e, written.get(of[i][0], e.answer), None, values, cut))
    return found


def score(model: Any, tokenizer: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """The share of right answers of a model: `shares` of what it predicts."""
    return shares(predict(model, tokenizer, examples))


def shares(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Share of right answers, in [0, 1]: {"tasks": …, "families": …, "mean": …, "chance": …}.

    A family is the mean of its tasks, `mean` that of the families.
    """
    tasks: dict[str, float] = {}
    chance: dict[str, float] = {}
    family_of = {p.example.task: p.example.family for p in predictions}
    for task in family_of:
        chosen = [p for p in predictions if p.example.task == task]
        tasks[task] = statistics.fmean(p.right for p in chosen)
        chance[task] = statistics.fmean(p.example.chance for p in chosen)

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


def _batches(sizes: Sequence[tuple[int, int]], context: int, words: str) -> Iterator[list[int]]:
    """Indices of rows in batches of like length, with a bar.

    sizes: tokens of each row's prompt and of what comes after it; the longest prompt of a batch
    and the longest of what follows fit into the context together, unless one row does not.
    """
    left = sorted(range(len(sizes)), key=lambda i: sizes[i])
    with tqdm(total=len(sizes), desc=words, leave=False, delay=2, disable=None) as bar:
        start = 0
        while start < len(left):
            stop, after = start + 1, sizes[left[start]][1]
            while stop < len(left) and stop - start < _ROWS:
                prompt, own = sizes[left[stop]]
                widest = prompt + max(after, own)
                if widest > context or widest * (stop - start + 1) > _TOKENS:
                    break
                after, stop = max(after, own), stop + 1
            yield left[start:stop]
            bar.update(stop - start)
            start = stop


@torch.no_grad()
def _score_rows(
    model: Any, rows: Sequence[Encoded], context: int, pad: int
) -> tuple[list[float], list[bool]]:
    """Log-likelihood of each row's answer, and whether it is the greedy continuation."""
    device = next(model.parameters()).device
    likelihood, greedy = [0.0] * len(rows), [False] * len(rows)
    sizes = [(len(row.ids) - row.answer, row.answer) for row in rows]
    for chosen in _batches(sizes, context, "likelihoods"):
        inputs = collate([rows[i] for i in chosen], pad)
        labels = inputs.pop("labels")[:, 1:]
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        row, column = torch.nonzero(labels != IGNORED, as_tuple=True)
        wanted = labels[row, column]
        # Of all logits, as large as the vocabulary, those of the answers alone are looked at.
        logits = model(**inputs).logits[row.to(device), column.to(device)].float().cpu()
        losses = F.cross_entropy(logits, wanted, reduction="none")
        sums = torch.zeros(len(chosen)).index_add(0, row, losses)
        misses = torch.zeros(len(chosen)).index_add(0, row, (logits.argmax(-1) != wanted).float())
        if not torch.isfinite(sums).all():
            raise UserError(
                f"the log-likelihood of an answer is {float(-sums.sum())}; expected a number: the "
                "model holds NaN or Inf, or overflows its dtype"
            )
        for i, loss, missed in zip(chosen, sums.tolist(), misses.tolist(), strict=True):
            likelihood[i], greedy[i] = -loss, missed == 0
    return likelihood, greedy


@torch.no_grad()
def _write(model: Any, tokenizer: Any, rows: Sequence[Encoded], context: int) -> list[str]:
    """What greedy decoding writes after each row's prompt, up to the end token.

    It ends a few tokens after the length of the right answer, or where the context does.
    """
    device = next(model.parameters()).device
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id or 0
    prompts = [row.ids[: -row.answer] for row in rows]
    limits = [min(row.answer + _SLACK, context - len(row.ids) + row.answer) for row in rows]
    sizes = [(len(prompt), limit) for prompt, limit in zip(prompts, limits, strict=True)]
    texts = [""] * len(rows)
    for chosen in _batches(sizes, context, "generation"):
        longest = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), longest), pad)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):  # padded on the left: what is written comes behind
            ids[row, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, longest - len(prompts[i]) :] = 1
        given = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if rows[chosen[0]].task is not None:
            tasks = torch.tensor([rows[i].task for i in chosen])
            given["multilora_task_ids"] = tasks.to(device)
        written = model.generate(
            **given,
            max_new_tokens=max(limits[i] for i in chosen),
            do_sample=False,
            eos_token_id=end,
            pad_token_id=pad,
        )[:, longest:].tolist()
        for i, new in zip(chosen, written, strict=True):
            new = new[: limits[i]]
            texts[i] = tokenizer.decode(new[: new.index(end)] if end in new else new).strip()
    return texts
