"""MultiLoRA of an embedding, whose input is an index instead of a vector."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from multilora.methods.config import AdapterConfig
from multilora.methods.layers import MultiLoraLinear


class MultiLoraEmbedding(MultiLoraLinear):
    """An Embedding with MultiLoRA adapters.

    The weight (d_in, d_out) maps a one-hot vector of d_in entries, given by its index, so that
    A (n·r, d_in) is looked up instead of multiplied. ΔW, its parameters and their names are those
    of a linear layer. As in PEFT's LoRA there is no dropout, and the padding index learns nothing.
    """

    def start_A(self, A: torch.Tensor, config: AdapterConfig) -> None:
        """Fill A (r, d_in) with its initial values; a one-hot input has a fan-in of one."""
        if config.init_lora_weights == "gaussian":
            nn.init.normal_(A, std=1 / len(A))
        else:
            nn.init.uniform_(A, -1, 1)

    def added(self, adapter: str, x: torch.Tensor) -> torch.Tensor:
        left, right = self.factors(adapter)
        found = F.embedding(x, right.T, padding_idx=self.get_base_layer().padding_idx)
        result = F.linear(found, left)
        scale = self._get_embed_scale()  # some models multiply what is looked up
        return result if scale is None else result * scale.to(result.dtype)

    def _cast_input_dtype(self, x: Any, dtype: torch.dtype) -> Any:
        return x  # indices
