"""LoRA of AdapterHub's `adapters`: adapter_config.json and pytorch_adapter.bin.

    <module>.loras.<adapter>.lora_A     (r, d_in), or (m·r, d_in) of a fused query, key and value
    <module>.loras.<adapter>.lora_B     (d_out, r), or (m·d_out/3, r)

in pytorch_adapter.bin or adapter.safetensors. ΔW = alpha/r · B @ A, with r and alpha of "config" in
adapter_config.json. A fused layer is cut into thirds by `adapters` itself, of which m are in
attn_matrices: the parts q, k and v. Versions 0.1 to 1.0 of `adapters` trained layers that are not
fused with scale 1, and so load all later ones. Without the config, --scale is needed. Any other
architecture of AdapterHub changes no weight.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.tensors import Stored, count, number, short
from analysis.formats import Options, factors, fused, orientation
from analysis.update import Entry, LowRankUpdate, Skipped

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
STEMS = ()
KEY = re.compile(r"(?P<module>.+)\.loras\.(?P<adapter>[^.]+)\.(?P<tensor>.+)", re.DOTALL)
ROLES = {"lora_A": "A", "lora_B": "B"}
MAGNITUDE = "m.weight"
MATRICES = ("q", "k", "v")
# Versions that trained with scale 1, whatever alpha was.
FAULTY = re.compile(r"adapters\.(?:0\.|1\.0\b|1\.1\.0\.?(?:dev|a|b|rc))")
# Settings under which ΔW is not B @ A.
SETTINGS = {
    "use_gating": "its gate depends on the input",
    "vera_d": "VeRA shares its factors and scales them by vectors",
    "vera_b": "VeRA shares its factors and scales them by vectors",
    "n_up_projection": "MTL-LoRA has several B for one A",
}


def recognise(place: Place) -> bool:
    """Return whether a directory holds an adapter of AdapterHub, or a file has its names."""
    if place.path.is_file():
        named = any(KEY.fullmatch(name) for name in place.tensors())
        return named or (place.path.name in WEIGHTS and recognise(Place(place.path.parent)))
    if (place.path / WEIGHTS[1]).is_file():
        return True
    if not (place.path / CONFIG).is_file():
        return False
    try:
        config = place.json(CONFIG)
    except CheckpointError:
        return False
    return "config" in config and "peft_type" not in config


@dataclass(frozen=True)
class Lora:
    """What the config says of an adapter.

    r, alpha: the rank, and the number that the scale is alpha/r of.
    matrices: those of q, k and v that are trained.
    faulty: True if layers that are not fused were trained with scale 1.
    path: the config's file.
    """

    r: int
    alpha: float
    matrices: tuple[str, ...]
    faulty: bool
    path: Path

    def scale(self, rank: int, *, is_fused: bool) -> float:
        """Return the number that B @ A is multiplied by; CheckpointError for another rank."""
        if rank != self.r:
            raise CheckpointError(f"has r = {rank}; expected {self.r} by {self.path}")
        return 1.0 if self.faulty and not is_fused else self.alpha / self.r


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of an adapter.

    Raises CheckpointError if it is not LoRA, or if nothing gives the scale.
    """
    file = place.path if place.path.is_file() else _weights(place.path)
    lora = _lora(file.parent, options)
    if lora is None and options.scale is None:
        raise CheckpointError(
            f"{file}: AdapterHub's weights without their {CONFIG}, which gives the scale; put it"
            " into the same directory, or pass alpha/r, --scale X"
        )
    modules: dict[tuple[str, str], dict[str, Stored]] = {}
    for name, tensor in place.tensors(file).items():
        match = KEY.fullmatch(name)
        if match is None or (options.direction_only and match["tensor"] == MAGNITUDE):
            yield factors.unpaired(name, file, "is not part of a pair of factors")
            continue
        role = ROLES.get(match["tensor"], match["tensor"])
        modules.setdefault((match["module"], match["adapter"]), {})[role] = tensor
    if lora is None or options.transposed:
        modules = orientation.oriented(modules, str(file), options)
    several = len({adapter for _, adapter in modules}) > 1
    for (module, adapter), parts in modules.items():
        where = f"{file}: {module}"
        try:
            for piece, B, A in _pieces(parts, where, lora, options.blocks):
                scale = options.scale_or_one
                if lora is not None:
                    scale = lora.scale(len(A), is_fused=bool(piece))
                part = ".".join(filter(None, (adapter if several else "", piece)))
                yield LowRankUpdate(
                    module, B, A, scale, part, "adapterhub", str(file), of_rows=bool(piece)
                )
        except CheckpointError as error:
            reason = str(error)
            yield Skipped(module, reason if reason.startswith(where) else f"{where}: {reason}")


