"""What a checkpoint holds, module by module: ΔW as factors, ΔW as a matrix, or neither."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """ΔW = scale · B @ A, never multiplied out.

    name: dotted path of the module in the base model; B (d_out, r), A (r, d_in), in the dtype
    they are stored in. part tells updates of one module apart (a task, a head), else "". source:
    the file it comes from, for messages. stacked: how many modules of equal rank were put side
    by side, in the columns of B and the rows of A (the n of MultiLoRA). of_rows: whether the part
    is a block of the layer's rows, so that it shares no output with the other parts. of_parts:
    whether it is made of the other parts (a mean of heads), so that it is not one beside them.
    """

    name: str
    B: np.ndarray
    A: np.ndarray
    scale: float = 1.0
    part: str = ""
    method: str = ""
    source: str = ""
    stacked: int = 1
    of_rows: bool = False
    of_parts: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of ΔW."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def capacity(self) -> int:
        """The highest rank that the parametrisation allows: min(r, d_out, d_in)."""
        return min(self.B.shape[1], *self.shape)

    def unstacked(self) -> list["LowRankUpdate"]:
        """The modules that were put side by side, parts "1" … "n"; they sum to this update."""
        pairs = zip(np.hsplit(self.B, self.stacked), np.vsplit(self.A, self.stacked), strict=True)
        return [
            replace(self, B=B, A=A, part=f"{self.part}{i}", stacked=1)
            for i, (B, A) in enumerate(pairs, 1)
        ]

    def dense(self) -> np.ndarray:
        """ΔW (d_out, d_in), float64; for tests and small matrices."""
        return self.scale * (float64(self.B) @ float64(self.A))


@dataclass(frozen=True, eq=False)
class DenseUpdate:
    """ΔW as a matrix that `load` reads when it is needed, (d_out, d_in), float32 or float64.

    floor: upper estimate of the largest singular value of the rounding noise in ΔW
    (`analysis.numerics.floor.noise_floor`), or what measures it when it is needed; None where
    nothing was rounded.
    """

    name: str
    shape: tuple[int, int]
    load: Callable[[], np.ndarray]
    floor: float | Callable[[], float] | None = None
    part: str = ""
    method: str = ""
    source: str = ""

    @property
    def capacity(self) -> int:
        """min(d_out, d_in)."""
        return min(self.shape)

    def dense(self) -> np.ndarray:
        """ΔW (d_out, d_in), float64."""
        return float64(self.load())


@dataclass(frozen=True)
class Skipped:
    """An update that is there and cannot be analysed; name "" stands for the whole checkpoint."""

    name: str
    reason: str


@dataclass(frozen=True)
class Other:
    """A tensor that is not an update of a weight matrix: a saved head, a bias."""

    name: str
    what: str


Update = LowRankUpdate | DenseUpdate
Entry = LowRankUpdate | DenseUpdate | Skipped | Other


def float64(x: np.ndarray) -> np.ndarray:
    """x in float64, exactly; x itself where it is float64 already."""
    with np.errstate(invalid="ignore"):  # a signalling NaN, which is found later
        return x.astype(np.float64, copy=False)
