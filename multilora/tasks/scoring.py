"""Score a model on examples, by the likelihood of each option or by greedy decoding."""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from analysis import UserError
from multilora.tasks import answers
from multilora.tasks.encoding import (
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

_TOKENS = 8192  # maximum of a batch, unless a single row has more
_ROWS = 128  # maximum of a batch
_SLACK = 4  # tokens generated beyond the answer's length: the same text can have more tokens


@dataclass(frozen=True)
class Prediction:
    """A model's answer to an example.

    example: the example
    answer: the most likely option, or the text that greedy decoding writes, up to a few tokens
        more than the right answer has; None if the right answer does not fit into the context,
        which counts as wrong
    by_length: the most likely option per character; None without options
    log_likelihoods: natural logarithm of the likelihood of each option; without options, of the
        right answer and the end token
    cut: number of tokens of the prompt that did not fit into the context
    tokens: number of tokens of each option, or of the right answer with the end token
    """

    example: Example
    answer: str | None
    by_length: str | None
    log_likelihoods: tuple[float, ...]
    cut: int = 0
    tokens: tuple[int, ...] = ()

    @property
    def right(self) -> bool:
        """True if `answer` is the example's, apart from white space around them."""
        return self.answer is not None and self.answer.strip() == self.example.answer.strip()

    @property
    def right_by_length(self) -> bool:
        """True if `by_length` is the example's answer; without options the same as `right`."""
        return self.right if self.by_length is None else self.by_length == self.example.answer

    @property
    def nll(self) -> float | None:
        """−log of the likelihood of the right answer per token, in nats; None if it does not fit.

        The end token counts where there are no options.
        """
        if not self.log_likelihoods:
            return None
        options = self.example.options
        place = options.index(self.example.answer) if options else 0
        return -self.log_likelihoods[place] / self.tokens[place]


def predict(
    model: Any, tokenizer: Any, examples: Sequence[Example], decode: bool = True
) -> list[Prediction]:
    """Return the model's answer to each example.

    With options, it is the one whose tokens together are most likely after the prompt (the first
    of equals). Without options, it is the text that greedy decoding writes before the end token,
    or, unless `decode`, only known to be right if every token of the right answer is the likeliest.
    Raises UserError if a log-likelihood is not finite, or if the model distinguishes tasks and an
    example's task is not one of them.
    """
    context = context_of(model, tokenizer)
    candidates = _encode_candidates(tokenizer, examples, context, tasks_of(model))
    model.eval()
    rows = [row for own in candidates for row in own]
    likelihoods, greedy = _score_rows(model, rows, context, tokenizer.pad_token_id or 0)
    starts = list(itertools.accumulate(map(len, candidates), initial=0))
    # Where every token of the answer is the likeliest, greedy decoding writes just the answer.
    unsure = [
        i
        for i, (e, own) in enumerate(zip(examples, candidates, strict=True))
        if own and not e.options and not greedy[starts[i]]
    ]
    if not decode:
        unsure = []
    texts = _generate(model, tokenizer, [rows[starts[i]] for i in unsure], context)
    generated = dict(zip(unsure, texts, strict=True))
    predictions = []
    for i, (e, own) in enumerate(zip(examples, candidates, strict=True)):
        values = tuple(likelihoods[starts[i] : starts[i + 1]])
        text = generated.get(i, e.answer) if decode or (own and greedy[starts[i]]) else ""
        predictions.append(_prediction(e, own, values, text))
    return predictions


def _encode_candidates(
    tokenizer: Any, examples: Sequence[Example], context: int, tasks: Sequence[str]
) -> list[list[Encoded]]:
    """Rows of each example: one per option, or that of the right answer with the end token.

    An example with an answer that does not fit into the context has none.
    """
    prompts = ids_of(tokenizer, [e.prompt for e in examples])
    texts = [e.options or (e.answer,) for e in examples]
    tokens = iter(answers_of(tokenizer, [answer for own in texts for answer in own]))
    candidates: list[list[Encoded]] = []
    for e, prompt, own in zip(examples, prompts, texts, strict=True):
        ids, task = [next(tokens) for _ in own], index_of(e.task, tasks)
        end = not e.options
        try:
            rows = [
                join(tokenizer, prompt, answer, context=context, end=end, task=task)
                for answer in ids
            ]
        except TooLongError:
            rows = []
        candidates.append(rows)
    return candidates


def _prediction(
    example: Example, rows: Sequence[Encoded], log_likelihoods: tuple[float, ...], generated: str
) -> Prediction:
    """Choose the answer to one example.

    example: the example
    rows: its rows; none if an answer does not fit into the context
    log_likelihoods: log-likelihood of the answer in each row
    generated: text that greedy decoding writes; used only without options
    """
    if not rows:
        return Prediction(example, None, None, ())
    cut, tokens = max(row.cut for row in rows), tuple(row.answer for row in rows)
    if not example.options:
        return Prediction(example, generated, None, log_likelihoods, cut, tokens)
    per_character = [
        value / len(option) for value, option in zip(log_likelihoods, example.options, strict=True)
    ]
    answer = example.options[log_likelihoods.index(max(log_likelihoods))]
    by_length = example.options[per_character.index(max(per_character))]
    return Prediction(example, answer, by_length, log_likelihoods, cut, tokens)


def score(
    model: Any, tokenizer: Any, examples: Sequence[Example], decode: bool = True
) -> dict[str, Any]:
    """Return the model's share of right answers, as `shares` does from its predictions.

    decode: see `predict`.
    """
    return shares(predict(model, tokenizer, examples, decode))


def shares(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Share of right answers, in [0, 1]: {"tasks": …, "families": …, "mean": …, "chance": …}.

    The share of a family is the mean of its tasks, and `mean` that of the families. `chance` is
    the expected share of a random guess, by family. "nll" has the same three of `Prediction.nll`,
    over the examples whose answer fits.
    """
    tasks: dict[str, float] = {}
    chance: dict[str, float] = {}
    family_of = {p.example.task: p.example.family for p in predictions}
    for task in family_of:
        of_task = [p for p in predictions if p.example.task == task]
        tasks[task] = statistics.fmean(p.right for p in of_task)
        chance[task] = statistics.fmean(p.example.chance for p in of_task)

    def by_family(values: dict[str, float]) -> dict[str, float]:
        return {
            family: statistics.fmean(v for task, v in values.items() if family_of[task] == family)
            for family in FAMILIES
            if any(family_of[task] == family for task in values)
        }

    families = by_family(tasks)
    nll = {task: statistics.fmean(values) for task, values in _losses(predictions).items()}
    of_families = by_family(nll)
    return {
        "tasks": tasks,
        "families": families,
        "mean": statistics.fmean(families.values()),
        "chance": by_family(chance),
        "nll": {
            "tasks": nll,
            "families": of_families,
            "mean": statistics.fmean(of_families.values()) if of_families else None,
        },
    }


def _losses(predictions: Sequence[Prediction]) -> dict[str, list[float]]:
    """Task → the NLL of each of its examples whose answer fits into the context."""
    losses: dict[str, list[float]] = {}
    for prediction in predictions:
        if prediction.nll is not None:
            losses.setdefault(prediction.example.task, []).append(prediction.nll)
    return losses


def _batches(sizes: Sequence[tuple[int, int]], context: int, title: str) -> Iterator[list[int]]:
    """Yield indices of rows in batches of similar length, with a progress bar.

    sizes: for each row, the number of tokens of its prompt and of what follows the prompt
    context: limit for the longest prompt of a batch plus the longest continuation; only a row that
        exceeds it alone does, in a batch of its own
    title: text of the progress bar
    """
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    with tqdm(total=len(sizes), desc=title, leave=False, delay=2, disable=None) as bar:
        start = 0
        while start < len(order):
            stop, after = start + 1, sizes[order[start]][1]
            while stop < len(order) and stop - start < _ROWS:
                prompt, own = sizes[order[stop]]
                widest = prompt + max(after, own)
                if widest > context or widest * (stop - start + 1) > _TOKENS:
                    break
                after, stop = max(after, own), stop + 1
            yield order[start:stop]
            bar.update(stop - start)
            start = stop


@torch.no_grad()
def _score_rows(
    model: Any, rows: Sequence[Encoded], context: int, pad: int
) -> tuple[list[float], list[bool]]:
    """Log-likelihood of each row's answer, and whether greedy decoding would write it.

    Nothing is predicted from the last token of a row: rows that differ in it alone, as options of
    one letter do, are computed together.
    """
    alike: dict[tuple[tuple[int, ...], int, int | None], list[int]] = {}
    for i, row in enumerate(rows):
        alike.setdefault((tuple(row.ids[:-1]), row.answer, row.task), []).append(i)
    groups = list(alike.values())
    head, device = model.get_output_embeddings(), next(model.parameters()).device
    likelihoods, greedy = [0.0] * len(rows), [False] * len(rows)
    sizes = [(len(rows[own[0]].ids) - rows[own[0]].answer, rows[own[0]].answer) for own in groups]
    for batch in _batches(sizes, context, "likelihoods"):
        inputs = collate([rows[groups[i][0]] for i in batch], pad)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        # All logits are as large as the vocabulary; only those of the answers are computed.
        with answers.only(head, answers.predicted(inputs.pop("labels"))):
            logits = model(**inputs).logits.float()
        totals, best, start = logits.logsumexp(-1).cpu(), logits.argmax(-1).cpu(), 0
        for i in batch:
            stop = start + rows[groups[i][0]].answer
            for j in groups[i]:
                wanted = torch.tensor(rows[j].ids[-rows[j].answer :])
                own = logits[torch.arange(start, stop), wanted].cpu()
                likelihoods[j] = float((own - totals[start:stop]).sum())
                greedy[j] = bool((best[start:stop] == wanted).all())
            start = stop
    if not all(map(math.isfinite, likelihoods)):
        lost = next(value for value in likelihoods if not math.isfinite(value))
        raise UserError(
            f"the log-likelihood of an answer is {lost}; expected a finite number (the model"
            " contains NaN or Inf, or overflows its dtype)"
        )
    return likelihoods, greedy


@torch.no_grad()
def _generate(model: Any, tokenizer: Any, rows: Sequence[Encoded], context: int) -> list[str]:
    """Return the text that greedy decoding writes after each row's prompt, up to the end token.

    Decoding stops a few tokens beyond the length of the right answer, or at the end of the context.
    """
    device, pad = next(model.parameters()).device, tokenizer.pad_token_id or 0
    prompts = [row.ids[: -row.answer] for row in rows]
    limits = [
        min(row.answer + _SLACK, context - len(prompt))
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    sizes = [(len(prompt), limit) for prompt, limit in zip(prompts, limits, strict=True)]
    texts = [""] * len(rows)
    for batch in _batches(sizes, context, "generation"):
        inputs = _left_padded([prompts[i] for i in batch], pad)
        if rows[batch[0]].task is not None:
            inputs["multilora_task_ids"] = torch.tensor([rows[i].task for i in batch])
        generated = model.generate(
            **{name: tensor.to(device) for name, tensor in inputs.items()},
            max_new_tokens=max(limits[i] for i in batch),
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad,
        )[:, inputs["input_ids"].shape[1] :].tolist()
        for i, new in zip(batch, generated, strict=True):
            texts[i] = _text_before_end(tokenizer, new[: limits[i]])
    return texts


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` (batch, longest) of prompts that end in the last column."""
    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), pad)
    attention_mask = torch.zeros_like(input_ids)
    for i, prompt in enumerate(prompts):
        input_ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        attention_mask[i, longest - len(prompt) :] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _text_before_end(tokenizer: Any, ids: list[int]) -> str:
    """Decode the ids before the first end token, without white space around the text."""
    end = tokenizer.eos_token_id
    return tokenizer.decode(ids[: ids.index(end)] if end in ids else ids).strip()
