"""Every other PEFT type (LoHa, LoKr, VeRA, IA³, OFT, …): merged minus base, by PEFT itself.

Their ΔW depends on W0, or follows a rule that only PEFT has. The base is loaded with Transformers,
the adapter with PEFT; a layer at a time is copied to float64 and merged, so that the difference
is exact to float64's own rounding, which its noise floor counts.
"""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.formats import base
from analysis.formats.tensors import line, short
from analysis.numerics.floor import noise_floor
from analysis.update import DenseUpdate, Entry, Other, Skipped

# What has no one ΔW, or would let a config choose what is imported or downloaded.
REFUSED = {
    "XLORA": "mixes adapters anew for every input",
    "POLY": "mixes adapters anew for every task",
}
UNSAFE = ("megatron_config", "arrow_config")
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TASKS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def read(path: Path, config: dict[str, Any], base_path: Path) -> Iterator[Entry]:
    """The difference that merging the adapter makes to each weight."""
    where, peft_type = str(path), config.get("peft_type")
    _refuse(config, where)
    # PEFT would look for it on the hub.
    if not any((path / file).is_file() for file in WEIGHTS):
        raise CheckpointError(f"{where}: has no weights; expected {' or '.join(WEIGHTS)}")
    model, before = _open(path, config, base.directory(base_path))
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    found = False
    for name, layer in model.named_modules():
        module = re.sub(r"^base_model\.model\.", "", name)
        if isinstance(layer, AuxiliaryTrainingWrapper):
            yield Other(module, "saved weight (modules_to_save)")
        elif isinstance(layer, BaseTunerLayer):
            found = True
            try:
                _refuse_moved(layer, before.get(module), f"{where}: {module}")
                yield _update(module, layer, f"peft:{peft_type}", where)
            except CheckpointError as error:
                yield Skipped(module, str(error))
    if not found:
        raise CheckpointError(f"{where}: peft_type {peft_type!r} changes no weight of the model")


def _refuse(config: dict[str, Any], where: str) -> None:
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str):
        raise CheckpointError(
            f"{where}: peft_type is {short(peft_type)}; expected a name, as 'LORA'"
        )
    if peft_type in REFUSED:
        raise CheckpointError(f"{where}: {peft_type} {REFUSED[peft_type]}; it has no one ΔW")
    for key in UNSAFE:
        if config.get(key):
            raise CheckpointError(f"{where}: {key} is set, which is not loaded from a stranger")


def _open(
    path: Path, config: dict[str, Any], directory: Path
) -> tuple[Any, dict[str, tuple[float, float]]]:
    """The base with the adapter in it, not merged; and the marks of its weights before."""
    import warnings

    import transformers
    from peft import PeftModel

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load = _model_class(config, directory).from_pretrained
            model = load(directory, dtype="auto")
            marks = {name: _mark(layer) for name, layer in model.named_modules()}
            return PeftModel.from_pretrained(model, path).eval(), marks
    except Exception as error:  # two libraries meet a stranger's files here: anything
        raise CheckpointError(
            f"{path}: PEFT cannot put it into the base {directory}: {line(error)}"
        ) from None


def _mark(layer: Any) -> tuple[float, float]:
    """Two sums that change when the layer's weight does."""
    weight = getattr(layer, "weight", None)
    if weight is None:
        return 0.0, 0.0
    values = weight.detach().double()
    return float(values.sum()), float(values.square().sum())


def _refuse_moved(layer: Any, mark: tuple[float, float] | None, where: str) -> None:
    """CheckpointError where loading the adapter has changed the base: the difference is lost."""
    if _mark(layer.get_base_layer()) != mark:
        raise CheckpointError(f"{where}: PEFT changes the base weight when it loads this adapter")


def _model_class(config: dict[str, Any], directory: Path) -> Any:
    """The class the adapter was trained on: by its config, its task, or the base's own."""
    import transformers

    mapping = config.get("auto_mapping") or {}
    architectures = json.loads((directory / "config.json").read_bytes()).get("architectures")
    names = [mapping.get("base_model_class"), TASKS.get(config.get("task_type") or "")]
    for name in [*names, *(architectures or [])]:
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if hasattr(found, "from_pretrained"):
            return found
    return transformers.AutoModel


def _update(module: str, layer: Any, method: str, where: str) -> DenseUpdate:
    weight = getattr(layer.get_base_layer(), "weight", None)
    if weight is None or weight.ndim < 2:
        raise CheckpointError(f"{where}: {module}: its layer has no matrix; expected one")
    turned = type(layer.get_base_layer()).__name__ in ("Conv1D", "Embedding")
    rows, columns = weight.shape[0], weight[0].numel()
    shape = (columns, rows) if turned else (rows, columns)

    def load() -> np.ndarray:
        before, after = merged()
        return after - before

    def merged() -> tuple[np.ndarray, np.ndarray]:
        try:
            double = copy.deepcopy(layer).double()
            before = double.get_base_layer().weight.detach().clone()
            double.merge()
            after = double.get_base_layer().weight.detach()
        except Exception as error:  # a type that cannot merge says so in its own way
            raise CheckpointError(f"{where}: {module}: not merged: {line(error)}") from None
        W0, W = (W.reshape(rows, columns).numpy() for W in (before, after))
        return (W0.T, W.T) if turned else (W0, W)

    def floor() -> float:
        return noise_floor(merged()[1])

    return DenseUpdate(module, shape, load, floor, method=method, source=where)
