"""Read the weights of the model that was trained, and match their names with a checkpoint's."""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.files import distributed, foreign, hub, shards
from analysis.files.place import Place
from analysis.files.tensors import FLOATS, Stored
from analysis.update import float64

CONFIG = "config.json"
STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")
# Models of Transformers with Conv1D layers, whose weight is W0ᵀ, and the names of those layers.
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D = ("c_attn", "q_attn", "c_proj", "c_fc")
# Endings of the tensors that a float8 weight is multiplied by.
SCALES = ("_scale", "_scale_inv")
ROWS = 1024  # rows that are in float64 at a time


def directory(base: Path) -> Path:
    """Return the local directory or file of a model: `base`, or the hub's copy of that name.

    Raises CheckpointError if there is neither.
    """
    return hub.directory(base)


def locate(path: Path) -> Path | None:
    """Return the file, the index or the metadata with a model's weights; None if missing.

    path: a directory; or a file, which is returned.
    """
    if path.is_file():
        return path
    return shards.locate(path, *STEMS) or distributed.locate(path)


def open_model(place: Place) -> tuple[Path, dict[str, Stored]]:
    """Return the weight file or index of a model's directory, and name → Stored.

    place: a directory, or a file of weights. Raises CheckpointError if there are no weights, or if
    they are quantised.
    """
    file = locate(place.path)
    if file is None:
        raise CheckpointError(
            f"{place.path}: {foreign.explain(place.path) or 'no weights here'}; expected"
            f" {STEMS[0]}.safetensors, its index, or pytorch_model.bin"
        )
    if (place.path / CONFIG).is_file():  # False for a file of weights
        quantised = place.json(CONFIG).get("quantization_config")
        if quantised:
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
            raise CheckpointError(
                f"{place.path / CONFIG}: the weights are quantised ({str(method)[:40]}); expected"
                " floating point, as dequantize() gives"
            )
    tensors = dict(place.tensors(file))
    for name in [name for name in tensors if name.endswith(SCALES)]:
        weight = name.removesuffix("_inv").removesuffix("_scale")
        if weight in tensors:
            tensors[weight] = replace(tensors[weight], scaled=True)
    return file, tensors


def has_conv1d(place: Place) -> bool:
    """Return whether the layers of the model that have a name of CONV1D are Conv1D layers."""
    config = place.json(CONFIG) if (place.path / CONFIG).is_file() else {}
    return config.get("model_type") in CONV1D_MODELS


def align(ours: Collection[str], theirs: Collection[str]) -> dict[str, str]:
    """Return our name → their name, without the one prefix on either side that matches most names.

    `model.layers.0.q.weight` of a causal model is `layers.0.q.weight` of the bare model. Names that
    are left, such as a head's, are matched without another prefix, if they are equal then. Names
    without a match are left out.
    """
    cuts = list(itertools.product(_prefixes(ours), _prefixes(theirs)))
    best: dict[str, str] = {}
    for cut in cuts:
        matches = _matches(ours, theirs, *cut)
        if len(matches) > len(best):
            best = matches
    for cut in cuts:
        matched = set(best.values())
        left = [name for name in ours if name not in best]
        best |= _matches(left, [name for name in theirs if name not in matched], *cut)
    return best


def _matches(
    ours: Collection[str], theirs: Collection[str], cut_ours: str, cut_theirs: str
) -> dict[str, str]:
    """Return our name → their name where both are equal without these prefixes.

    {} if two of our names have the same match.
    """
    known = {name.removeprefix(cut_theirs): name for name in theirs}
    pairs = {name: known.get(name.removeprefix(cut_ours), "") for name in ours}
    matches = {name: other for name, other in pairs.items() if other}
    return matches if len(set(matches.values())) == len(matches) else {}


def _prefixes(names: Collection[str]) -> list[str]:
    """Return "" and the prefixes of up to three components that most of the names share.

    A prefix ends before the first number, and leaves at least two components of the name.
    """
    shared: Counter[str] = Counter()
    for name in names:
        components = name.split(".")[:-2]
        words = list(itertools.takewhile(lambda component: not component.isdigit(), components))
        shared.update(".".join(words[:n]) + "." for n in range(1, min(3, len(words)) + 1))
    return ["", *(prefix for prefix, count in shared.items() if 2 * count > len(names))]


def as_matrix(W: np.ndarray, shape: tuple[int, int], transposed: bool) -> np.ndarray:
    """Return W as (d_out, d_in): a kernel flattened, Conv1D and embeddings transposed.

    W: the weight as it is stored.
    shape: the shape of the result; an array that fits only after a transposition is transposed.
    transposed: True if W is stored as W0ᵀ.

    Raises CheckpointError if W cannot become `shape`.
    """
    matrix = W.reshape(W.shape[0], math.prod(W.shape[1:])) if W.ndim else W.reshape(1, 1)
    if matrix.T.shape == shape and (transposed or matrix.shape != shape):
        matrix = matrix.T
    if matrix.shape != shape:
        raise CheckpointError(f"is {W.shape} in the base; expected {shape}")
    return matrix


def change(W: Stored, W0: Stored | None) -> str:
    """Describe how a tensor that is not an update differs from the base, in words."""
    if W0 is None:
        return "not in the base"
    if W.shape != W0.shape:
        return f"{W.shape}, in the base {W0.shape}: not compared"
    if W.scaled or W0.scaled:
        return "scaled by another tensor (quantised): not compared"
    if W.dtype not in FLOATS or W0.dtype not in FLOATS:
        return f"{W.dtype}, in the base {W0.dtype}: not compared"
    return f"change of norm {distance(W.load(), W0.load()):.3g}"


def distance(W: np.ndarray, W0: np.ndarray) -> float:
    """Return ‖W − W0‖_F, with neither array in float64 as a whole."""
    pairs = zip(_blocks(W), _blocks(W0), strict=True)
    with np.errstate(all="ignore"):
        return float(np.sqrt(sum(float(np.sum((a - b) ** 2)) for a, b in pairs)))


def _blocks(W: np.ndarray) -> Iterator[np.ndarray]:
    """Yield W in float64, ROWS rows at a time."""
    W = np.atleast_1d(W)
    for i in range(0, len(W) if W.size else 0, ROWS):  # (2**40, 0) has many rows of nothing
        yield float64(W[i : i + ROWS])
