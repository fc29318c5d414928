"""The model that was trained → W0 of the module that an update changes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.formats import base, full, peft
from analysis.formats.place import Place
from analysis.formats.tensors import Stored, read_json
from analysis.update import DenseUpdate, Update

# Layers of Transformers whose weight is (entries, width), and acts as its transpose.
EMBEDDINGS = (
    *("embed_tokens", "embed_positions", "wte", "wpe", "shared"),
    *("word_embeddings", "position_embeddings", "token_type_embeddings"),
)


@dataclass(frozen=True, eq=False)
class Base:
    """The weights of the model that was trained, by the names that its updates have.

    conv1d: its layers that are called as in `formats.base.CONV1D` are stored as W0ᵀ.
    """

    file: Path
    weights: dict[str, Stored]
    conv1d: bool

    def weight(self, update: Update) -> np.ndarray:
        """W0 (d_out, d_in) of the update's module, read now; float64 if stored so, else float32.

        Turned and flattened as ΔW is: y = (W0 + ΔW) x. Raises CheckpointError where W0 is
        missing, of another shape, quantised, NaN or Inf, or cannot be told from W0ᵀ.
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
            turned = len(stored.shape) == 2 and _turned(update, stored, self.conv1d)
            W = base.as_matrix(_of_part(stored.load(), update), update.shape, turned)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None
        W0 = np.array(W, np.float64 if stored.dtype == "F64" else np.float32, order="C")
        if not (np.isfinite(W0.min()) and np.isfinite(W0.max())):
            raise CheckpointError(f"{where}: W0 holds NaN or Inf; expected finite numbers")
        return W0


def open_base(path: str | Path, modules: Iterable[str]) -> Base:
    """The model at `path`, a directory or a name on the hub, for updates of these names.

    Names meet after one prefix of either side, which all of them together tell. Raises
    CheckpointError where there is no model, where it is quantised, or where no name meets.
    """
    place = Place(base.directory(Path(path)))
    file, stored = base.open_model(place)
    names = list(dict.fromkeys(modules))
    aligned = base.align([f"{name}.weight" for name in names], stored)
    weights = {name: stored[name] for name in names if name in stored}  # a bare parameter
    weights |= {our.removesuffix(".weight"): stored[their] for our, their in aligned.items()}
    if names and not weights:
        raise CheckpointError(
            f"{file}: has no weight of {names[0]}, nor of any other module of the checkpoint; is"
            " that its base?"
        )
    return Base(file, weights, base.has_conv1d(place))


def _of_rows(update: Update) -> bool:
    return not isinstance(update, DenseUpdate) and update.of_rows


def _as_stored(update: Update) -> bool:
    """Whether ΔW is a difference of tensors as they are stored, Conv1D and embeddings too."""
    return update.method == "full" and Path(update.source).name != full.WEIGHTS


def _of_part(W: np.ndarray, update: Update) -> np.ndarray:
    """The expert that an update is of, in a stack of them."""
    expert = re.fullmatch(r"expert(\d+)", update.part)
    if not (expert and W.ndim == 3 and _as_stored(update)):
        return W
    if int(expert[1]) >= len(W):
        raise CheckpointError(f"is {W.shape} in the base; expected one with {update.part}")
    return W[int(expert[1])]


def _turned(update: Update, stored: Stored, conv1d: bool) -> bool:
    """Whether W0 is stored as W0ᵀ, where its shape does not tell."""
    if _as_stored(update):
        return False
    config = Path(update.source).parent / peft.CONFIG
    says = read_json(config) if update.source and config.is_file() else {}
    if says.get("layer_replication"):
        raise CheckpointError(
            f"layer_replication is set in {config}: a layer of the base stands for several"
        )
    leaf = update.name.rpartition(".")[2]
    if conv1d or leaf in EMBEDDINGS:
        return leaf in EMBEDDINGS or leaf in base.CONV1D
    if says.get("fan_in_fan_out") and stored.shape[0] == stored.shape[1]:
        raise CheckpointError("cannot tell Conv1D from Linear: W0 is square")
    return False
