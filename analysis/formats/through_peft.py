"""Any other PEFT type (LoHa, LoKr, VeRA, IA³, OFT, …), merged by PEFT itself; needs --base.

ΔW is W0 after the merge, minus W0: for these types it depends on W0, or follows a rule that only
PEFT implements. Transformers loads the base and PEFT the adapter. One layer at a time is copied to
float64 and merged, so that the difference is exact up to the rounding of float64, which the noise
floor counts.
"""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError, extras
from analysis.files.place import Place
from analysis.files.tensors import line, short
from analysis.formats import base, claims
from analysis.numerics.floor import noise_floor
from analysis.update import DenseUpdate, Entry, Other, Skipped

# Types of PEFT whose factors tell ΔW without W0.
FACTORED = ("LORA", "ADALORA")
# Settings of LoRA under which ΔW is not B·A, but follows a rule that only PEFT implements.
SETTINGS = {
    "use_qalora": "QALoRA pools the inputs of A",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "kasa_config": "KaSA puts a diagonal between B and A and truncates the base",
    "arrow_config": "Arrow routes among several adapters",
    "monteclora_config": "MonteCLoRA samples its factors",
}
# Types without a ΔW of any matrix, or without a single one.
NO_UPDATE = "and changes no weight of the model: there is no ΔW"
REFUSED = {
    "XLORA": "mixes adapters anew for every input and has no single ΔW",
    "POLY": "mixes adapters anew for every task and has no single ΔW",
    "LILY": "mixes its factors anew for every input and has no single ΔW",
    "SHADOW": "trains a second, smaller model beside the layers, which PEFT cannot merge into them",
    "PROMPT_TUNING": f"puts learned tokens before the input {NO_UPDATE}",
    "MULTITASK_PROMPT_TUNING": f"puts learned tokens before the input {NO_UPDATE}",
    "P_TUNING": f"puts learned tokens before the input {NO_UPDATE}",
    "CPT": f"puts learned tokens before the input {NO_UPDATE}",
    "PREFIX_TUNING": f"puts learned keys and values before each layer's own {NO_UPDATE}",
    "CARTRIDGE": f"puts learned keys and values before each layer's own {NO_UPDATE}",
    "ADAPTION_PROMPT": f"adds learned prompts to the attention of some layers {NO_UPDATE}",
    "LN_TUNING": "trains the vectors of layer norms, and changes no matrix: there is no ΔW",
    "BEFT": "trains biases, and changes no matrix: there is no ΔW",
}
# Types that PEFT can merge into the base. Others may be newer than this list.
MERGED = frozenset(
    "ADALORA ADAMSS BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LOHA LOKR LORA"
    " MISS OFT OSF PEANUT PSOFT PVERA RANDLORA ROAD SHIRA SUPERTUNING TINYLORA TRAINABLE_TOKENS"
    " UNILORA VBLORA VERA WAVEFT".split()
)
# Settings that would let a stranger's config choose what is imported or downloaded.
UNSAFE = ("megatron_config", "arrow_config")
# The class of Transformers for each task_type of PEFT.
CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def reason(config: dict[str, Any]) -> str:
    """Return why an adapter has to be read through PEFT; "" if its factors tell ΔW."""
    peft_type = config.get("peft_type")
    if peft_type not in FACTORED:
        return f"peft_type is {short(peft_type)}; expected 'LORA', which has factors of ΔW"
    return next((f"{key} is set: {why}" for key, why in SETTINGS.items() if config.get(key)), "")


def refuse(config: dict[str, Any], where: str) -> None:
    """Raise CheckpointError if an adapter cannot be read through PEFT, or is not safe to load."""
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str):
        raise CheckpointError(f"{where}: peft_type is {short(peft_type)}; expected 'LORA'")
    if peft_type in REFUSED:
        raise CheckpointError(f"{where}: peft_type is {peft_type!r}, which {REFUSED[peft_type]}")
    if config.get("kasa_config"):
        raise CheckpointError(
            f"{where}: kasa_config is set: {SETTINGS['kasa_config']} as PEFT loads it, so that a"
            " difference to the base is not what was trained; not read"
        )
    for key in UNSAFE:
        if config.get(key):
            raise CheckpointError(
                f"{where}: {key} is set, which lets a config choose what is loaded; not read"
            )


