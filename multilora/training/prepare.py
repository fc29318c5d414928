"""Add a method's adapter to a model, or unfreeze its weights, and freeze the rest."""

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.tuners_utils import check_target_module_exists

from analysis import UserError
from multilora import delta
from multilora.methods import peft as peft_methods
from multilora.methods.config import MtlLoraConfig, MultiLoraConfig, RLoraConfig
from multilora.methods.experts import ExpertBank
from multilora.tasks.builtin import suite
from multilora.training import guard
from multilora.training.settings import TrainSettings, targets


def prepare(
    model: Any, settings: TrainSettings, steps: int = 1, tasks: Sequence[str] = tuple(suite.TASKS)
) -> Any:
    """The model, ready to be trained with `settings.method`.

    steps: number of optimiser steps, for a method that has its own schedule; tasks: their names,
    for a method that has parameters for each task. Raises UserError for settings that the method
    or PEFT refuses.
    """
    with guard.refusals():
        if getattr(model, "is_quantized", False):
            # Frozen, and float32 where it is not quantised; checkpointing is Trainer's own matter.
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        return _prepared(model, settings, steps, tasks)


def _prepared(model: Any, settings: TrainSettings, steps: int, tasks: Sequence[str]) -> Any:
    names: Any = targets(settings.target_modules)
    common = {
        "lora_alpha": settings.scale * settings.rank,
        "lora_dropout": settings.dropout,
        "target_modules": names,
        "task_type": "CAUSAL_LM",
    }
    if settings.method in ("lora", "lora+"):
        return get_peft_model(model, LoraConfig(r=settings.rank, **common))
    if settings.method == "multilora":
        zero = settings.start == "zero"
        given = {"start_b": settings.start, "start_s": 1.0 if zero else 0.0, **common}
        return get_peft_model(model, MultiLoraConfig(r=settings.rank, n=settings.n, **given))
    if settings.method == "expert":
        return ExpertBank(model, LoraConfig(r=settings.rank, **common), list(tasks))
    if settings.method == "rlora":
        return get_peft_model(model, RLoraConfig(r=settings.rank, n=settings.n, **common))
    if settings.method == "mtllora":
        by_task = MtlLoraConfig(r=settings.rank, n=settings.n, tasks=list(tasks), **common)
        return get_peft_model(model, by_task)
    if peft_methods.is_named(settings.method):
        own = (settings.peft_config, settings.rank, steps, common)
        return peft_methods.wrap(model, settings.method, *own)
    model.requires_grad_(False)
    for name, layer in delta.matrices(model):
        if names == "all-linear" or check_target_module_exists(LoraConfig(**common), name):
            layer.weight.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"target_modules {names!r} does not match any linear layer of the model")
    return model
