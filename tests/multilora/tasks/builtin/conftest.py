"""Items of the built-in suite and documents of its corpus, drawn once for all test files."""

import itertools
from collections.abc import Callable

import pytest

from multilora.tasks.builtin import corpus, suite
from multilora.tasks.example import SPLITS, Example


@pytest.fixture(scope="session")
def drawn() -> dict[tuple[str, int], list[Example]]:
    """(split, seed) → 150 examples of every task."""
    return {(split, seed): suite.load(split, 150, seed) for split in SPLITS for seed in range(3)}


@pytest.fixture(scope="session")
def items(drawn: dict[tuple[str, int], list[Example]]) -> Callable[..., list[Example]]:
    """The examples drawn: all of them, or those of one task."""

    def of(task: str | None = None) -> list[Example]:
        return [e for examples in drawn.values() for e in examples if task in (None, e.task)]

    return of


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Ten thousand documents of the corpus, a sixth of what the base reads."""
    return list(itertools.islice(corpus.documents(seed=0, copies=0.35), 10_000))
