"""Examples → tokens: prompt and answer, of which the answer alone carries loss."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from analysis import UserError
from multilora.tasks.example import Example

IGNORED = -100  # the label that torch's cross entropy leaves out


class Encoded(NamedTuple):
    """Token ids of a prompt followed by an answer, and how many of them are the answer's.

    task: the index of its task, for a model that tells tasks apart; cut: how many of the
    prompt's tokens did not fit.
    """

    ids: list[int]
    answer: int
    task: int | None = None
    cut: int = 0


class TooLongError(ValueError):
    """An answer that does not fit into the context by itself."""


def encode(
    tokenizer: Any,
    prompt: str,
    answer: str,
    context: int,
    end: bool = True,
    task: int | None = None,
) -> Encoded:
    """The prompt with the tokenizer's beginning, the answer and, with `end`, the end token.

    What does not fit into `context` tokens is cut off the prompt's left. Raises ValueError when
    the tokenizer has no tokens for the text or no end token, TooLongError when the answer alone
    does not fit.
    """
    prompts, answers = ids_of(tokenizer, [prompt]), answers_of(tokenizer, [answer])
    return join(tokenizer, prompts[0], answers[0], context, end, task)


def ids_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without what the tokenizer would put around it.

    Raises ValueError, naming the text, where there are none.
    """
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    for text, ids in zip(texts, found, strict=True):
        if not ids:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path!r}: no tokens for {text!r}; expected some: "
                "are the tokenizer's files beside the model?"
            )
    return found


def answers_of(tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
    """Token ids of each answer as it follows a prompt, after one blank.

    A tokenizer that puts a blank before every text by itself, as LLaMA's first two do, is given
    none: it would make a token of its own out of the second.
    """
    first, both, blank = (
        tokenizer(text, add_special_tokens=False).input_ids for text in ("a", "a a", " a")
    )
    own = both[len(first) :] == first != blank
    return ids_of(tokenizer, answers if own else [f" {answer}" for answer in answers])


def join(
    tokenizer: Any, prompt: list[int], answer: list[int], context: int, end: bool, task: int | None
) -> Encoded:
    """One row of a prompt's and an answer's ids; raises as `encode` does."""
    if end:
        if tokenizer.eos_token_id is None:
            raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no end token")
        answer = [*answer, tokenizer.eos_token_id]
    if tokenizer.bos_token_id is not None:
        prompt = [tokenizer.bos_token_id, *prompt]
    room = context - len(answer)
    if room < 1:
        raise TooLongError(f"the answer has {len(answer)} tokens; the context is {context}")
    return Encoded(prompt[-room:] + answer, len(answer), task, max(len(prompt) - room, 0))


def context_of(model: Any, tokenizer: Any) -> int:
    """How many tokens the model takes: its positions, else the tokenizer's limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(positions or tokenizer.model_max_length)


def tasks_of(model: Any) -> list[str]:
    """The tasks that a model wants to be told of each row: its own, or its adapter's; most none."""
    config = getattr(model, "active_peft_config", None)
    return getattr(model, "tasks", None) or getattr(config, "tasks", None) or []


def index_of(task: str, tasks: Sequence[str]) -> int | None:
    """Where `task` stands in what `tasks_of` gives; None where that is empty."""
    if tasks and task not in tasks:
        raise UserError(f"task {task!r} is none of the adapter's: {', '.join(tasks)}")
    return tasks.index(task) if tasks else None


def encode_all(
    tokenizer: Any, examples: Sequence[Example], context: int, tasks: Sequence[str] = ()
) -> list[Encoded | None]:
    """Every example's prompt and answer, as they are trained on; its task's index in `tasks`.

    None stands for an example whose answer alone does not fit into `context`.
    """
    indices = [index_of(e.task, tasks) for e in examples]
    prompts = ids_of(tokenizer, [e.prompt for e in examples])
    answers = answers_of(tokenizer, [e.answer for e in examples])
    rows: list[Encoded | None] = []
    for prompt, answer, task in zip(prompts, answers, indices, strict=True):
        try:
            rows.append(join(tokenizer, prompt, answer, context, True, task))
        except TooLongError:
            rows.append(None)
    return rows


def collate(batch: Sequence[Encoded | Sequence[Encoded]], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids` and `labels` (batch, longest), labels only on answers.

    Rows that know their task add `multilora_task_ids` (batch,). Where each row is a list of
    examples, packed one behind another, `position_ids` (batch, longest) start anew with each of
    them: that is what keeps them apart in transformers' attention.

    No attention mask is needed: attention is causal, and what stands behind an answer is never
    looked at.
    """
    rows = [[row] if isinstance(row, Encoded) else row for row in batch]
    longest = max(sum(len(e.ids) for e in row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), IGNORED)
    positions = torch.zeros((len(rows), longest), dtype=torch.int64)
    for i, row in enumerate(rows):
        start = 0
        for e in row:
            ids, stop = torch.tensor(e.ids), start + len(e.ids)
            input_ids[i, start:stop] = ids
            labels[i, stop - e.answer : stop] = ids[-e.answer :]
            positions[i, start:stop] = torch.arange(len(ids))
            start = stop
        positions[i, start:] = torch.arange(longest - start)
    inputs = {"input_ids": input_ids, "labels": labels}
    if not isinstance(batch[0], Encoded):
        inputs["position_ids"] = positions
    if rows[0][0].task is not None:
        inputs["multilora_task_ids"] = torch.tensor([row[0].task for row in rows])
    return inputs
