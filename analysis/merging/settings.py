"""The settings of a merge, of which each method reads its own."""

from dataclasses import dataclass

from analysis import UserError

# Shares of entries that are kept: TIES keeps the largest 20 % (its paper's default); DARE half.
DENSITY = {"ties": 0.2, "knots": 0.2, "core": 0.2, "dare": 0.5}


@dataclass(frozen=True)
class Settings:
    """What a method may be told.

    density: share of the entries that ties, knots, core and dare keep, in (0, 1]; None: DENSITY.
    seed: of the random choice that dare makes.
    keep: how many singular directions of each adapter tsv keeps; None: the paper's share 1/n of
        the layer's min(d_out, d_in), of which a LoRA has often fewer.
    rank: the rank to which the result will be cut; None: it is not.

    Raises UserError for a value out of range.
    """

    density: float | None = None
    seed: int = 0
    keep: int | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.density is not None and not 0 < self.density <= 1:
            raise UserError(f"--density {self.density:g}; expected a share in (0, 1]")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}; expected 0 or more")
        for name, value in (("--keep", self.keep), ("--rank", self.rank)):
            if value is not None and value < 1:
                raise UserError(f"{name} {value}; expected at least 1")

    def share(self, method: str) -> float:
        """Return the density of a method: the one given, or its default."""
        return DENSITY[method] if self.density is None else self.density
