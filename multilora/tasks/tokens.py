"""Tokens of many examples, kept on disk: a large file is tokenised once for each tokenizer."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multilora import record
from multilora.tasks import encoding
from multilora.tasks.encoding import Encoded, encode_all, index_of
from multilora.tasks.example import Example


def cached(
    tokenizer: Any, examples: Sequence[Example], context: int, tasks: Sequence[str], kept: Path
) -> list[Encoded | None]:
    """`encode_all`, from the directory `kept` where it was asked for the same before.

    The same are texts, tokenizer, context and code. A file that cannot be read is made anew.
    None is kept of no examples, or for a tokenizer that cannot say what it is made of.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not examples:
        return encode_all(tokenizer, examples, context, tasks)
    texts = [[e.prompt, e.answer] for e in examples]
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id, context]
    code = {"encoding": encoding}
    path = kept / f"{record.fingerprint(texts, backend.to_str(), ends, code)}.npz"
    rows = _read(path, len(examples))
    if rows is None:
        rows = encode_all(tokenizer, examples, context)
        _write(path, rows)
    indices = [index_of(e.task, tasks) for e in examples]
    return [
        None if row is None else row._replace(task=index)
        for row, index in zip(rows, indices, strict=True)
    ]


def _read(path: Path, count: int) -> list[Encoded | None] | None:
    """The rows of a file; None where it is not there or is not whole."""
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


def _write(path: Path, rows: Sequence[Encoded | None]) -> None:
    """The rows under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = [Encoded([], 0) if row is None else row for row in rows]
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    np.savez(
        temporary,
        ids=np.concatenate([np.array(row.ids, np.int32) for row in whole]),
        lengths=np.array([len(row.ids) for row in whole], np.int32),
        answers=np.array([row.answer for row in whole], np.int32),
        cuts=np.array([row.cut for row in whole], np.int32),
    )
    temporary.replace(path)
