"""Turn examples into rows of tokens, of which only the answer's carry loss."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from analysis import UserError
from multilora.tasks.example import Example

IGNORED = -100  # the label that torch's cross entropy leaves out


class Encoded(NamedTuple):
    """A prompt and its answer as one row of tokens.

    ids: token ids of the prompt, followed by those of the answer
    answer: how many of the ids belong to the answer
    task: index of the example's task, for a model that distinguishes tasks; otherwise None
    cut: how many tokens of the prompt did not fit into the context
    """

    ids: list[int]
    answer: int
    task: int | None = None
    cut: int = 0


class TooLongError(ValueError):
    """Raised for an answer that does not fit into the context even without a prompt."""


def encode(
    tokenizer: Any,
    prompt: str,
    answer: str,
    context: int,
    end: bool = True,
    task: int | None = None,
) -> Encoded:
    """Tokenise a prompt and its answer into one row.

    tokenizer: a tokenizer of Transformers; its beginning token, if it has one, starts the row
    prompt: text of the prompt
    answer: text of the answer, which follows the prompt after one space
    context: maximum number of tokens of the row; what does not fit is cut off the prompt's left
    end: whether the tokenizer's end token follows the answer
    task: index of the example's task, copied into the row

    Raises UserError if the tokenizer has no tokens for a text or no end token, TooLongError if the
    answer does not fit even without the prompt.
    """
    (prompt_ids,) = ids_of(tokenizer, [prompt])
    (answer_ids,) = answers_of(tokenizer, [answer])
    return join(tokenizer, prompt_ids, answer_ids, context=context, end=end, task=task)


def ids_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without the tokenizer's special tokens around it.

    Raises UserError, naming the text, if the tokenizer has no tokens for it.
    """
    if not texts:
        return []
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    for text, ids in zip(texts, rows, strict=True):
        if not ids:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path!r}: no tokens for {text!r}; expected at least "
                "one (are the tokenizer's files next to the model?)"
            )
    return rows


def answers_of(tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
    """Token ids of each answer as they follow a prompt, after one space.

    A tokenizer that puts a space before every text by itself, as those of LLaMA 1 and 2 do, gets
    the answer without one: it would make a separate token of the second space.
    """
    first, both, space = (
        tokenizer(text, add_special_tokens=False).input_ids for text in ("a", "a a", " a")
    )
    adds_space = both[len(first) :] == first != space
    return ids_of(tokenizer, answers if adds_space else [f" {answer}" for answer in answers])


def join(
    tokenizer: Any, prompt: list[int], answer: list[int], context: int, end: bool, task: int | None
) -> Encoded:
    """Concatenate the ids of a prompt and of an answer into one row; see `encode`.

    tokenizer: gives the beginning token and the end token
    prompt: ids of the prompt, without special tokens
    answer: ids of the answer, without special tokens
    context: maximum number of tokens of the row
    end: whether the end token follows the answer
    task: index of the example's task, copied into the row
    """
    if end:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path!r} has no end token; expected one (eos_token)"
            )
        answer = [*answer, tokenizer.eos_token_id]
    if tokenizer.bos_token_id is not None:
        prompt = [tokenizer.bos_token_id, *prompt]
    room = context - len(answer)
    if room < 1:
        raise TooLongError(
            f"the answer has {len(answer)} tokens; expected fewer than the context, {context}"
        )
    cut = max(len(prompt) - room, 0)
    return Encoded(prompt[-room:] + answer, len(answer), task, cut)


def context_of(model: Any, tokenizer: Any) -> int:
    """Maximum number of tokens of a row: the model's positions, otherwise the tokenizer's limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(positions or tokenizer.model_max_length)


def tasks_of(model: Any) -> list[str]:
    """Tasks that the model or its active adapter distinguishes; empty for most models."""
    config = getattr(model, "active_peft_config", None)
    return getattr(model, "tasks", None) or getattr(config, "tasks", None) or []


def index_of(task: str, tasks: Sequence[str]) -> int | None:
    """Index of `task` in the result of `tasks_of`; None if that is empty.

    Raises UserError if the task is not among them.
    """
    if tasks and task not in tasks:
        raise UserError(f"task {task!r} is not one of the adapter's tasks: {', '.join(tasks)}")
    return tasks.index(task) if tasks else None


def encode_all(
    tokenizer: Any, examples: Sequence[Example], context: int, tasks: Sequence[str] = ()
) -> list[Encoded | None]:
    """Encode the prompt and the answer of every example, with the end token, for training.

    A row carries the index of its task in `tasks`. It is None for an example whose answer does
    not fit into `context` even without the prompt.
    """
    indices = [index_of(e.task, tasks) for e in examples]
    prompts = ids_of(tokenizer, [e.prompt for e in examples])
    answers = answers_of(tokenizer, [e.answer for e in examples])
    rows: list[Encoded | None] = []
    for prompt, answer, task in zip(prompts, answers, indices, strict=True):
        try:
            rows.append(join(tokenizer, prompt, answer, context=context, end=True, task=task))
        except TooLongError:
            rows.append(None)
    return rows


def collate(batch: Sequence[Encoded | Sequence[Encoded]], pad: int) -> dict[str, torch.Tensor]:
    """Return right-padded `input_ids` and `labels` (batch, longest), with labels only on answers.

    Rows with a task index add `multilora_task_ids` (batch,). If each row is a list of examples,
    packed one after another, `position_ids` (batch, longest) restart at each example, which keeps
    them apart in the attention of Transformers.

    No attention mask is needed: attention is causal, so no answer depends on the padding after it.
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
