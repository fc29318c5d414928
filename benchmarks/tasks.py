"""Time reading, tokenising and packing a large instruction file, and scoring multiple choice.

Makes up 52,000 records as long as Alpaca's (a seeded log-normal number of words: a mean of some
80 tokens, a long tail), reads and tokenises them as `multilora.train --tasks` does, first without
and then with the cache of tokens, and packs rows of 512 tokens. Then scores 1,000 questions of four
options on a model of the built-in base's size. Targets: 20 s for reading and tokenising, 95 % real
tokens in packed rows, 20 s for scoring.
"""

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from multilora import base, record
from multilora.tasks import data, mixture, scoring, tokens
from multilora.tasks.builtin import suite, world

RECORDS, ITEMS, ROW = 52_000, 1_000, 512
SECONDS, REAL = 20.0, 0.95


def write_records(path: Path, count: int) -> None:
    """Write an Alpaca file of `count` records, four of ten with an input, as in Alpaca."""
    rng = random.Random(0)
    words = [a + b for a in world.LETTERS for b in world.vocabulary()]

    def text(median: float) -> str:
        return " ".join(rng.choices(words, k=max(1, round(rng.lognormvariate(0, 0.9) * median))))

    records = [
        {
            "instruction": text(9),
            "input": text(8) if rng.random() < 0.4 else "",
            "output": text(30),
        }
        for _ in range(count)
    ]
    path.write_text(json.dumps(records), encoding="utf-8")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that `work` takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main(argv: list[str] | None = None) -> int:
    """Measure each step once, print one line each and return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=__doc__)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument(
        "--threads", type=int, default=2, help="of the CPU that are used (default 2)"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary, record.threads(arguments.threads):
        path = Path(temporary) / "records.json"
        write_records(path, arguments.records)
        reading, loaded = timed(lambda: data.load(f"alpaca:{path}"))
        examples = loaded.split("train")
        texts = [e.prompt for e in examples[:2000]]
        tokenizer = base.learn_tokenizer(texts, 8192, ROW)
        cache = Path(temporary) / "tokens"

        def encode() -> Any:
            return tokens.cached(tokenizer, examples, ROW, [], cache)

        first, encoded = timed(encode)
        again, _ = timed(encode)
    lengths = [len(row.ids) for row in encoded if row is not None]
    rng = random.Random(0)
    drawn = itertools.islice(mixture.draw([""] * len(lengths), rng), len(lengths))
    packing, rows = timed(lambda: list(mixture.pack(drawn, lengths, ROW, rng)))
    real = sum(lengths) / (ROW * len(rows))
    words = base.build_tokenizer(64)
    torch.manual_seed(0)
    model = base.build_model(base.BaseSettings(), words)
    options = [e for e in suite.load("test", 100) if e.options and len(e.options) == 4]
    items = list(itertools.islice(itertools.cycle(options), ITEMS))
    with record.threads(arguments.threads):
        scored, _ = timed(lambda: scoring.predict(model, words, items))
    mean = sum(lengths) / len(lengths)
    print(
        f"{arguments.records} records, {mean:.0f} tokens a training example: read {reading:.1f} s,"
        f" tokenised {first:.1f} s, from the cache {again:.1f} s"
        f" (target {SECONDS:.0f} for the first two)\n"
        f"packed into {len(rows)} rows of {ROW} in {packing:.1f} s: {100 * real:.1f} % real tokens"
        f" (target {100 * REAL:.0f})\n"
        f"{ITEMS} questions of four options: {scored:.1f} s (target {SECONDS:.0f})"
    )
    return int(reading + first > SECONDS or real < REAL or scored > SECONDS)


if __name__ == "__main__":
    sys.exit(main())
