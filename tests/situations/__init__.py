"""Checkpoints that people have, each small, with the right values or the words of its refusal.

A situation writes its files into a directory and says what `python -m analysis.spectrum` must make
of them. `test_situations` runs all of them; `table` makes docs/formats.md of what came out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Made:
    """Files that were written, and what the command must make of them.

    path: the argument of the command.
    options: the other arguments.
    updates: module or module#part → ΔW, of everything that is read.
    refused: words of the reason, if anything is refused or skipped.
    remark: words of what is said on stderr although everything is read.
    status: the exit status of the command; by default 0 if all is read and 2 if nothing is.
    """

    path: Path
    options: Sequence[str] = ()
    updates: Mapping[str, np.ndarray] = field(default_factory=dict)
    refused: str = ""
    remark: str = ""
    status: int | None = None

    @property
    def expected(self) -> int:
        """The exit status that the command must have."""
        if self.status is not None:
            return self.status
        return 1 if self.refused and self.updates else 2 if self.refused else 0


@dataclass(frozen=True)
class Situation:
    """One row of docs/formats.md.

    section, title, files: the section of the table, the format, and what its files contain.
    make: writes the files into an empty directory.
    """

    section: str
    title: str
    files: str
    make: Callable[[Path], Made]

    @property
    def name(self) -> str:
        """The name of the function that makes it, the name of its test."""
        return self.make.__name__


SITUATIONS: list[Situation] = []


def situation(
    section: str, title: str, files: str
) -> Callable[[Callable[[Path], Made]], Callable[[Path], Made]]:
    """Add the decorated function to SITUATIONS."""

    def added(make: Callable[[Path], Made]) -> Callable[[Path], Made]:
        SITUATIONS.append(Situation(section, title, files, make))
        return make

    return added


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Return a float32 matrix of random numbers, the same for the same seed."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f4")


def product(B: np.ndarray, A: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Return scale · B A in float64."""
    return scale * (B.astype(float) @ A.astype(float))
