"""mlx-lm adapter: adapter_config.json and adapters.safetensors (or .npz); DoRA needs --base.

    <module>.lora_a      (d_in, r), (entries, r) of an embedding, (experts, r, d_in) of a stack
    <module>.lora_b      (r, d_out), (r, width) of an embedding, (experts, d_out, r) of a stack
    <module>.m           magnitude of DoRA, (d_out,) or (entries,)

ΔW = scale · (lora_a lora_b)ᵀ, of an expert scale · lora_b lora_a, with `scale` of lora_parameters.
ΔW of an embedding is (width, entries). Versions before num_layers multiplied scale by alpha/rank,
if their config has alpha. Earlier steps, NNNNNNN_adapters.safetensors, are read one by one. DoRA
is as in PEFT, with --base or --direction-only; fine_tune_type full has no factors.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.files import shards
from analysis.files.place import Place
from analysis.files.tensors import Stored, count, number, short
from analysis.formats import Options, dora, factors
from analysis.update import Entry, LowRankUpdate, Other, Skipped, Update

CONFIG = "adapter_config.json"
STEMS = ("adapters",)
STEP = re.compile(r"[0-9]+_adapters\.(?:safetensors|npz)")
KEY = re.compile(r"(?P<module>.+)\.(?P<role>lora_a|lora_b|m)", re.DOTALL)
ROLES = {"lora_a": "A", "lora_b": "B", "m": "m"}
# Config keys of mlx-lm alone.
KEYS = ("fine_tune_type", "lora_parameters", "lora_layers")
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embeddings")


def recognise(place: Place) -> bool:
    """Return whether a directory or a file holds an adapter of mlx-lm."""
    if place.path.is_dir():
        config = _config(place)
        if config is None:
            return shards.locate(place.path, *STEMS) is not None
        return "peft_type" not in config and any(key in config for key in KEYS)
    names = {match["role"] for name in place.tensors() if (match := KEY.fullmatch(name))}
    return "lora_a" in names or "lora_b" in names


def _config(place: Place) -> dict[str, Any] | None:
    """Return the config in a directory; None if there is none or it cannot be read."""
    try:
        return place.json(CONFIG) if (place.path / CONFIG).is_file() else None
    except CheckpointError:
        return None


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of a directory, or of one file with the config next to it, if any.

    Raises CheckpointError if there are no weights, or no scale, or if they are not factors.
    """
    if place.path.is_file():
        yield from _read(place, Place(place.path.parent), options)
        return
    file = shards.locate(place.path, *STEMS)
    steps = sorted(path.name for path in place.path.iterdir() if STEP.fullmatch(path.name))
    if file is None:
        expected = f"{STEMS[0]}.safetensors or {STEMS[0]}.npz"
        found = f", or a path of one step, such as {place.path / steps[-1]}" if steps else ""
        raise CheckpointError(
            f"{place.path}: has the {CONFIG} of mlx-lm but no weights; expected {expected}{found}"
        )
    yield from _read(place.below(file.name), place, options)
    for name in steps:
        yield Other(name, "an earlier step of this training; pass its path to read it")