def _weights(directory: Path) -> Path:
    """Return the weight file of a directory; CheckpointError if it has none."""
    for name in WEIGHTS:
        if (directory / name).is_file():
            return directory / name
    raise CheckpointError(
        f"{directory}: an adapter of AdapterHub without weights; expected {' or '.join(WEIGHTS)}"
    )


def _pieces(
    parts: dict[str, Stored], where: str, lora: Lora | None, blocks: Sequence[int]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield part, B and A of a module, or of each block of a fused one."""
    factors.require_pair(parts, where)
    B, A = parts["B"], parts["A"]
    m = fused.count(B.shape, A.shape)
    if m == 1 or lora is None or blocks:
        yield from factors.pieces(parts, where, blocks)
        return
    if m != len(lora.matrices) or B.shape[0] % m:
        raise CheckpointError(
            f"{where}: B is {B.shape}, A is {A.shape}; expected {len(lora.matrices)} blocks of"
            f" equal rows by attn_matrices in {lora.path}"
        )
    cut = fused.cut(B, A, m * [B.shape[0] // m], where)
    yield from ((name, *pair) for name, pair in zip(lora.matrices, cut, strict=True))


def _lora(directory: Path, options: Options) -> Lora | None:
    """Return what the config in a directory says; None without one.

    Raises CheckpointError if it is not of LoRA, or of a LoRA whose ΔW is not B @ A.
    """
    path = directory / CONFIG
    if not path.is_file():
        return None
    whole = Place(directory).json(CONFIG)
    config = _of_lora(whole.get("config"), path)
    for key, why in SETTINGS.items():
        if config.get(key):
            raise CheckpointError(f"{path}: {key} is {short(config[key])}: {why}; not read")
    if config.get("composition_mode", "add") != "add":
        raise CheckpointError(
            f"{path}: composition_mode is {short(config['composition_mode'])}: it multiplies the"
            " outputs of a layer by a vector ((IA)³), so that ΔW is not B @ A; not read"
        )
    if config.get("use_dora") and not options.direction_only:
        raise CheckpointError(
            f"{path}: use_dora is set: DoRA rescales the rows of W0 + B·A, which is not read here;"
            " look at B·A alone, --direction-only"
        )
    r, alpha = count(config, "r", path), number(config, "alpha", path)
    listed = config.get("attn_matrices")
    named = listed if isinstance(listed, list) else []
    version = whole.get("version")
    return Lora(
        r=r,
        alpha=alpha,
        matrices=tuple(name for name in MATRICES if name in named),
        faulty=isinstance(version, str) and FAULTY.match(version) is not None,
        path=path,
    )


def _of_lora(config: Any, path: Path) -> dict[str, Any]:
    """Return the settings of LoRA in "config", which may be a union of several methods."""
    configs = config.get("configs") if isinstance(config, dict) else None
    listed = configs if isinstance(configs, list) else [config]
    found = [c for c in listed if isinstance(c, dict) and c.get("architecture") == "lora"]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{path}: holds {len(found)} configs of LoRA; expected one")
    named = listed[0].get("architecture") if listed and isinstance(listed[0], dict) else config
    raise CheckpointError(
        f"{path}: an adapter of AdapterHub of architecture {short(named or 'bottleneck')}; expected"
        " 'lora': any other adds layers or inputs and changes no weight, so that it has no ΔW"
    )
