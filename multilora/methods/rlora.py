"""R-LoRA: one A and n heads, mixed for every input by a router (arXiv 2502.15455).

The update depends on the input. Merging and exporting therefore need the router replaced by the
mean of the heads, an approximation whose error `multilora.delta.mean_router_error` measures.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from multilora.methods.config import RLoraConfig
from multilora.methods.layers import AdapterLinear
from multilora.methods.tuner import AdapterModel

GAMMA = 64  # γ of the paper's initialisation


class RLoraLinear(AdapterLinear):
    """A Linear or Conv1D with R-LoRA adapters.

    A (r, d_in); B (d_out, n·r), whose columns i·r … (i+1)·r are head i; the router R (n, d_in).
    A0 and B0 are the random initial A and B. They are saved with the adapter and subtracted in the
    forward pass, so that the base weights stay unchanged.
    """

    prefix = "rlora_"
    adapter_layer_names = ("rlora_A", "rlora_B", "rlora_R")
    buffer_names = ("rlora_A0", "rlora_B0")
    setting_names = (
        *AdapterLinear.setting_names,
        "fixed",
    )  # fixed: True if the mean replaces the router

    def start(self, adapter: str, config: RLoraConfig) -> None:
        n, r, d_out, d_in = config.n, config.r, self.out_features, self.in_features
        gain = r**0.25 / math.sqrt(GAMMA)
        A = torch.randn(r, d_in) * (gain / math.sqrt(max(r, d_in)))
        B = torch.randn(d_out, n * r) * (gain / math.sqrt(max(d_out, r)))
        R = torch.zeros(n, d_in)
        if config.router_init == "kaiming":
            nn.init.kaiming_uniform_(R, a=math.sqrt(5))
        self.rlora_A0[adapter], self.rlora_B0[adapter] = A.clone(), B.clone()
        self.rlora_A[adapter], self.rlora_B[adapter] = nn.Parameter(A), nn.Parameter(B)
        self.rlora_R[adapter] = nn.Parameter(R)
        self.fixed[adapter] = False

    def mean(self, adapter: str, B: torch.Tensor) -> torch.Tensor:
        """Mean of the heads: B (d_out, n·r) -> (d_out, r)."""
        return B.unflatten(1, (self.n[adapter], self.r[adapter])).mean(1)

    def weights(self, adapter: str, x: torch.Tensor) -> torch.Tensor:
        """Weights of the heads for the input x (…, d_in): (…, n), summing to 1."""
        n = self.n[adapter]
        if self.fixed[adapter]:
            return x.new_full((*x.shape[:-1], n), 1 / n)
        return F.linear(x, self.rlora_R[adapter]).softmax(-1)

    def added(self, adapter: str, x: torch.Tensor) -> torch.Tensor:
        n = self.n[adapter]
        projected = F.linear(x, self.rlora_A[adapter]).unsqueeze(-2)
        heads = self.rlora_dropout[adapter](projected.expand(*x.shape[:-1], n, -1))
        mixed = (heads * self.weights(adapter, x).unsqueeze(-1)).flatten(-2)
        before = F.linear(x, self.rlora_A0[adapter])
        return self.scale[adapter] * (
            F.linear(mixed, self.rlora_B[adapter])
            - F.linear(before, self.mean(adapter, self.rlora_B0[adapter]))
        )

    def factors(self, adapter: str, scaled: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of the ΔW of the mean of the heads: left (d_out, 2r), right (2r, d_in).

        mean B A − mean B0 A0 is written as (mean B − mean B0) A + mean B0 (A − A0), which avoids
        cancellation and is exactly zero for an untrained adapter.
        """
        A, A0 = self.rlora_A[adapter], self.rlora_A0[adapter]
        B, B0 = (self.mean(adapter, x[adapter]) for x in (self.rlora_B, self.rlora_B0))
        left = torch.cat([B - B0, B0], 1)
        return left * self.scale[adapter] if scaled else left, torch.cat([A, A - A0])

    def parts(self, adapter: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Factors of the ΔW of the mean of the heads and of each head, relative to their start."""
        A, A0 = self.rlora_A[adapter], self.rlora_A0[adapter]
        heads = (x[adapter].chunk(self.n[adapter], 1) for x in (self.rlora_B, self.rlora_B0))
        right, scale = torch.cat([A, A - A0]), self.scale[adapter]
        parts = {"mean": self.factors(adapter)}
        for i, (B, B0) in enumerate(zip(*heads, strict=True), 1):
            parts[f"head{i}"] = torch.cat([B - B0, B0], 1) * scale, right
        return parts

    def check_merge(self, adapter: str) -> None:
        if not self.fixed[adapter]:
            raise ValueError(
                f"adapter {adapter!r}: the update of R-LoRA depends on the input and cannot be "
                "merged; call fix_router() to use the mean of the heads, an approximation"
            )

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return self.fixed.get(adapter_name, False)


class RLoraModel(AdapterModel):
    """A model whose target layers are wrapped in `RLoraLinear`; get_peft_model builds it."""

    method = "R-LoRA"
    prefix = "rlora_"
    tuner_layer_cls = RLoraLinear

    def fix_router(self, fixed: bool = True, adapter: str = "default") -> None:
        """Replace the router by the mean of the heads; with `fixed` false, use the router again.

        The mean approximates the trained adapter and can be merged. The choice is not saved with
        the adapter. Raises ValueError while the adapter is merged.
        """
        layers = self.adapter_layers(adapter)
        if any(adapter in layer.merged_adapters for layer in layers):
            raise ValueError(f"adapter {adapter!r} is merged; call unmerge_adapter first")
        for layer in layers:
            layer.fixed[adapter] = fixed
