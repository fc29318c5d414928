"""PEFT LoRA: adapter_config.json beside adapter_model.safetensors (or .bin).

    base_model.model.<module>.lora_A[.<adapter>].weight     (r, d_in)
    base_model.model.<module>.lora_B[.<adapter>].weight     (d_out, r)

ΔW = scale · B @ A, scale = α/r, or α/√r with rsLoRA (Kalajdzievski 2023). A and B have this
orientation over Conv1D too, whatever `fan_in_fan_out` says about the base's own weight.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis import CheckpointError
from analysis.formats.tensors import Stored, count, number, open_tensors, read_json
from analysis.update import Entry, LowRankUpdate, Other, Skipped

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.(?P<tensor>lora_[^.]+)(?:\.(?P<tail>.+))?", re.DOTALL
)
# Starts that leave the base weight as it was, so that B·A is all of ΔW.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# Settings under which ΔW is not scale · B @ A.
VARIANTS = {
    "use_dora": "DoRA rescales the columns of W0 + ΔW, which needs the base weights",
    "use_qalora": "QALoRA pools the inputs of A",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "kasa_config": "KaSA puts a diagonal between B and A and truncates the base",
    "arrow_config": "Arrow routes among several adapters",
    "monteclora_config": "MonteCLoRA samples its factors",
    "target_parameters": "LoRA on parameters (target_parameters) stacks several updates",
    "enable_lora": "PEFT 0.2's merged linear holds several updates in one pair of factors",
}


def recognises(path: Path) -> bool:
    """Whether `path` holds a PEFT adapter of any type; an adapter without its config counts."""
    return any((path / name).exists() for name in (CONFIG, *WEIGHTS))


def read(path: Path, base: Path | None = None) -> Iterator[Entry]:
    """The updates of a LoRA adapter; CheckpointError where the adapter as a whole has none."""
    config = read_json(path / CONFIG)
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise CheckpointError(
            f"{path / CONFIG}: peft_type is {peft_type!r}; expected 'LORA' or 'MULTILORA'"
            " (other types have no factored ΔW, or need the base weights)"
        )
    _refuse_variants(config, path / CONFIG)
    file = weights(path)
    tensors = open_tensors(file)
    yield from _pairs(tensors, file, Rule(config, path / CONFIG))


def weights(path: Path) -> Path:
    """The adapter's weight file; CheckpointError where there is none."""
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path}: has {CONFIG} but no weights; expected {' or '.join(WEIGHTS)}")


