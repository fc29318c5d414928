"""The adapter layers: each wraps a frozen linear layer and adds its ΔW to what comes out."""

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from transformers.pytorch_utils import Conv1D

from multilora.config import MultiLoraConfig


class MultiLoraLinear(nn.Module, BaseTunerLayer):
    """A Linear or Conv1D with MultiLoRA adapters (arXiv 2311.11501, section 4).

    An adapter holds its n modules stacked, A (n·r, d_in), B (d_out, n·r), s (d_out, n): rows
    i·r … (i+1)·r of A and the same columns of B are module i. Folding scale and s into B makes
    them one factored update, so forward costs two products, whatever n.
    """

    adapter_layer_names = ("multilora_A", "multilora_B", "multilora_s")
    other_param_names = ("multilora_dropout", "n", "r", "scale")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: MultiLoraConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        base = self.get_base_layer()
        self.fan_in_fan_out = isinstance(base, Conv1D)  # Conv1D stores its weight (d_in, d_out)
        shape = base.weight.shape
        self.out_features, self.in_features = shape[::-1] if self.fan_in_fan_out else shape
        self.multilora_A = nn.ParameterDict()
        self.multilora_B = nn.ParameterDict()
        self.multilora_s = nn.ParameterDict()
        self.multilora_dropout = nn.ModuleDict()
        self.n: dict[str, int] = {}
        self.r: dict[str, int] = {}
        self.scale: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: MultiLoraConfig) -> None:
        """Add an adapter, at its start."""
        n, r = config.n, config.r
        self.n[adapter_name], self.r[adapter_name] = n, r
        self.scale[adapter_name] = config.scale
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.multilora_dropout[adapter_name] = dropout
        self.multilora_A[adapter_name] = nn.Parameter(torch.empty(n * r, self.in_features))
        self.multilora_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, n * r))
        self.multilora_s[adapter_name] = nn.Parameter(
            torch.full((self.out_features, n), float(config.start_s))
        )
        # Each module is a matrix of its own: the fan-in of Bᵢ is r, not n·r.
        with torch.no_grad():
            for i in range(n):
                module = slice(i * r, (i + 1) * r)
                nn.init.kaiming_uniform_(self.multilora_A[adapter_name][module], a=math.sqrt(5))
                if config.start_b == "kaiming":
                    B = self.multilora_B[adapter_name][:, module]
                    nn.init.kaiming_uniform_(B, a=math.sqrt(5))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def factors(self, adapter: str, scaled: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """ΔW = left @ right: left (d_out, n·r), right (n·r, d_in).

        s is folded into left, and scale unless `scaled` is false: then it is ΔW / scale.
        """
        s = self.multilora_s[adapter] * (self.scale[adapter] if scaled else 1)
        B = self.multilora_B[adapter].unflatten(1, (self.n[adapter], self.r[adapter]))
        return (B * s.unsqueeze(-1)).flatten(1), self.multilora_A[adapter]

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """ΔW in the layout of the base weight: (d_out, d_in), for Conv1D (d_in, d_out)."""
        left, right = self.factors(adapter)
        if left.device.type == "cpu" and left.dtype in (torch.float16, torch.bfloat16):
            delta = (left.float() @ right.float()).to(left.dtype)  # half products are slow there
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
        for adapter in self.active_adapters:
            if adapter not in self.multilora_A:
                continue
            left, right = self.factors(adapter)
            inputs = self.multilora_dropout[adapter](self._cast_input_dtype(x, right.dtype))
            result = result + F.linear(F.linear(inputs, right), left)
        return result.to(dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ΔW to the base weight; with `safe_merge` only if the sum is finite (ValueError)."""
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.multilora_A:
                continue
            weight = self.get_base_weight()
            merged = weight + self.get_delta_weight(adapter).to(weight)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"adapter {adapter!r}: NaN or Inf in the merged weights")
            self.set_base_weight(merged)
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Take every merged ΔW out again, up to rounding."""
        if not self.merged:
            warnings.warn("no adapter is merged: nothing to unmerge", stacklevel=2)
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            weight = self.get_base_weight()
            self.set_base_weight(weight - self.get_delta_weight(adapter).to(weight))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return "multilora." + super().__repr__()
