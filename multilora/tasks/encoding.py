"""Examples → tokens: prompt and answer, of which the answer alone carries loss."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from multilora.tasks.example import Example

IGNORED = -100  # the label that torch's cross entropy leaves out


class Encoded(NamedTuple):
    """Token ids of a prompt followed by an answer, and how many of them are the answer's.

    task: the index of its task, for a model that tells tasks apart.
    """

    ids: list[int]
    answer: int
    task: int | None = None


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
    the answer alone does not fit, or the tokenizer has no tokens for the text or no end token.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    answer_ids = tokenizer(f" {answer}", add_special_tokens=False).input_ids
    if not prompt_ids or not answer_ids or tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r}: {len(prompt_ids)} tokens for {prompt!r}, "
            f"{len(answer_ids)} for {answer!r}, end token {tokenizer.eos_token_id}; expected some "
            "for each: are the tokenizer's files beside the model?"
        )
    ids = start + prompt_ids
    if end:
        answer_ids = [*answer_ids, tokenizer.eos_token_id]
    room = context - len(answer_ids)
    if room < 1:
        raise ValueError(f"the answer has {len(answer_ids)} tokens; the context is {context}")
    return Encoded(ids[-room:] + answer_ids, len(answer_ids), task)


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
        raise ValueError(f"task {task!r} is none of the adapter's: {', '.join(tasks)}")
    return tasks.index(task) if tasks else None


def encode_all(
    tokenizer: Any, examples: Sequence[Example], context: int, tasks: Sequence[str] = ()
) -> list[Encoded]:
    """Every example's prompt and answer, as they are trained on; its task's index in `tasks`."""
    return [
        encode(tokenizer, e.prompt, e.answer, context, task=index_of(e.task, tasks))
        for e in examples
    ]


def collate(batch: Sequence[Encoded], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids` and `labels` (batch, longest), labels only on answers.

    Rows that know their task add `multilora_task_ids` (batch,).

    No attention mask is needed: attention is causal, and what stands behind an answer is never
    looked at.
    """
    longest = max(len(row.ids) for row in batch)
    input_ids = torch.full((len(batch), longest), pad)
    labels = torch.full((len(batch), longest), IGNORED)
    for i, row in enumerate(batch):
        ids = torch.tensor(row.ids)
        input_ids[i, : len(ids)] = ids
        labels[i, len(ids) - row.answer : len(ids)] = ids[-row.answer :]
    inputs = {"input_ids": input_ids, "labels": labels}
    if batch[0].task is not None:
        inputs["multilora_task_ids"] = torch.tensor([row.task for row in batch])
    return inputs
