"""Put factors into the form that servers of many LoRAs take.

vLLM reads one rank and one scale for a whole adapter, and keeps buffers of `max_lora_rank`, which
is one of RANKS (vllm/config/lora.py: MaxLoRARanks). It ignores rank_pattern and alpha_pattern and
refuses modules_to_save, biases and DoRA (vllm/lora/peft_helper.py).
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def rank(ranks: Iterable[int]) -> int:
    """Return the smallest of RANKS that is not below any rank; ValueError above the largest.

    >>> rank([6, 12]), rank([257])
    (16, 320)
    """
    needed = max(ranks)
    if needed > RANKS[-1]:
        raise ValueError(f"rank {needed} of the export; vLLM serves at most {RANKS[-1]}")
    return next(r for r in RANKS if r >= needed)


def padded(B: torch.Tensor, A: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """B (d_out, k) and A (k, d_in), k ≤ r -> (d_out, r) and (r, d_in) with the same product."""
    missing = r - len(A)
    return F.pad(B, (0, missing)), F.pad(A, (0, 0, 0, missing))


def check(config: Any) -> None:
    """Raise ValueError for an adapter that trains more than factors, which vLLM does not load."""
    if config.modules_to_save or config.bias != "none":
        raise ValueError(
            f"the adapter has modules_to_save {config.modules_to_save} and bias {config.bias!r};"
            " vLLM loads factors only, without either"
        )
