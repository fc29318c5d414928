"""The model that was trained: its weights, by the names that its checkpoint gives them."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.formats import shards
from analysis.formats.tensors import FLOATS, Stored, read_json
from analysis.update import float64

CONFIG = "config.json"
STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")
# Transformers' models with Conv1D, whose weight is W0ᵀ, and the names of those layers.
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D = ("c_attn", "q_attn", "c_proj", "c_fc")
# Beside a float8 weight: its values mean nothing without these.
SCALES = ("_scale", "_scale_inv")
ROWS = 1024  # in float64 at a time


def directory(base: Path) -> Path:
    """The local directory of a model: `base` itself, or what the hub has under that name."""
    if base.exists():
        return base
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(base)) or str(base).startswith("."):
        raise CheckpointError(f"{base}: no such file or directory")
    import huggingface_hub

    files = ["config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json"]
    try:
        return Path(huggingface_hub.snapshot_download(str(base), allow_patterns=files))
    except Exception as error:  # of the network, the hub, the cache
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{base}: no such directory, and not on the hub: {reason}") from None


def open_model(path: Path) -> tuple[Path, dict[str, Stored]]:
    """Where a Transformers directory keeps its weights, and name → Stored.

    Raises CheckpointError where there are none, or where they are quantised.
    """
    file = shards.locate(path, *STEMS)
    if file is None:
        raise CheckpointError(
            f"{path}: no weights here; expected {STEMS[0]}.safetensors, its"
            " index, or pytorch_model.bin"
        )
    if (path / CONFIG).is_file():
        quantised = read_json(path / CONFIG).get("quantization_config")
        if quantised:
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
            raise CheckpointError(
                f"{path / CONFIG}: the weights are quantised ({str(method)[:40]}); expected"
                " floating point, as dequantize() gives"
            )
    tensors = shards.open_located(file)
    for name in [name for name in tensors if name.endswith(SCALES)]:
        weight = name.removesuffix("_inv").removesuffix("_scale")
        if weight in tensors:
            tensors[weight] = replace(tensors[weight], scaled=True)
    return file, tensors


def has_conv1d(path: Path) -> bool:
    """Whether the layers of the model at `path` that are called as in CONV1D are of that kind."""
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    return config.get("model_type") in CONV1D_MODELS


def align(ours: Collection[str], theirs: Collection[str]) -> dict[str, str]:
    """Our name → theirs, after the one prefix on either side that lets most names meet.

    `model.layers.0.q.weight` of a causal model is `layers.0.q.weight` of the bare one.
    """
    best: dict[str, str] = {}
    for cut_theirs in _prefixes(theirs):
        known = {name.removeprefix(cut_theirs): name for name in theirs}
        for cut_ours in _prefixes(ours):
            pairs = {name: known.get(name.removeprefix(cut_ours), "") for name in ours}
            met = {name: other for name, other in pairs.items() if other}
            if len(met) > len(best) and len(set(met.values())) == len(met):
                best = met
    return best


def _prefixes(names: Collection[str]) -> list[str]:
    """ "", and the beginnings that most of the names have: no numbers, and not all but the leaf."""
    shared: Counter[str] = Counter()
    for name in names:
        components = name.split(".")[:-2]
        words = list(itertools.takewhile(lambda component: not component.isdigit(), components))
        shared.update(".".join(words[:n]) + "." for n in range(1, min(3, len(words)) + 1))
    return ["", *(prefix for prefix, count in shared.items() if 2 * count > len(names))]


def as_matrix(W: np.ndarray, shape: tuple[int, int], transposed: bool) -> np.ndarray:
    """W as (d_out, d_in): a convolution's kernel flattened, Conv1D and embeddings turned.

    Raises CheckpointError where it does not become `shape`.
    """
    matrix = W.reshape(W.shape[0], math.prod(W.shape[1:])) if W.ndim else W.reshape(1, 1)
    if matrix.T.shape == shape and (transposed or matrix.shape != shape):
        matrix = matrix.T
    if matrix.shape != shape:
        raise CheckpointError(f"is {W.shape} in the base; expected {shape}")
    return matrix


def change(W: Stored, W0: Stored | None) -> str:
    """What became of a tensor that is no update, in words."""
    if W0 is None:
        return "not in the base"
    if W.shape != W0.shape:
        return f"{W.shape}, in the base {W0.shape}: not compared"
    if W.scaled or W0.scaled:
        return "scaled by a tensor of its own (quantised): not compared"
    if W.dtype not in FLOATS or W0.dtype not in FLOATS:
        return f"{W.dtype}, in the base {W0.dtype}: not compared"
    return f"change of norm {distance(W.load(), W0.load()):.3g}"


def distance(W: np.ndarray, W0: np.ndarray) -> float:
    """‖W − W0‖_F, without either in float64 as a whole."""
    pairs = zip(_blocks(W), _blocks(W0), strict=True)
    with np.errstate(all="ignore"):
        return float(np.sqrt(sum(float(np.sum((a - b) ** 2)) for a, b in pairs)))


def _blocks(W: np.ndarray) -> Iterator[np.ndarray]:
    W = np.atleast_1d(W)
    for i in range(0, len(W), ROWS):
        yield float64(W[i : i + ROWS])
