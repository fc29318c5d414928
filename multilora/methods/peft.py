"""Train PEFT's own methods by name: `peft:DORA`, `peft:VERA`, ….

Options of PEFT's LoRA have names of their own here, because tables compare them as methods. LoRA
and its variants take rank, scale and dropout from the command; every other method keeps PEFT's
defaults except for its target modules. Fields of the PEFT config can also be given as JSON.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import transformers
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, PromptLearningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from multilora import record

PREFIX = "peft:"
# Path of the untrained adapter relative to the trained one. It is two levels down because a
# directory directly below a checkpoint would be read as another adapter of the same model.
INITIAL = Path("initial", "adapter")

# Options of PEFT's LoRA that are methods here, by name.
LORA_KIN: dict[str, dict[str, Any]] = {
    "LORA": {},
    "RSLORA": {"use_rslora": True},
    "DORA": {"use_dora": True},
    "PISSA": {"init_lora_weights": "pissa"},
    "OLORA": {"init_lora_weights": "olora"},
}

# Fields that a method needs in addition to its target modules.
OWN: dict[str, dict[str, Any]] = {"IA3": {"feedforward_modules": []}}

# Initialisations that need data or quantised weights before training, which are not available.
STARTS_REFUSED = ("eva", "corda", "loftq", "lora_ga")
# Initialisations that move part of W0 into the adapter, so that ΔW is relative to them.
STARTS_MOVING = ("pissa", "olora")

REFUSED = {
    "ADAPTION_PROMPT": "it changes activations and no weights, so there is no ΔW",
    "TRAINABLE_TOKENS": "it trains embeddings, which are frozen for every method",
    "LN_TUNING": "it trains whole layers (use method full) or norms, which are frozen here",
    "XLORA": "it mixes trained adapters by input, so there is no single ΔW",
    "POLY": "it mixes adapters by task, so there is no single ΔW",
    "SHADOW": "the layers of transformers do not accept the activations that it passes on",
}


def is_named(method: str) -> bool:
    """Return whether `method` is one of PEFT's, `peft:NAME`."""
    return method.startswith(PREFIX)


def is_kin(method: str) -> bool:
    """Return whether `method` is PEFT's LoRA or a variant, with the command's rank and scale."""
    return is_named(method) and _name(method) in (*LORA_KIN, "ADALORA")


def check(method: str, given: str) -> None:
    """Raise ValueError if a method `peft:NAME` is unknown or cannot be trained here.

    given: fields of its PEFT config, as JSON; unknown fields are refused.
    """
    name, cls = _name(method), _config_class(method)
    if issubclass(cls, PromptLearningConfig):
        raise ValueError(
            f"{method} cannot be trained here: it adds tokens and changes no weights: no ΔW"
        )
    if name in REFUSED:
        raise ValueError(f"{method} cannot be trained here: {REFUSED[name]}")
    known = _fields(cls)
    unknown = sorted(set(_parse(given)) - known)
    if unknown:
        raise ValueError(
            f"peft_config: {cls.__name__} has no field {', '.join(unknown)}; "
            f"expected fields among {', '.join(sorted(known))}"
        )


def wrap(model: Any, method: str, given: str, r: int, steps: int, common: dict[str, Any]) -> Any:
    """Return the model with the adapter of a method `peft:NAME`.

    model: the base.
    method: `peft:NAME`.
    given: fields of the PEFT config, as JSON; they override all others.
    r: rank; 0 for the method's default.
    steps: total number of optimiser steps, for AdaLoRA's schedule.
    common: lora_alpha, lora_dropout, target_modules and task_type.

    Raises ValueError for settings that PEFT refuses.
    """
    try:
        return get_peft_model(model, _config(method, given, r, steps, common))
    except (ValueError, TypeError, AttributeError, ImportError, AssertionError) as error:
        text = " ".join(str(error).split())
        targets = f"target_modules {common['target_modules']!r}"
        raise ValueError(
            f"{method}: {text} ({targets}; set its other fields by --peft_config JSON)"
        ) from error


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
        raise ValueError(
            f"init_lora_weights is {start!r}, which needs data or quantised weights before "
            "training; expected another initialisation"
        )
    return config


def _adalora(r: int, steps: int) -> dict[str, Any]:
    """Settings of AdaLoRA: prune rank 1.5·r to a mean of r between 10 % and 50 % of the steps."""
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
            f"method is {method!r}; expected peft: and one of "
            f"{', '.join(sorted({*LORA_KIN, *theirs}))}"
        )
    return theirs[_name(method)]


def _fields(cls: type) -> set[str]:
    return {field.name for field in fields(cls) if field.init}


def _parse(given: str) -> dict[str, Any]:
    try:
        values = json.loads(given or "{}")
    except ValueError as error:
        raise ValueError(f"peft_config {given!r} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"""peft_config is {given!r}; expected an object such as '{{"r": 8}}'""")
    return values


# During training.


class AllocateRanks(transformers.TrainerCallback):
    """Reallocate AdaLoRA's ranks after every optimiser step, before the gradients are cleared."""

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Update the ranks; `state.global_step` does not count the current step yet."""
        model.base_model.update_and_allocate(state.global_step)


def callbacks(method: str) -> list[transformers.TrainerCallback]:
    """Trainer callbacks that a method needs."""
    return [AllocateRanks()] if _is_adalora(method) else []


def check_resumable(method: str) -> None:
    """Raise ValueError if training with `method` cannot resume from a checkpoint."""
    if _is_adalora(method):
        raise ValueError(
            f"{method} cannot resume from a checkpoint, which lacks the importance of its ranks; "
            "start from the beginning with --resume_from_checkpoint no"
        )


def _is_adalora(method: str) -> bool:
    return is_named(method) and _name(method) == "ADALORA"


def save_initial(model: Any, out: Path) -> None:
    """Save the untrained adapter in out/initial/adapter if its initialisation changes the base.

    ΔW of such a method is the trained adapter minus this one (`analysis.spectrum --initial`).
    """
    target = (out / INITIAL).parent
    shutil.rmtree(target, ignore_errors=True)  # from an earlier run
    if not isinstance(model, PeftModel):
        return
    config = model.active_peft_config
    start = getattr(config, "init_lora_weights", None)
    if not isinstance(start, str) or not start.lower().startswith(STARTS_MOVING):
        return
    config.init_lora_weights = True  # so that it is read as a plain adapter
    try:
        record.make_once(target, lambda new: model.save_pretrained(str(new / INITIAL.name)))
    finally:
        config.init_lora_weights = start
