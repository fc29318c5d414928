"""Readers of checkpoints: one file per family, with its file names, tensor names and scale rule.

A family is a module with two functions, `recognise` and `read` (`Family`). `read` yields entries
(`analysis.update`): an update for each module, Skipped with a reason for each module that cannot
be analysed, and Other for tensors that are not updates. `--formats` prints the first line of its
docstring. A variant within a family has a file of its own, with plain functions. There is no
linear algebra here beyond the definition of ΔW.

To add a family, copy the nearest file and put it into one list of `analysis.checkpoint`: FORMATS
if it reads directories, FILES if it reads single files.

Shared by the families: `base` finds W0, `ties` what is tied to what, `rule` and `stated` give r and
scale, `orientation` and `fused` what shapes mean, `claims` bounds what a config asks for, and `own`
reads the tensors of this project's own methods. `analysis.files` opens what they read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from analysis.files.place import Place
from analysis.update import Entry


@dataclass(frozen=True)
class Options:
    """Options for reading a checkpoint: facts that its files do not give.

    base: directory of the model that was trained, or its name on the hub.
    base_rounded: True if W0 was itself rounded after the training had started from it.
    initial: the adapter before its training, needed for starts that change the base.
    direction_only: True to read B·A alone from DoRA.
    factors: patterns of the names of A and of B, for files of unknown names.
    transposed: True if the factors are stored for x @ A @ B: A (d_in, r) and B (r, d_out).
    blocks: the rows of each block of a fused layer, in their order; () if unknown.
    experts_first: True if the columns of B of stacked experts are grouped by expert, not by rank.
    scale: the number that B @ A is multiplied by where no file gives it; None if unknown.
    revision: branch, tag or commit of a checkpoint on the hub; None for the default branch.
    """

    base: Path | None = None
    base_rounded: bool = False
    initial: Path | None = None
    direction_only: bool = False
    factors: tuple[str, str] | None = None
    transposed: bool = False
    blocks: tuple[int, ...] = ()
    experts_first: bool = False
    scale: float | None = None
    revision: str | None = None

    @property
    def scale_or_one(self) -> float:
        """`scale`, or 1 if it is not given."""
        return 1.0 if self.scale is None else self.scale


class Family(Protocol):
    """A module that reads one family of checkpoints."""

    __name__: str

    def recognise(self, place: Place) -> bool:
        """Return whether the checkpoint at `place` belongs to this family, even if it is broken."""

    def read(self, place: Place, options: Options) -> Iterator[Entry]:
        """Yield the entries of a checkpoint that was recognised.

        Raises CheckpointError if the checkpoint as a whole cannot be read.
        """


class DirectoryFamily(Family, Protocol):
    """A family whose checkpoints are directories."""

    @property
    def STEMS(self) -> tuple[str, ...]:
        """Names of the weight file in the directory, without suffix; the first one wins."""
