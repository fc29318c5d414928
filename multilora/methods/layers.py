"""Adapter layers: each wraps a frozen linear layer and adds the output of its update ΔW.

This file holds the base class of all methods and MultiLoRA; `rlora` and `mtllora` hold the others.
"""

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from transformers.pytorch_utils import Conv1D

from multilora.methods import quantised
from multilora.methods.config import AdapterConfig, MultiLoraConfig


class AdapterLinear(nn.Module, BaseTunerLayer):
    """A Linear or Conv1D with adapters, each with its n, r, scale, dropout and parameters.

    The subclass of a method names the parameters (the first is A), initialises them (`start`),
    computes what an adapter adds to the output (`added`) and gives its ΔW (`factors`).
    """

    prefix: str
    buffer_names: tuple[str, ...] = ()  # tensors that are saved but not trained
    setting_names: tuple[str, ...] = ("n", "r", "scale")  # dicts: adapter -> value

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: AdapterConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        base = self.get_base_layer()
        # These store their weight (d_in, d_out).
        self.fan_in_fan_out = isinstance(base, (Conv1D, nn.Embedding))
        self.quantization_backend = quantised.access(base)
        self.before_merge: quantised.Kept | None = None
        if isinstance(base, nn.Linear):  # whose weight may be packed
            self.out_features, self.in_features = base.out_features, base.in_features
        else:
            self.in_features, self.out_features = base.weight.shape
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        for name in self.buffer_names:
            setattr(self, name, BufferDict(persistent=True))
        for name in self.setting_names:
            setattr(self, name, {})
        setattr(self, f"{self.prefix}dropout", nn.ModuleDict())
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    @property
    def other_param_names(self) -> tuple[str, ...]:
        """Attributes from which PEFT deletes an adapter's entries, other than parameters."""
        return (f"{self.prefix}dropout", *self.buffer_names, *self.setting_names)

    def update_layer(self, adapter_name: str, config: AdapterConfig) -> None:
        """Add an adapter with initial values; raise ValueError while another is merged."""
        if self.merged:
            raise ValueError(
                f"adapter {adapter_name!r} cannot be added to a layer into which "
                f"{', '.join(self.merged_adapters)} is merged; call unmerge_adapter first"
            )
        self.n[adapter_name], self.r[adapter_name] = config.n, config.r
        self.scale[adapter_name] = config.scale
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        getattr(self, f"{self.prefix}dropout")[adapter_name] = dropout
        self.start(adapter_name, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def start(self, adapter: str, config: Any) -> None:
        """Create the adapter's parameters with their initial values."""
        raise NotImplementedError

    def start_A(self, A: torch.Tensor, config: AdapterConfig) -> None:
        """Fill A (r, d_in) with its initial values, as PEFT's LoRA does."""
        if config.init_lora_weights == "gaussian":
            nn.init.normal_(A, std=1 / len(A))
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))

    def added(self, adapter: str, x: torch.Tensor) -> torch.Tensor:
        """Output that the adapter adds for the input x (batch, …, d_in): (batch, …, d_out)."""
        raise NotImplementedError

    def factors(self, adapter: str, scaled: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors (left, right) of ΔW; if not `scaled`, of ΔW / scale in float32 or wider."""
        raise NotImplementedError

    def check_merge(self, adapter: str) -> None:
        """Raise ValueError if the adapter has no single ΔW that could be merged."""

    def get_delta_weight(self, adapter: str, **part: Any) -> torch.Tensor:
        """ΔW in the layout of the base weight: (d_out, d_in), for Conv1D (d_in, d_out).

        part: further arguments of the method's `factors`, such as the task of MTL-LoRA.
        """
        left, right = self.factors(adapter, **part)
        if left.device.type == "cpu" and left.dtype in (torch.float16, torch.bfloat16):
            delta = (left.float() @ right.float()).to(
                left.dtype
            )  # half-precision products are slow on the CPU
        else:
            delta = left @ right
        return delta.T if self.fan_in_fan_out else delta

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        A = getattr(self, self.adapter_layer_names[0])
        for adapter in self.active_adapters:
            if adapter in A:
                inputs = self._cast_input_dtype(x, A[adapter].dtype)
                result = result + self.added(adapter, inputs)
        return result.to(dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ΔW to the base weight; `safe_merge` raises ValueError if the sum is not finite."""
        A = getattr(self, self.adapter_layer_names[0])
        adapters = [name for name in check_adapters_to_merge(self, adapter_names) if name in A]
        for adapter in adapters:
            self.check_merge(adapter)
        for adapter in adapters:
            weight = self._weight_to_merge_into()
            merged = weight + self.get_delta_weight(adapter).to(weight)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(
                    f"adapter {adapter!r}: NaN or Inf in the merged weights; expected finite ones"
                )
            self.set_base_weight(merged)
            self.merged_adapters.append(adapter)

    def _weight_to_merge_into(self) -> torch.Tensor:
        """The base weight; of a quantised layer, which is kept for `unmerge`, in float32."""
        if self.quantization_backend is None:
            return self.get_base_weight()
        if not self.merged:
            self.before_merge = quantised.Kept.of(self.get_base_layer())
        warnings.warn(
            f"the merged weight is rounded to {self.quantization_backend.backend_name} again, which"
            " can lose a small ΔW; for a merge without loss put the adapter on an unquantised base",
            stacklevel=3,
        )
        return at_least_float32(self.get_base_weight())

    def unmerge(self) -> None:
        """Subtract every merged ΔW from the base weight again, exact up to rounding.

        A quantised weight is put back as it was, bit for bit.
        """
        if not self.merged:
            warnings.warn("no adapter is merged; nothing to unmerge", stacklevel=2)
        elif self.before_merge is not None:
            self.before_merge.put_back(self.get_base_layer())
            self.before_merge = None
            self.merged_adapters.clear()
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            weight = self.get_base_weight()
            self.set_base_weight(weight - self.get_delta_weight(adapter).to(weight))

    def __repr__(self) -> str:
        return self.prefix.replace("_", ".") + super().__repr__()


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Return x, copied to float32 if its own dtype is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class MultiLoraLinear(AdapterLinear):
    """A Linear or Conv1D with MultiLoRA adapters (arXiv 2311.11501, section 4).

    An adapter holds its n modules stacked: A (n·r, d_in), B (d_out, n·r), and s (d_out, n), or
    (1, n) with one scale per module. Rows i·r … (i+1)·r of A and the same columns of B are module
    i. With scale and s folded into B, all modules are one factored update, so that a forward pass
    costs two products for any n.
    """

    prefix = "multilora_"
    adapter_layer_names = ("multilora_A", "multilora_B", "multilora_s")

    def start(self, adapter: str, config: MultiLoraConfig) -> None:
        n, r = config.n, config.r
        nonzero = config.init_lora_weights is False  # ΔW is random, and s one
        self.multilora_A[adapter] = nn.Parameter(torch.empty(n * r, self.in_features))
        self.multilora_B[adapter] = nn.Parameter(torch.zeros(self.out_features, n * r))
        scaled = self.out_features if config.scale_per == "feature" else 1
        s = 1.0 if nonzero else float(config.start_s)
        self.multilora_s[adapter] = nn.Parameter(torch.full((scaled, n), s))
        # Each module is a matrix of its own: the fan-in of Bᵢ is r, not n·r.
        with torch.no_grad():
            for i in range(n):
                module = slice(i * r, (i + 1) * r)
                self.start_A(self.multilora_A[adapter][module], config)
                if config.start_b == "kaiming" or nonzero:
                    nn.init.kaiming_uniform_(self.multilora_B[adapter][:, module], a=math.sqrt(5))

    def factors(self, adapter: str, scaled: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of ΔW = left @ right: left (d_out, n·r), right (n·r, d_in).

        s is folded into left, and so is scale if `scaled`; otherwise the factors give ΔW / scale.
        """
        A, B, s = (getattr(self, name)[adapter] for name in self.adapter_layer_names)
        if not scaled:
            A, B, s = map(at_least_float32, (A, B, s))
        else:
            s = s * self.scale[adapter]
        B = B.unflatten(1, (self.n[adapter], self.r[adapter]))
        return (B * s.unsqueeze(-1)).flatten(1), A

    def added(self, adapter: str, x: torch.Tensor) -> torch.Tensor:
        left, right = self.factors(adapter)
        return F.linear(F.linear(self.multilora_dropout[adapter](x), right), left)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True
