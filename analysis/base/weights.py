"""Find the weight W0 of the base for the module that an update changes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.tensors import Stored, read_json
from analysis.formats import base, full, peft, ties
from analysis.update import DenseUpdate, Update

# Layers of Transformers whose weight is (entries, width) and acts as its transpose.
EMBEDDINGS = (
    "embed_tokens", "embed_positions", "wte", "wpe", "shared",
    "word_embeddings", "position_embeddings", "token_type_embeddings",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Base:
    """The weights of the base, by the names that its updates have.

    file: the file of the weights, for messages.
    conv1d: True if layers with a name in `formats.base.CONV1D` are stored as W0ᵀ.
    """

    file: Path
    weights: dict[str, Stored]
    conv1d: bool

    def weight(self, update: Update) -> np.ndarray:
        """Read W0 (d_out, d_in) of the update's module; float64 if stored as float64, else float32.

        Transposed and flattened as ΔW is: y = (W0 + ΔW) x. Raises CheckpointError if W0 is missing,
        has another shape, is quantised, holds NaN or Inf, or cannot be told from W0ᵀ.
        """
        where = f"{self.file}: {update.name}"
        stored = self.weights.get(update.name)
        if stored is None:
            raise CheckpointError(
                f"{where}: its weight is not in the base; expected {update.name}.weight (of tied"
                " weights only one is stored)"
            )
        if _of_rows(update):
            raise CheckpointError(
                f"{where}: is {stored.shape} in the base, and {update.part} of {update.source} is"
                f" {update.shape}, a block of rows; expected an update of the whole layer"
            )
        if stored.scaled:
            raise CheckpointError(
                f"{where}: its weight in the base is scaled by a tensor of its own (quantised);"
                " expected floating point"
            )
        try:
            transposed = len(stored.shape) == 2 and _transposed(update, stored, self.conv1d)
            W = base.as_matrix(_of_part(stored.load(), update), update.shape, transposed)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None
        W0 = np.array(W, np.float64 if stored.dtype == "F64" else np.float32, order="C")
        if not (np.isfinite(W0.min()) and np.isfinite(W0.max())):
            raise CheckpointError(f"{where}: W0 holds NaN or Inf; expected finite numbers")
        return W0


def open_base(path: str | Path, modules: Iterable[str]) -> Base:
    """Open the base at `path`, a directory or a name on the hub, for updates of these modules.

    The names of the modules and of the weights may differ by a prefix, which is found from all of
    them together; a head that is tied is its embedding. Raises CheckpointError if there is no
    model, if it is quantised, or if it has none of the modules.
    """
    place = Place(base.directory(Path(path)))
    file, stored = base.open_model(place)
    names = list(dict.fromkeys(modules))
    aligned = base.align([f"{name}.weight" for name in names], stored)
    weights = {name: stored[name] for name in names if name in stored}  # parameters of no module
    weights |= {our.removesuffix(".weight"): stored[their] for our, their in aligned.items()}
    embedding = ties.embedding(stored) if ties.is_tied(place, stored) else ""
    if embedding:
        heads = (n for n in names if n not in weights and ties.is_head(f"{n}.weight"))
        weights |= dict.fromkeys(heads, stored[embedding])
    if names and not weights:
        raise CheckpointError(
            f"{file}: has no weight of {names[0]}, nor of any other module of the checkpoint;"
            " expected the base of the checkpoint"
        )
    return Base(file, weights, base.has_conv1d(place))


def _of_rows(update: Update) -> bool:
    """Return whether the update is a block of the layer's rows."""
    return not isinstance(update, DenseUpdate) and update.of_rows


def _as_stored(update: Update) -> bool:
    """Return whether ΔW is a difference of stored tensors, not transposed for any layer."""
    return update.method == "full" and Path(update.source).name != full.WEIGHTS


def _of_part(W: np.ndarray, update: Update) -> np.ndarray:
    """Return the matrix of the update's expert if W is a stack of experts; else W itself."""
    expert = re.fullmatch(r"expert(\d+)", update.part)
    if not (expert and W.ndim == 3 and _as_stored(update)):
        return W
    if int(expert[1]) >= len(W):
        raise CheckpointError(f"is {W.shape} in the base; expected one with {update.part}")
    return W[int(expert[1])]


def _transposed(update: Update, stored: Stored, conv1d: bool) -> bool:
    """Return whether W0 is stored as W0ᵀ, for layers whose shape does not show it."""
    if _as_stored(update):
        return False
    config = Path(update.source).parent / peft.CONFIG
    settings = read_json(config) if update.source and config.is_file() else {}
    if settings.get("layer_replication"):
        raise CheckpointError(
            f"layer_replication is set in {config}: one layer of the base is used as several;"
            " expected an adapter without it"
        )
    leaf = update.name.rpartition(".")[2]
    if conv1d or leaf in EMBEDDINGS:
        return leaf in EMBEDDINGS or leaf in base.CONV1D
    if settings.get("fan_in_fan_out") and stored.shape[0] == stored.shape[1]:
        raise CheckpointError("cannot tell Conv1D from Linear: W0 is square")
    return False
