"""The entries of a checkpoint: an update ΔW as factors or as a matrix, or a reason why not.

ΔW is B A (`LowRankUpdate`), a Kronecker product (`KroneckerUpdate`) or a matrix (`DenseUpdate`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """ΔW = scale · B @ A, never multiplied out.

    name: dotted path of the module in the base.
    B (d_out, r), A (r, d_in): the factors, in the dtype in which they are stored or computed.
    part: distinguishes several updates of one module (a task, a head); "" if there is only one.
    method: how the model was fine-tuned.
    source: the file that the update comes from, for messages.
    stacked: the number of modules of equal rank that are put side by side in the columns of B and
        the rows of A (the n of MultiLoRA).
    of_rows: True if the part is a block of the layer's rows, which shares no output with the other
        parts.
    of_parts: True if the update is computed from the other parts (a mean of heads), so that it
        must not be compared with them.
    dtypes: the dtypes of the stored numbers that B and A were computed from, the coarsest if there
        are several; None if B and A are as they were stored.
    sizes: the shapes of B and A, the sizes of the stored numbers if they are larger than B and A,
        which are then differences; None if they are not.
    inner: (r, r), if stored numbers multiply whole columns of B, so that their rounding makes ΔW
        scale · B (1 + N) A: the variances of N, in units of those of a relative rounding.
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
    dtypes: tuple[np.dtype, np.dtype] | None = None
    sizes: tuple[np.ndarray, np.ndarray] | None = None
    inner: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of ΔW."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def r(self) -> int:
        """The number of columns of B."""
        return self.B.shape[1]

    @property
    def stored(self) -> tuple[np.dtype, np.dtype]:
        """The dtypes of B and A in the file: these limit how well ΔW is known."""
        return self.dtypes or (self.B.dtype, self.A.dtype)

    @property
    def capacity(self) -> int:
        """The largest rank that the parametrisation allows: min(r, d_out, d_in)."""
        return min(self.r, *self.shape)

    def unstacked(self) -> list["LowRankUpdate"]:
        """Return the stacked modules as parts "1" … "n"; their sum is this update."""
        factors = zip(np.hsplit(self.B, self.stacked), np.vsplit(self.A, self.stacked), strict=True)
        return [
            replace(self, B=B, A=A, part=f"{self.part}{i}", stacked=1, inner=None)
            for i, (B, A) in enumerate(factors, 1)
        ]

    def dense(self) -> np.ndarray:
        """ΔW multiplied out, (d_out, d_in), float64; for tests and small matrices."""
        return self.scale * (float64(self.B) @ float64(self.A))


@dataclass(frozen=True, eq=False)
class Factor:
    """One of the two matrices of a Kronecker product, whole or as a product left @ right.

    left (m, l), right (l, n): as they are stored or computed; right None if `left` is whole.
    dtype: the coarsest dtype of the stored numbers that they were computed from.
    sizes: (l, n), the sizes of the stored numbers in `right` if these were computed; None if not.
    """

    left: np.ndarray
    right: np.ndarray | None
    dtype: np.dtype
    sizes: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the product."""
        return self.left.shape[0], (self.left if self.right is None else self.right).shape[1]

    @property
    def r(self) -> int:
        """The largest rank that the product can have."""
        return min(self.left.shape[1], *self.shape)

    def dense(self) -> np.ndarray:
        """The product, (m, n), float64."""
        left = float64(self.left)
        return left if self.right is None else left @ float64(self.right)


@dataclass(frozen=True, eq=False)
class KroneckerUpdate:
    """ΔW = scale · first ⊗ second, never multiplied out.

    first (m1, n1), second (m2, n2): the two matrices; ΔW is (m1·m2, n1·n2).
    name, scale, part, method, source, of_rows, of_parts: as for `LowRankUpdate`.
    """

    name: str
    first: Factor
    second: Factor
    scale: float = 1.0
    part: str = ""
    method: str = ""
    source: str = ""
    of_rows: bool = False
    of_parts: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of ΔW."""
        (m1, n1), (m2, n2) = self.first.shape, self.second.shape
        return m1 * m2, n1 * n2

    @property
    def r(self) -> int | None:
        """The capacity; None if only the shape limits the rank, as for a dense update."""
        return self.capacity if self.capacity < min(self.shape) else None

    @property
    def capacity(self) -> int:
        """The largest rank that the parametrisation allows, the product of those of the two."""
        return self.first.r * self.second.r

    def dense(self) -> np.ndarray:
        """ΔW multiplied out, (d_out, d_in), float64; for tests and small matrices."""
        return self.scale * np.kron(self.first.dense(), self.second.dense())


@dataclass(frozen=True, eq=False)
class DenseUpdate:
    """ΔW as a matrix, which is read when it is needed.

    name, part, method, source: as for `LowRankUpdate`.
    shape: (d_out, d_in) of ΔW.
    load: returns ΔW, float32 or float64.
    floor: the noise floor of ΔW (`analysis.numerics.floor.noise_floor`), or a function that
        computes it; None if nothing was rounded.
    noise: a function that computes the root mean square of the rounding
        (`analysis.numerics.denoise.noise_size`); None if only the floor is known.
    """

    name: str
    shape: tuple[int, int]
    load: Callable[[], np.ndarray]
    floor: float | Callable[[], float] | None = None
    part: str = ""
    method: str = ""
    source: str = ""
    noise: Callable[[], float] | None = None

    @property
    def capacity(self) -> int:
        """The largest rank that the shape allows: min(d_out, d_in)."""
        return min(self.shape)

    def dense(self) -> np.ndarray:
        """ΔW, (d_out, d_in), float64."""
        return float64(self.load())


@dataclass(frozen=True)
class Skipped:
    """An update that was found and could not be analysed; name "" stands for all of a checkpoint.

    reason: one line for the user, with file and module.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Other:
    """A tensor that is not an update of a weight matrix, such as a saved head or a bias.

    what: what it is, for the list of tensors that are not analysed.
    """

    name: str
    what: str

    def listed(self, run: str) -> dict[str, str]:
        """Return the entry as results list it; run: the key of its run."""
        return {"run": run, "name": self.name, "what": self.what}


@dataclass(frozen=True)
class Remark(Other):
    """What was assumed in reading a file, which the user should know; name: that of the file."""

    def listed(self, run: str) -> dict[str, str]:
        """Return the entry as results list it, marked as a remark; run: the key of its run."""
        return super().listed(run) | {"kind": "remark"}


Update = LowRankUpdate | KroneckerUpdate | DenseUpdate
Entry = LowRankUpdate | KroneckerUpdate | DenseUpdate | Skipped | Other


def float64(x: np.ndarray) -> np.ndarray:
    """Return x in float64 without rounding; x itself if it is float64 already.

    >>> float64(np.array([0.5, 2], np.float16))
    array([0.5, 2. ])
    """
    with np.errstate(invalid="ignore"):  # signalling NaNs, which are reported later
        return x.astype(np.float64, copy=False)


def coarsest(*dtypes: np.dtype) -> np.dtype:
    """Return the floating-point dtype with the largest spacing at 1.

    >>> coarsest(np.dtype(np.float32), np.dtype(np.float16))
    dtype('float16')
    """
    return max(dtypes, key=lambda dtype: float(ml_dtypes.finfo(dtype).eps))
