"""One file a family of checkpoints: its file names, its key names, its scale rule.

Each has a first docstring line that says what it reads, `recognises(path)` → bool and
`read(path, options)` → iterator of entries (`analysis.update`): an update for each module, Skipped
with a reason for each that cannot be analysed, Other for tensors that are no updates. No linear
algebra here beyond what defines ΔW. To add a family, copy the nearest file and put it into the
list in `analysis.checkpoint`.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What a user says about a checkpoint beside its path.

    base: directory (or name on the hub) of the model that was trained. base_rounded: W0 was itself
    rounded after the training started from it. initial: the adapter before its training, for
    starts that change the base. direction_only: of DoRA, B·A alone. factors: the patterns of the
    names of B and of A; scale: what their product is multiplied by.
    """

    base: Path | None = None
    base_rounded: bool = False
    initial: Path | None = None
    direction_only: bool = False
    factors: tuple[str, str] | None = None
    scale: float = 1.0
