"""Quantised bases: which kinds the methods adapt, and how a merge can be undone exactly.

An adapter adds to the output of its layer and never reads the base weight, so that training on a
quantised layer needs nothing else. Merging does: PEFT's own access to the weight dequantises it,
and quantises W0 + ΔW again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.utils import resolve_quantization_backend
from torch import nn

# PEFT's names of the kinds that are supported; others are refused because they were never tried.
KINDS = ("bnb 4bit", "bnb 8bit")
# Tensors in which layers of GPTQ, AWQ, HQQ and relatives keep their packed weights.
PACKED = ("qweight", "W_q")


def access(layer: nn.Module) -> Any:
    """Return PEFT's access to the weight of a layer in one of KINDS; None for any other layer."""
    found = _resolved(layer)
    return found if getattr(found, "backend_name", None) in KINDS else None


def fault(layer: nn.Module, model: nn.Module) -> str | None:
    """Return how a layer of `model` is quantised, in words, unless it is not or is one of KINDS."""
    weight = getattr(layer, "weight", None)
    found = _resolved(layer)
    packed = any(getattr(layer, name, None) is not None for name in PACKED)
    integers = isinstance(weight, torch.Tensor) and not weight.dtype.is_floating_point
    if getattr(found, "backend_name", None) in KINDS or not (found or packed or integers):
        return None
    of_model = getattr(getattr(model, "config", None), "quantization_config", None)
    if isinstance(of_model, dict):
        method = of_model.get("quant_method")
    else:
        method = getattr(of_model, "quant_method", None)
    kinds = [str(getattr(method, "value", method or "")), getattr(found, "backend_name", "")]
    dtype = str(weight.dtype) if isinstance(weight, torch.Tensor) else ""
    said = [next(filter(None, kinds), ""), type(layer).__name__, dtype]
    return ", ".join(filter(None, said))


def _resolved(layer: nn.Module) -> Any:
    """PEFT's access to the weight of a quantised layer of any kind, or None."""
    try:
        return resolve_quantization_backend(layer)
    except ValueError:  # torchao: PEFT asks how it was quantised
        return _Torchao()


class _Torchao:
    backend_name = "torchao"


def plain_layout(model: nn.Module) -> None:
    """Keep layers of 4 bits in the layout in which they can be trained and merged.

    On a processor with AVX512-BF16, bitsandbytes 0.50 repacks such a layer at its first call
    outside training. From then on no gradient passes through it, its bytes are in an order that a
    merge does not know, and widths that are no multiple of 32 end in an error.
    """
    for layer in model.modules():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.support_avx512bf16_for_cpu = False
            if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
                layer.state_dict()  # which unpacks the layer itself


@dataclass(frozen=True, eq=False)
class Kept:
    """The weight of a layer of bitsandbytes, kept so that it can be put back bit for bit."""

    weight: nn.Parameter
    scales: torch.Tensor | None  # of the rows, in 8 bits; in 4 bits the weight holds its own

    @classmethod
    def of(cls, layer: nn.Module) -> "Kept":
        """Keep the present weight of `layer`."""
        state = getattr(layer, "state", None)
        if state is None:
            return cls(layer.weight, None)
        return cls(layer.weight, layer.weight.SCB if state.SCB is None else state.SCB)

    def put_back(self, layer: nn.Module) -> None:
        """Make the kept weight that of `layer` again."""
        layer.weight = self.weight
        if (state := getattr(layer, "state", None)) is not None:
            state.reset_grads()
            state.CB, state.SCB = self.weight.data, self.scales
