"""PEFT tuners: replace the target layers of a model by adapter layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    resolve_quantization_backend,
)
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from multilora.methods.config import AdapterConfig
from multilora.methods.layers import AdapterLinear, MultiLoraLinear


class AdapterModel(BaseTuner):
    """A model whose target layers are wrapped in a method's adapter layers."""

    method: str  # its name in messages
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(
        self,
        peft_config: AdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        peft_config = peft_config.for_module(current_key)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        self._check_layer(target, current_key)
        layer = self._new_layer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained until it is active
        self._replace_module(parent, target_name, layer, target)

    def _new_layer(
        self, target: nn.Module, adapter_name: str, config: AdapterConfig
    ) -> AdapterLinear:
        return self.tuner_layer_cls(target, adapter_name, config)

    def adapter_layers(self, adapter: str) -> list[Any]:
        """Return the layers that have the adapter; raise ValueError if none has it."""
        layers = [
            module
            for module in self.model.modules()
            if isinstance(module, AdapterLinear) and adapter in module.scale
        ]
        if not layers:
            raise ValueError(f"no adapter {adapter!r}; expected one of {list(self.peft_config)}")
        return layers

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Context of PEFT around a forward pass; raises ValueError for arguments ignored in it."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                f"{self.method} cannot mix adapters within a batch (adapter_names); call "
                "set_adapter, or export the adapters to LoRA (multilora.delta.save_as_lora)"
            )
        yield

    def _check_layer(self, target: nn.Module, name: str) -> None:
        """Raise ValueError for a layer without a plain floating-point weight matrix."""
        if isinstance(target, BaseTunerLayer):
            raise ValueError(
                f"target module {name} carries an adapter of another method "
                f"({type(target).__module__}); merge it and unload the model first"
            )
        if isinstance(target, NonDynamicallyQuantizableLinear):
            raise ValueError(
                f"target module {name} is part of a torch.nn.MultiheadAttention, a fused layer "
                f"that bypasses {self.method}; leave it out (exclude_modules)"
            )
        if not isinstance(target, (nn.Linear, Conv1D)):
            raise ValueError(
                f"target module {name} is of type {type(target).__name__}; "
                f"{self.method} adapts torch.nn.Linear and transformers' Conv1D"
            )
        quantised = resolve_quantization_backend(target) is not None
        if quantised or not target.weight.dtype.is_floating_point:
            raise ValueError(
                f"target module {name} is quantised "
                f"({type(target).__name__}, {target.weight.dtype}); {self.method} needs a "
                "floating-point weight; load the model without quantisation"
            )


class MultiLoraModel(AdapterModel):
    """A model whose target layers are wrapped in `MultiLoraLinear`; get_peft_model builds it."""

    method = "MultiLoRA"
    prefix = "multilora_"
    tuner_layer_cls = MultiLoraLinear
