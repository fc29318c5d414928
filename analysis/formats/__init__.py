"""One file a family of checkpoints: its file names, its key names, its scale rule.

Its first docstring line says what it reads (`--formats` prints it). A family of directories has
`recognises(path)` → bool and `read(path, options)`, one of single files `recognises(names)` and
`read(file, tensors, options)`; both give entries (`analysis.update`): an update for each module,
Skipped with a reason for each that cannot be analysed, Other for tensors that are no updates. A
variant inside a family has a file of its own, of plain functions. No linear algebra here beyond
what defines ΔW. To add one, copy the nearest file and put it into a list in `analysis.checkpoint`.
What they share: `tensors` and `shards` open files, `base` finds W0, `rule` knows r and scale,
`own` goes through the tensors of this project's own methods.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What a user says about a checkpoint beside its path.

    base: directory (or name on the hub) of the model that was trained. base_rounded: W0 was itself
    rounded after the training started from it. initial: the adapter before its training, for
    starts that change the base. direction_only: of DoRA, B·A alone. factors: the patterns of the
    names of A and of B; scale: what their product is multiplied by.
    """

    base: Path | None = None
    base_rounded: bool = False
    initial: Path | None = None
    direction_only: bool = False
    factors: tuple[str, str] | None = None
    scale: float = 1.0