def advice(config: dict[str, Any]) -> str:
    """Return what helps to read an adapter for which there is a `reason`, as far as it is known."""
    if config.get("peft_type") in MERGED:
        return "pass the model it belongs to, --base DIR"
    return "if the installed PEFT knows this type, pass the model it belongs to, --base DIR"


def read(path: Path, config: dict[str, Any], base_path: Path) -> Iterator[Entry]:
    """Yield, for each layer of the adapter, the difference that merging it makes to the weight.

    path: the directory of the adapter, whose weights are there; config: its config; base_path: the
    base. Raises CheckpointError if PEFT cannot load the adapter, or if it changes no weight.
    """
    where, peft_type = str(path), config.get("peft_type")
    base_place = Place(base.directory(base_path))
    claims.refuse(path, config, "adapter_config.json", base_place)
    model, marks = _open(path, config, base_place)
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    adapted = False
    for name, layer in model.named_modules():
        module = re.sub(r"^base_model\.model\.", "", name)
        if isinstance(layer, AuxiliaryTrainingWrapper):
            yield Other(module, "saved weight (modules_to_save)")
        elif isinstance(layer, BaseTunerLayer):
            adapted = True
            try:
                _refuse_moved(layer, marks.get(module), f"{where}: {module}")
                yield _update(module, layer, f"peft:{peft_type}", where)
            except CheckpointError as error:
                yield Skipped(module, str(error))
    if not adapted:
        raise CheckpointError(f"{where}: peft_type {peft_type!r} changes no weight of the model")


def _open(
    path: Path, config: dict[str, Any], base_place: Place
) -> tuple[Any, dict[str, tuple[float, float]]]:
    """Return the base with the adapter in it, not merged, and the base's marks before that.

    The marks are those of `_mark`, by module.
    """
    import warnings

    with extras.named():
        import transformers
        from peft import PeftModel

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load = _model_class(config, base_place).from_pretrained
            model = load(base_place.path, dtype="auto")
            marks = {name: _mark(layer) for name, layer in model.named_modules()}
            return PeftModel.from_pretrained(model, path).eval(), marks
    except Exception as error:  # two libraries read a stranger's files here: anything can come
        raise CheckpointError(
            f"{path}: PEFT cannot put it into the base {base_place.path}: {line(error)}"
        ) from None


def _mark(layer: Any) -> tuple[float, float]:
    """Return two sums of a layer's weight that change when the weight does."""
    weight = getattr(layer, "weight", None)
    if weight is None:
        return 0.0, 0.0
    values = weight.detach().double()
    return float(values.sum()), float(values.square().sum())


def _refuse_moved(layer: Any, mark: tuple[float, float] | None, where: str) -> None:
    """Raise CheckpointError if loading the adapter changed W0, so that the difference is lost."""
    if _mark(layer.get_base_layer()) != mark:
        raise CheckpointError(f"{where}: PEFT changes the base weight when it loads this adapter")


def _model_class(config: dict[str, Any], base_place: Place) -> Any:
    """Return the class that the adapter was trained on: by its config, its task, or the base's."""
    import transformers

    mapping = config.get("auto_mapping") or {}
    architectures = base_place.json(base.CONFIG).get("architectures")
    names = [mapping.get("base_model_class"), CLASSES.get(config.get("task_type") or "")]
    for name in [*names, *(architectures or [])]:
        model_class = getattr(transformers, name, None) if isinstance(name, str) else None
        if hasattr(model_class, "from_pretrained"):
            return model_class
    return transformers.AutoModel


def _update(module: str, layer: Any, method: str, where: str) -> DenseUpdate:
    """Return the update of one layer, which is merged when the values are needed."""
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
        except Exception as error:  # types that cannot be merged raise errors of many kinds
            raise CheckpointError(f"{where}: {module}: not merged: {line(error)}") from None
        W0, W = (W.reshape(rows, columns).numpy() for W in (before, after))
        return (W0.T, W.T) if turned else (W0, W)

    def floor() -> float:
        return noise_floor(merged()[1])

    return DenseUpdate(module, shape, load, floor, method=method, source=where)
