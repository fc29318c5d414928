"""PEFT's own methods by name: `peft:DORA`, `peft:VERA`, … → the PEFT config that trains them.

LoRA's options have names of their own here, since tables compare them as methods. Rank, scale and
dropout are those of the command for LoRA and its kin; every other method keeps PEFT's defaults but
for its target modules. Any field of the config can be given beside, as JSON.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import transformers
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, PromptLearningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

PREFIX = "peft:"
# Where the adapter as it starts lies, below the trained one; a directory directly below a
# checkpoint would be read as another adapter of the same model.
INITIAL = Path("initial", "adapter")

# Options of PEFT's LoRA that go by a name of their own.
LORA_KIN: dict[str, dict[str, Any]] = {
    "LORA": {},
    "RSLORA": {"use_rslora": True},
    "DORA": {"use_dora": True},
    "PISSA": {"init_lora_weights": "pissa"},
    "OLORA": {"init_lora_weights": "olora"},
}

# What a method needs beside its target modules.
OWN: dict[str, dict[str, Any]] = {"IA3": {"feedforward_modules": []}}

# Starts that need data or quantised weights before training, which this command does not give.
STARTS_REFUSED = ("eva", "corda", "loftq", "lora_ga")
# Starts that put part of the base's weight into the adapter: ΔW is what came after them.
STARTS_MOVING = ("pissa", "olora")

REFUSED = {
    "ADAPTION_PROMPT": "it changes activations and no weight, so that there is no ΔW",
    "TRAINABLE_TOKENS": "it trains embeddings, which are frozen for every method",
    "LN_TUNING": "it trains layers as they are (method full) or norms, which are frozen",
    "XLORA": "it mixes trained adapters anew for every input, so that there is no one ΔW",
    "POLY": "it mixes adapters by task, so that there is no one ΔW",
    "SHADOW": "Transformers' layers do not take the activations that it passes on",
}


def is_named(method: str) -> bool:
    """Whether `method` is one of PEFT's: peft:NAME."""
    return method.startswith(PREFIX)


def is_kin(method: str) -> bool:
    """Whether `peft:NAME` is LoRA or one of its kin, which take the command's rank and scale."""
    return is_named(method) and _name(method) in (*LORA_KIN, "ADALORA")


def check(method: str, given: str) -> None:
    """ValueError for `peft:NAME` that PEFT does not have or that cannot be trained here.

    given: the fields of its config, as JSON; they must be its own.
    """
    name, cls = _name(method), _config_class(method)
    if issubclass(cls, PromptLearningConfig):
        raise ValueError(f"{method}: it adds tokens and changes no weight, so that there is no ΔW")
    if name in REFUSED:
        raise ValueError(f"{method} cannot be trained here: {REFUSED[name]}")
    known = _fields(cls)
    unknown = sorted(set(_parse(given)) - known)
    if unknown:
        raise ValueError(
            f"peft_config: {cls.__name__} has no field {', '.join(unknown)}; "
            f"it has {', '.join(sorted(known))}"
        )


def wrap(model: Any, method: str, given: str, r: int, steps: int, common: dict[str, Any]) -> Any:
    """The model with the adapter of `peft:NAME`; `given`, fields in JSON, come last of all.

    r: 0 for the method's own. steps: of the optimiser in all, for AdaLoRA's schedule. common:
    lora_alpha, lora_dropout, target_modules, task_type. Raises ValueError for what PEFT refuses.
    """
    try:
        return get_peft_model(model, _config(method, given, r, steps, common))
    except (ValueError, TypeError, AttributeError, ImportError, AssertionError) as error:
        text = " ".join(str(error).split())
        targets = f"target_modules {common['target_modules']!r}"
        raise ValueError(f"{method}: {text} ({targets}; its fields: --peft_config JSON)") from error


def _config(method: str, given: str, r: int, steps: int, common: Mapping[str, Any]) -> PeftConfig:
    name, cls = _name(method), _config_class(method)
    own = {**LORA_KIN.get(name, OWN.get(name, {}))}
    if name == "ADALORA":
        own |= _adalora(r, steps)
    elif r:
        own["r"] = r
    if not is_kin(method):
        common = {key: common[key] for key in ("target_modules", "task_type")}
    config = cls(**(own | dict(common) | _parse(given)))
    start = str(getattr(config, "init_lora_weights", "")).lower()
    if start in STARTS_REFUSED:
        raise ValueError(f"init_lora_weights {start!r} needs data or quantised weights beforehand")
    return config


def _adalora(r: int, steps: int) -> dict[str, Any]:
    """AdaLoRA prunes from a rank of 1.5·r to r on average, from a tenth of the run to its half."""
    schedule = {"tinit": steps // 10, "tfinal": steps // 2, "deltaT": max(1, steps // 100)}
    return {"init_r": math.ceil(1.5 * r), "target_r": r, "total_step": steps} | schedule


def _name(method: str) -> str:
    return method.removeprefix(PREFIX).upper()


def _config_class(method: str) -> type:
    if _name(method) in LORA_KIN:
        return LoraConfig
    theirs = {key.value: cls for key, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items() if key in PeftType}
    if _name(method) not in theirs:
        raise ValueError(
            f"method is {method!r}; of PEFT's there are {', '.join(sorted({*LORA_KIN, *theirs}))}"
        )
    return theirs[_name(method)]


def _fields(cls: type) -> set[str]:
    return {field.name for field in fields(cls) if field.init}


def _parse(given: str) -> dict[str, Any]:
    try:
        found = json.loads(given or "{}")
    except ValueError as error:
        raise ValueError(f"peft_config {given!r} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"""peft_config is {given!r}; expected an object, as '{{"r": 8}}'""")
    return found


# While it trains.


class AllocateRanks(transformers.TrainerCallback):
    """AdaLoRA moves its ranks after every optimiser step, while the gradients are still there."""

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Trainer counts the step only afterwards."""
        model.base_model.update_and_allocate(state.global_step)


def callbacks(method: str) -> list[transformers.TrainerCallback]:
    """What must be called beside Trainer for the method to be trained as it is meant to."""
    return [AllocateRanks()] if _is_adalora(method) else []


def check_resumable(method: str) -> None:
    """ValueError for a method whose state is not all in a checkpoint."""
    if _is_adalora(method):
        raise ValueError(
            f"{method} cannot go on from a checkpoint: the importance that it gives to its ranks "
            "is not in it; start from the beginning, --resume_from_checkpoint no"
        )


def _is_adalora(method: str) -> bool:
    return is_named(method) and _name(method) == "ADALORA"


def save_initial(model: Any, out: Path) -> None:
    """Keep the untrained adapter in out/initial/adapter where its start changes the base weights.

    Of such a method ΔW is the adapter less this one (`analysis.spectrum --initial`).
    """
    target = (out / INITIAL).parent
    shutil.rmtree(target, ignore_errors=True)  # an older run's
    if not isinstance(model, PeftModel):
        return
    config = model.active_peft_config
    start = getattr(config, "init_lora_weights", None)
    if not isinstance(start, str) or not start.lower().startswith(STARTS_MOVING):
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".initial-", dir=out) as temporary:
        config.init_lora_weights = True  # it is read as the plain adapter that it is
        try:
            model.save_pretrained(f"{temporary}/initial/{INITIAL.name}")
        finally:
            config.init_lora_weights = start
        Path(temporary, "initial").replace(target)
