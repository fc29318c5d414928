"""Cache the tokens of examples on disk, so that a large file is tokenised once per tokenizer."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis import store
from multilora import record
from multilora.tasks import encoding
from multilora.tasks.encoding import Encoded, encode_all, index_of
from multilora.tasks.example import Example


def cached(
    tokenizer: Any, examples: Sequence[Example], context: int, tasks: Sequence[str], kept: Path
) -> list[Encoded | None]:
    """Return the rows of `encode_all`, from the cache if they are there.

    tokenizer: a tokenizer of Transformers
    examples: examples to encode
    context: maximum number of tokens of a row
    tasks: tasks that the model distinguishes, as `encoding.tasks_of` returns them
    kept: directory of the cache; made if necessary

    A cached file is found by the texts, the tokenizer, the context and the code of `encoding`; one
    that cannot be read is replaced. Nothing is cached if there are no examples, or for a tokenizer
    without a backend that describes it (a slow one).
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not examples:
        return encode_all(tokenizer, examples, context, tasks)
    texts = [[e.prompt, e.answer] for e in examples]
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id, context]
    code = {"encoding": encoding}
    path = kept / f"{record.fingerprint(texts, backend.to_str(), ends, code)}.npz"
    rows = _load(path, len(examples))
    if rows is None:
        rows = encode_all(tokenizer, examples, context)
        _save(path, rows)
    indices = [index_of(e.task, tasks) for e in examples]
    return [
        None if row is None else row._replace(task=index)
        for row, index in zip(rows, indices, strict=True)
    ]


def _load(path: Path, count: int) -> list[Encoded | None] | None:
    """The `count` rows in a file; None if the file is missing or incomplete."""
    try:
        with np.load(path) as file:
            ids, lengths, answers, cuts = (file[k] for k in ("ids", "lengths", "answers", "cuts"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if not len(lengths) == len(answers) == len(cuts) == count or lengths.sum() != len(ids):
        return None
    ends = np.cumsum(lengths)
    return [
        Encoded(ids[stop - n : stop].tolist(), answer, None, cut) if n else None
        for stop, n, answer, cut in zip(
            ends.tolist(), lengths.tolist(), answers.tolist(), cuts.tolist(), strict=True
        )
    ]


def _save(path: Path, rows: Sequence[Encoded | None]) -> None:
    """Write the rows to a file; a row that is None has length 0."""
    whole = [Encoded([], 0) if row is None else row for row in rows]

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # np.savez would add .npz to a path
            np.savez(
                file,
                ids=np.concatenate([np.array(row.ids, np.int32) for row in whole]),
                lengths=np.array([len(row.ids) for row in whole], np.int32),
                answers=np.array([row.answer for row in whole], np.int32),
                cuts=np.array([row.cut for row in whole], np.int32),
            )

    path.parent.mkdir(parents=True, exist_ok=True)
    store.replace(path, write)