def _read(place: Place, directory: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of a file; directory: where its config is, if it has one."""
    file = place.path
    config = _config(directory) or {}
    if config.get("fine_tune_type") == "full":
        raise CheckpointError(
            f"{directory.path / CONFIG}: fine_tune_type is 'full': the file holds weights, not"
            " factors; fuse them into a whole model (mlx_lm.fuse, with --dequantize if the base is"
            " quantised) and pass that, with --base DIR"
        )
    modules: dict[str, dict[str, Stored]] = {}
    for name, tensor in place.tensors().items():
        match = KEY.fullmatch(name)
        if match:
            modules.setdefault(match["module"], {})[ROLES[match["role"]]] = tensor
        else:
            yield factors.unpaired(name, file, "is not part of a pair of lora_a and lora_b")
    rank, scale = _rule(config, directory.path / CONFIG, file, options)
    W0: dict[str, Stored] = {}
    is_dora = config.get("fine_tune_type") == "dora" or any("m" in p for p in modules.values())
    if is_dora and not options.direction_only:
        if options.base is None:
            raise CheckpointError(
                f"{file}: is DoRA, which rescales the rows of W0 + B·A; pass the base weights,"
                " --base DIR, or look at B·A alone, --direction-only"
            )
        W0 = dora.weights(options, list(modules))
    for module, parts in modules.items():
        try:
            for update in _updates(module, parts, file, rank, scale):
                if not is_dora or options.direction_only:
                    yield update
                elif "m" in parts:
                    yield _decomposed(update, parts["m"], W0.get(module))
                else:
                    raise CheckpointError(f"{file}: {module}: has no m, the magnitude of DoRA")
        except CheckpointError as error:
            yield Skipped(module, str(error))


def _rule(
    config: dict[str, Any], where: Path, file: Path, options: Options
) -> tuple[int | None, float]:
    """Return the rank by the config, None if unknown, and the number that the product is times.

    where: the config's file; file: the weights. Raises CheckpointError if there is no scale.
    """
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict) or not parameters:
        if options.scale is not None:
            return None, options.scale
        found = f"{where}: lora_parameters is {short(parameters)}" if config else str(file)
        raise CheckpointError(
            f"{found}: lora_a and lora_b of mlx-lm, whose scale is in lora_parameters of its"
            f" {CONFIG}; expected that next to the weights, or --scale X"
        )
    rank = count(parameters, "rank", where) if "rank" in parameters else None
    if "scale" not in parameters and options.scale is not None:
        return rank, options.scale
    scale = number(parameters, "scale", f"{where}: lora_parameters")
    if "alpha" in parameters and "num_layers" not in config:
        if options.scale is not None:
            return rank, options.scale
        alpha = number(parameters, "alpha", f"{where}: lora_parameters")
        factor = f"{scale * alpha / rank:g}" if rank else "scale·alpha/rank"
        raise CheckpointError(
            f"{where}: has alpha = {alpha:g} and scale = {scale:g}, which early versions of mlx-lm"
            f" multiplied ({factor}), and later ones read without alpha ({scale:g}); pass the one"
            " that holds, --scale X"
        )
    return rank, scale


def _updates(
    module: str, parts: dict[str, Stored], file: Path, rank: int | None, scale: float
) -> Iterator[LowRankUpdate]:
    """Yield scale·B A of a module, or of each of its experts."""
    where = f"{file}: {module}"
    missing = [name for name, role in ROLES.items() if role != "m" and role not in parts]
    if missing:
        raise CheckpointError(f"{where}: has no {' and no '.join(missing)}; expected both factors")
    a, b = parts["A"], parts["B"]
    if len(b.shape) == 3:
        yield from _experts(module, a, b, file, rank, scale)
        return
    _check(a.shape, b.shape, rank, where)
    yield LowRankUpdate(module, b.load().T, a.load().T, scale, method="lora", source=str(file))


def _experts(
    module: str, a: Stored, b: Stored, file: Path, rank: int | None, scale: float
) -> Iterator[LowRankUpdate]:
    """Yield the update of each expert of a stack; a was (experts · r, d_in) in early versions."""
    n, _, r = b.shape
    flat = len(a.shape) == 2 and a.shape[0] == n * r
    fits = flat or (len(a.shape) == 3 and a.shape[:2] == (n, r))
    if not fits or 0 in (*a.shape, *b.shape) or (rank is not None and r != rank):
        expected = "" if rank is None else f", r = {rank} by {CONFIG}"
        raise CheckpointError(
            f"{file}: {module}: lora_b is {b.shape}, lora_a is {a.shape}; expected"
            f" (experts, d_out, r) and (experts, r, d_in){expected}"
        )
    A, B = a.load().reshape(n, r, -1), b.load()
    for i in range(n):
        yield LowRankUpdate(module, B[i], A[i], scale, f"expert{i}", "lora", str(file))


def _check(a: tuple[int, ...], b: tuple[int, ...], rank: int | None, where: str) -> None:
    """Raise CheckpointError unless the shapes are (d_in, r) and (r, d_out), with this r."""
    shapes = f"{where}: lora_a is {a}, lora_b is {b}"
    if len(a) != 2 or len(b) != 2 or 0 in (*a, *b):
        raise CheckpointError(f"{shapes}; expected matrices, (d_in, r) and (r, d_out)")
    turned = a[1] != b[0] and a[0] == b[1]
    if turned or (a[1] == b[0] and a[1] > max(a[0], b[1])):
        raise CheckpointError(
            f"{shapes}; expected (d_in, r) and (r, d_out) of mlx-lm: these are the other way round;"
            r" pass --factors '(.*)\.lora_a' '(.*)\.lora_b' --scale X"
        )
    if a[1] != b[0]:
        raise CheckpointError(f"{shapes}: inner ranks differ; expected (d_in, r) and (r, d_out)")
    if rank is not None and a[1] != rank:
        raise CheckpointError(f"{shapes}; expected r = {rank} by {CONFIG}")


def _decomposed(direction: LowRankUpdate, magnitude: Stored, W0: Stored | None) -> Update:
    """Return DoRA's update of a layer, or of an embedding, which has one norm for each entry."""
    m = int(np.prod(magnitude.shape))
    d_out, d_in = direction.shape
    name = direction.name.rpartition(".")[2]
    embedding = m == d_in and (d_out != d_in or name in EMBEDDINGS)
    return dora.update(direction, magnitude, W0, embedding, of_inputs=embedding)