class Rule:
    """What a config says about the rank and the scale of each module."""

    def __init__(self, config: dict[str, Any], path: Path) -> None:
        self.path = path
        self.r = count(config, "r", path)
        self.alpha = number(config, "lora_alpha", path)
        self.rslora = bool(config.get("use_rslora"))
        self.rank_pattern = self._pattern(config, "rank_pattern", least=1)
        self.alpha_pattern = self._pattern(config, "alpha_pattern")

    def _pattern(
        self, config: dict[str, Any], key: str, least: float = -1e300
    ) -> list[tuple[re.Pattern[str], float]]:
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict):
            raise CheckpointError(f"{self.path}: {key} is {pattern!r}; expected an object")
        try:
            # PEFT's own rule (peft.utils.other.get_pattern_key): the first key in order that
            # matches the end of the module's path, whole components only.
            return [
                (re.compile(rf"(.*\.)?({name})$"), number(pattern, name, self.path, least))
                for name in pattern
            ]
        except re.error as error:
            raise CheckpointError(f"{self.path}: {key}: {error}") from None

    def rank(self, module: str) -> float:
        """The r that the config gives the module."""
        return _first_match(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """The factor before B @ A."""
        r = self.rank(module)
        return _first_match(self.alpha_pattern, module, self.alpha) / (
            math.sqrt(r) if self.rslora else r
        )


def _first_match(
    pattern: list[tuple[re.Pattern[str], float]], module: str, default: float
) -> float:
    return next((value for key, value in pattern if key.match(module)), default)


def _refuse_variants(config: dict[str, Any], path: Path) -> None:
    for key, reason in VARIANTS.items():
        if config.get(key):
            raise CheckpointError(
                f"{path}: {key} is set: {reason}; expected plain LoRA, ΔW = scale·B·A"
            )
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise CheckpointError(
            f"{path}: init_lora_weights is {start!r}, a start that changes the base weights,"
            f" so that B·A is not ΔW; expected one of {', '.join(map(str, PLAIN_STARTS))}"
        )


def _pairs(tensors: dict[str, Stored], file: Path, rule: Rule) -> Iterator[Entry]:
    """Sort the tensors into modules, then yield each module's update, or why it has none."""
    modules: dict[str, dict[str, str]] = {}  # module → "lora_A.weight" → name in the file
    matches = {name: KEY.fullmatch(name) for name in tensors}
    adapters = sorted({_tail(match)[0] for match in matches.values() if match})
    if len(adapters) > 1:
        raise CheckpointError(
            f"{file}: holds several adapters ({', '.join(adapters)}); expected one"
        )
    for name, match in matches.items():
        if match is None:
            yield Other(name, what(name))
            continue
        parts = modules.setdefault(match["module"], {})
        part = match["tensor"] + _tail(match)[1]
        if part in parts:
            raise CheckpointError(f"{file}: {name} and {parts[part]} are one tensor of one module")
        parts[part] = name
    for module, parts in modules.items():
        yield from _module(module, parts, tensors, file, rule)


def _tail(match: re.Match[str]) -> tuple[str, str]:
    """The adapter's name, "" where it was left out, and ".weight", ".bias" or ""."""
    tail = match["tail"] or ""
    adapter, _, leaf = tail.rpartition(".")
    return (adapter, f".{leaf}") if leaf in ("weight", "bias") else (tail, "")


def what(name: str) -> str:
    """What a tensor is that belongs to no update."""
    return "bias" if name.endswith(".bias") else "saved weight (modules_to_save)"


def _module(
    module: str, parts: dict[str, str], tensors: dict[str, Stored], file: Path, rule: Rule
) -> Iterator[Entry]:
    if "lora_B.bias" in parts:
        yield Other(parts.pop("lora_B.bias"), "bias of lora_B (lora_bias)")
    A, B = (tensors.get(parts.pop(f"lora_{factor}.weight", "")) for factor in "AB")
    fault = _fault(A, B, list(parts), rule, module)
    if fault:
        yield Skipped(module, f"{file}: {module}: {fault}")
        return
    assert A is not None
    assert B is not None
    try:
        scale = rule.scale(module)
        yield LowRankUpdate(module, B.load(), A.load(), scale, method="lora", source=str(file))
    except CheckpointError as error:
        yield Skipped(module, str(error))


def _fault(
    A: Stored | None, B: Stored | None, rest: list[str], rule: Rule, module: str
) -> str | None:
    """What keeps a module's tensors from being one pair of factors; None where nothing does."""
    if rest:
        return f"{', '.join(rest)} is not read; expected lora_A and lora_B of a linear layer"
    if A is None or B is None:
        have, missing = ("lora_B", "lora_A") if A is None else ("lora_A", "lora_B")
        return f"has {have} but no {missing}; expected both"
    if len(A.shape) != 2 or len(B.shape) != 2:
        return f"B is {B.shape}, A is {A.shape}; expected matrices (convolutions are not read)"
    if 0 in (*A.shape, *B.shape):
        return f"B is {B.shape}, A is {A.shape}: empty; was a sharded model saved ungathered?"
    if B.shape[1] != A.shape[0]:
        return (
            f"inner ranks differ, B is {B.shape}, A is {A.shape};"
            " expected B (d_out, r) and A (r, d_in)"
        )
    if A.shape[0] != rule.rank(module):
        return f"B is {B.shape}, A is {A.shape}; expected r = {rule.rank(module):g} by {rule.path}"
    return None
