"""The PEFT tuners: they put the adapter layers into a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    resolve_quantization_backend,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from multilora.config import MultiLoraConfig
from multilora.layers import MultiLoraLinear


class MultiLoraModel(BaseTuner):
    """A model whose target layers are wrapped in `MultiLoraLinear`; made by get_peft_model."""

    prefix = "multilora_"
    tuner_layer_cls = MultiLoraLinear
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(
        self,
        peft_config: MultiLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        if isinstance(target, MultiLoraLinear):
            target.update_layer(adapter_name, peft_config)
            return
        _check_layer(target, current_key)
        layer = MultiLoraLinear(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained until it is chosen
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT enters this before a forward pass; ValueError for what would be ignored in it."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "MultiLoRA cannot mix adapters within a batch (adapter_names); call set_adapter, "
                "or export the adapters to LoRA (multilora.delta.save_as_lora)"
            )
        yield


def _check_layer(target: nn.Module, name: str) -> None:
    """Raise ValueError for a layer that has no plain floating-point weight matrix."""
    if not isinstance(target, (nn.Linear, Conv1D)):
        raise ValueError(
            f"target module {name} is a {type(target).__name__}; "
            "MultiLoRA adapts torch.nn.Linear and transformers' Conv1D"
        )
    quantised = resolve_quantization_backend(target) is not None
    if quantised or not target.weight.dtype.is_floating_point:
        raise ValueError(
            f"target module {name} is quantised ({type(target).__name__}, {target.weight.dtype}); "
            "MultiLoRA needs a floating-point weight: load the model without quantisation"
        )
