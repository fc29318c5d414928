"""MultiLoRA: adapter_config.json with peft_type MULTILORA beside adapter_model.safetensors.

    base_model.model.<module>.multilora_A     (n·r, d_in)    block of rows i is Aᵢ
    base_model.model.<module>.multilora_B     (d_out, n·r)   block of columns i is Bᵢ
    base_model.model.<module>.multilora_s     (d_out, n)     column i is sᵢ

ΔW = scale · Σᵢ diag(sᵢ) Bᵢ Aᵢ (Wang et al. 2023), scale = α/r, or α/√r with rsLoRA: one factored
update of rank n·r, B = [diag(s₁)B₁ … diag(sₙ)Bₙ]. The exact export in lora/ is not read again.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.formats import Options, peft, shards
from analysis.formats.tensors import Stored, count, number, read_json
from analysis.update import Entry, LowRankUpdate, Other, Skipped, float64

KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.multilora_(?P<part>[ABs])(?:\..+)?", re.DOTALL
)


def recognises(path: Path) -> bool:
    """Whether `path` holds a PEFT adapter whose config says MULTILORA."""
    try:
        return read_json(path / peft.CONFIG).get("peft_type") == "MULTILORA"
    except CheckpointError:
        return False


def read(path: Path, options: Options) -> Iterator[Entry]:
    """The stacked update of each module; CheckpointError where the config has no scale."""
    config, source = read_json(path / peft.CONFIG), path / peft.CONFIG
    n, r = count(config, "n", source), count(config, "r", source)
    alpha = number(config, "lora_alpha", source)
    scale = alpha / (math.sqrt(r) if config.get("use_rslora") else r)
    file = peft.weights(path)
    tensors = shards.open_located(file)

    modules: dict[str, dict[str, Stored]] = {}
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name)
        if match is None:
            yield Other(name, peft.what(name))
        elif match["part"] in modules.setdefault(match["module"], {}):
            raise CheckpointError(f"{file}: {name}: stands there twice, under two names")
        else:
            modules[match["module"]][match["part"]] = tensor
    for module, parts in modules.items():
        fault = _fault({part: tensor.shape for part, tensor in parts.items()}, n, r)
        if fault:
            yield Skipped(module, f"{file}: {module}: {fault}")
            continue
        try:
            B, A, s = (float64(parts[part].load()) for part in "BAs")
        except CheckpointError as error:
            yield Skipped(module, str(error))
            continue
        yield LowRankUpdate(
            module, stack(B, s, n), A, scale, method="multilora", source=str(file), stacked=n
        )


def stack(B: np.ndarray, s: np.ndarray, n: int) -> np.ndarray:
    """[diag(s₁)B₁ … diag(sₙ)Bₙ]. B (d_out, n·r), s (d_out, n) -> (d_out, n·r)."""
    with np.errstate(invalid="ignore"):  # Inf · 0, which is found later
        return (B.reshape(len(B), n, -1) * s[:, :, None]).reshape(B.shape)


def _fault(shapes: dict[str, tuple[int, ...]], n: int, r: int) -> str | None:
    """Why the three tensors of a module do not fit one another; None where they do."""
    missing = [part for part in "ABs" if part not in shapes]
    if missing:
        return f"has no multilora_{missing[0]}; expected multilora_A, multilora_B, multilora_s"
    A, B, s = (shapes[part] for part in "ABs")
    fits = len(A) == len(B) == len(s) == 2 and A[0] == B[1] == n * r and s == (B[0], n)
    if not fits or 0 in (*A, *B):
        return (
            f"A is {A}, B is {B}, s is {s}; expected A ({n * r}, d_in), B (d_out, {n * r}),"
            f" s (d_out, {n}) for n = {n}, r = {r}"
        )
    return None
