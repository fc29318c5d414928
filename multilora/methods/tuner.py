"""PEFT tuners: replace the target layers of a model by adapter layers."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from multilora.methods import quantised, weighted
from multilora.methods.config import AdapterConfig
from multilora.methods.embedding import MultiLoraEmbedding
from multilora.methods.layers import AdapterLinear, MultiLoraLinear

TYPES = {
    (nn.Linear, Conv1D): "torch.nn.Linear and transformers' Conv1D",
    (nn.Linear, Conv1D, nn.Embedding): "torch.nn.Linear and Embedding, and transformers' Conv1D",
}


class AdapterModel(BaseTuner):
    """A model whose target layers are wrapped in a method's adapter layers."""

    method: str  # its name in messages
    adapts: tuple[type, ...] = (nn.Linear, Conv1D)  # types of layers
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _prepare_model(self, peft_config: AdapterConfig, model: nn.Module) -> None:
        quantised.plain_layout(model)

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
        if peft_config.fan_in_fan_out and isinstance(target, nn.Linear):
            warnings.warn(
                f"fan_in_fan_out is True, but target module {current_key} is a"
                f" {type(target).__name__}, which stores its weight (d_out, d_in); it is read so",
                stacklevel=2,
            )
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
        if how := quantised.fault(target, self.model):
            raise ValueError(
                f"target module {name} is quantised ({how}); {self.method} needs a floating-point"
                " weight, or one of bitsandbytes in 4 or 8 bits; load the model without"
                " quantisation or with a BitsAndBytesConfig"
            )
        if not isinstance(target, self.adapts):
            raise ValueError(
                f"target module {name} is of type {type(target).__name__}; {self.method} adapts"
                f" {TYPES[self.adapts]}"
            )

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "cat",
        **others: Any,
    ) -> None:
        """Add an adapter whose ΔW is a weighted sum; refused with a ValueError here.

        Only an update that is a sum of products, as MultiLoRA's, is closed under addition.
        """
        raise ValueError(
            f"{self.method} has no adapter whose update is the weighted sum of others; export"
            " them to LoRA (multilora.delta.save_as_lora) and add those"
        )


class MultiLoraModel(AdapterModel):
    """A model whose target layers are wrapped in `MultiLoraLinear`; get_peft_model builds it."""

    method = "MultiLoRA"
    adapts = (nn.Linear, Conv1D, nn.Embedding)
    prefix = "multilora_"
    tuner_layer_cls = MultiLoraLinear

    def _new_layer(
        self, target: nn.Module, adapter_name: str, config: AdapterConfig
    ) -> AdapterLinear:
        of_ids = isinstance(target, nn.Embedding)
        layer = MultiLoraEmbedding if of_ids else MultiLoraLinear
        return layer(target, adapter_name, config)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "cat",
        **others: Any,
    ) -> None:
        """Add an adapter with ΔW = Σⱼ wⱼ ΔWⱼ, exactly: its modules are those of all the others.

        adapters, weights: the names and their wⱼ, any finite numbers.
        adapter_name: of the new adapter, which is not active yet.
        combination_type: "cat" or "linear", which do the same. (PEFT's "linear" for LoRA is an
            approximation, because it adds factors.)

        Raises ValueError for any other combination and its options, for unknown or merged adapters,
        and for adapters with biases or modules of their own.
        """
        weighted.add(self, adapters, weights, adapter_name, combination_type, others)
