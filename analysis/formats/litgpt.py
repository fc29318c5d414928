"""LoRA of LitGPT (lit-gpt): lit_model.pth.lora, with query, key and value in one fused layer.

    transformer.h.<i>.attn.qkv.lora_A      (m·r, d_in)           for m of query, key and value
    transformer.h.<i>.attn.qkv.lora_B      (rows of these, r)    attn.attn in old versions
    transformer.h.<i>.attn.proj.lora_A …   (r, d_in), lora_B (d_out, r); also mlp.fc_1, lm_head, …

ΔW = lora_alpha/lora_r · B @ A for each block. A query has n_head · head_size rows, a key and a
value n_query_groups · head_size. model_config.yaml or lit_config.json gives these, and
hyperparameters.yaml lora_r, lora_alpha, lora_query, lora_key and lora_value, in the same directory.
Without the former, --blocks is needed; without the latter, the scale is 1 and a remark says so (see
--scale).
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.tensors import Stored, count, number
from analysis.formats import Options, factors, fused, loralib, orientation, stated
from analysis.update import Entry, LowRankUpdate, Skipped

WEIGHTS = "lit_model.pth.lora"
STEMS = ()
MODELS = ("model_config.yaml", "lit_config.json")
SETTINGS = "hyperparameters.yaml"
BLOCKS = ("query", "key", "value")
OURS = re.compile(
    r"(?:.+\.)?transformer\.h\.\d+\.(?:attn\.(?:qkv|attn|proj)"
    r"|mlp\.(?:experts\.\d+\.)?(?:fc|fc_1|fc_2|proj|gate))\.lora_[AB]",
    re.DOTALL,
)
FUSED = re.compile(r"(?:.+\.)?transformer\.h\.\d+\.attn\.(?:qkv|attn)", re.DOTALL)
# A setting on a line of its own in a YAML file; what is nested is indented.
LINE = re.compile(r"([A-Za-z_]\w*):[ \t]+(\S.*)")
LONGEST = 10**6  # bytes of a YAML file


def recognise(place: Place) -> bool:
    """Return whether a directory holds LitGPT's file, or a file has its names."""
    if place.path.is_file():
        return any(OURS.fullmatch(name) for name in place.tensors())
    return (place.path / WEIGHTS).is_file()


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates; a fused layer has one for each of its trained blocks.

    Raises CheckpointError if a config in the directory is broken.
    """
    file = place.path if place.path.is_file() else place.path / WEIGHTS
    modules: dict[str, dict[str, Stored]] = {}
    for name, tensor in place.tensors(file).items():
        if match := loralib.KEY.fullmatch(name):
            modules.setdefault(match["module"], {})[match["role"]] = tensor
        else:
            yield factors.unpaired(name, file, "is not part of a pair of factors")
    rows, trained = _rows(file.parent), _settings(file.parent / SETTINGS)
    modules = orientation.oriented(modules, str(file), options)
    r = None
    where = str(file.parent / SETTINGS)
    if "lora_alpha" in trained or "lora_r" in trained:
        r = count(trained, "lora_r", where)
        scale = number(trained, "lora_alpha", where) / r
    else:
        own = place if place.path == file else Place(file)
        scale, remarks = stated.decide(own, modules.values(), options)
        yield from remarks
    for module, parts in modules.items():
        try:
            for part, B, A in _pieces(module, parts, str(file), options.blocks, rows, trained):
                if r is not None and len(A) != r:
                    raise CheckpointError(
                        f"{file}: {module}: has r = {len(A)}; expected {r} by {where}"
                    )
                source = str(file)
                yield LowRankUpdate(module, B, A, scale, part, "litgpt", source, of_rows=bool(part))
        except CheckpointError as error:
            yield Skipped(module, str(error))


def _pieces(
    module: str,
    parts: dict[str, Stored],
    file: str,
    blocks: Sequence[int],
    rows: tuple[int, int] | None,
    trained: dict[str, Any],
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield part, B and A of a module: part "" of a layer that is not fused.

    blocks: those of the user; rows: of a query, and of a key or a value; trained: the settings.
    """
    where = f"{file}: {module}"
    if not FUSED.fullmatch(module) or blocks or rows is None:
        yield from factors.pieces(parts, where, blocks)
        return
    factors.require_pair(parts, where)
    B, A = parts["B"], parts["A"]
    m = fused.count(B.shape, A.shape)
    named = enabled_blocks(rows, m, B.shape[0], trained)
    if not named:
        raise CheckpointError(
            f"{where}: B is {B.shape}, A is {A.shape}; expected {rows[0]} rows for a query and"
            f" {rows[1]} for a key or a value, by the configs in its directory (or --blocks)"
        )
    if m == 1:
        yield named[0][0], *factors.pair(parts, where)
        return
    cut = fused.cut(B, A, [size for _, size in named], where)
    yield from ((name, *pair) for (name, _), pair in zip(named, cut, strict=True))


def enabled_blocks(
    rows: tuple[int, int], m: int, total: int, trained: dict[str, Any]
) -> list[tuple[str, int]]:
    """Return the name and the rows of each of the m blocks that were trained, in their order.

    rows: of a query, and of a key or a value; total: of all m blocks; trained: the settings of the
    training. Without settings, blocks whose rows do not tell them apart are block0, … Empty if m
    and total do not fit.

    >>> enabled_blocks((64, 16), 2, 80, {"lora_query": True, "lora_value": True})
    [('query', 64), ('value', 16)]
    >>> enabled_blocks((64, 16), 2, 80, {}), enabled_blocks((64, 16), 2, 32, {})
    ([('block0', 64), ('block1', 16)], [('key', 16), ('value', 16)])
    """
    sizes = dict(zip(BLOCKS, (rows[0], rows[1], rows[1]), strict=True))
    switches = {name: trained.get(f"lora_{name}") for name in BLOCKS}
    chosen = [
        names
        for names in itertools.combinations(BLOCKS, m)
        if sum(sizes[name] for name in names) == total
        and all(on is None or on == (name in names) for name, on in switches.items())
    ]
    if not chosen:
        return []
    if len(chosen) > 1:
        return [(f"block{i}", sizes[name]) for i, name in enumerate(chosen[0])]
    return [(name, sizes[name]) for name in chosen[0]]


def _rows(directory: Path) -> tuple[int, int] | None:
    """Return the rows of a query, and of a key or a value; None without the model's config."""
    for name in MODELS:
        file = directory / name
        if file.is_file():
            config = Place(directory).json(name) if name.endswith(".json") else _settings(file)
            where = str(file)
            heads = count(config, "n_head", where)
            groups = heads
            if config.get("n_query_groups") is not None:
                groups = count(config, "n_query_groups", where)
            size = count(config, "n_embd", where) // heads
            if config.get("head_size") is not None:
                size = count(config, "head_size", where)
            return heads * size, groups * size
    return None


def _settings(file: Path) -> dict[str, Any]:
    """Return the numbers, switches and strings on the first level of a YAML file; {} without it.

    The files that LitGPT writes have one of them on a line. No more of YAML is understood.
    """
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > LONGEST:
            raise CheckpointError(f"{file}: is over {LONGEST} bytes long")
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None
    matches = (LINE.fullmatch(line) for line in lines)
    return {match[1]: _value(match[2].strip()) for match in matches if match}


def _value(text: str) -> Any:
    """Return a YAML scalar as a number, a bool, None or a string."""
    words = {"true": True, "false": False, "null": None, "~": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")
