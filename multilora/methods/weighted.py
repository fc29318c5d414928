"""Add weighted sums of MultiLoRA adapters to a model.

Σⱼ wⱼ ΔWⱼ is the MultiLoRA of all their modules, with wⱼ and the scale of each folded into its s.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

COMBINATIONS = ("cat", "linear")


def add(
    model: Any,
    adapters: Sequence[str],
    weights: Sequence[float],
    name: str,
    combination: str,
    others: Mapping[str, Any],
) -> None:
    """Add the adapter `name` with ΔW = Σⱼ wⱼ ΔWⱼ; see `MultiLoraModel.add_weighted_adapter`."""
    _check(model, adapters, weights, name, combination, others)
    layers = {
        key: layer
        for key, layer in model.model.named_modules()
        if isinstance(layer, model.tuner_layer_cls) and any(a in layer.scale for a in adapters)
    }
    if merged := next((layer.merged_adapters for layer in layers.values() if layer.merged), None):
        raise ValueError(f"{', '.join(merged)} is merged; call unmerge_adapter first")
    configs = [model.peft_config[adapter] for adapter in adapters]
    r = max(layer.r[a] for layer in layers.values() for a in adapters if a in layer.r)
    model.peft_config[name] = replace(
        configs[0],
        r=r,
        n=sum(config.n for config in configs),
        lora_alpha=r,
        use_rslora=False,
        rank_pattern={},
        alpha_pattern={},
        scale_per="module" if {c.scale_per for c in configs} == {"module"} else "feature",
        init_lora_weights=True,
        start_b="kaiming",
        start_s=0.0,
        target_modules=set(layers),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
    )
    model.inject_adapter(model.model, name)
    model._cast_adapter_dtype(name)
    for layer in layers.values():
        _fill(layer, adapters, weights, name)


@torch.no_grad()
def _fill(layer: Any, adapters: Sequence[str], weights: Sequence[float], name: str) -> None:
    """Copy the modules of the adapters into those of `name`; the rows beyond a rank are zero.

    Modules of adapters that the layer does not have keep their start, with s = 0.
    """
    n, r = layer.n[name], layer.r[name]
    A = layer.multilora_A[name].data.unflatten(0, (n, r))
    B = layer.multilora_B[name].data.unflatten(1, (n, r))
    s = layer.multilora_s[name].data
    first = 0
    for adapter, weight in zip(adapters, weights, strict=True):
        if adapter not in layer.scale:
            continue
        own_n, own_r = layer.n[adapter], layer.r[adapter]
        own = slice(first, first + own_n)
        A[own], B[:, own] = 0, 0
        A[own, :own_r] = layer.multilora_A[adapter].unflatten(0, (own_n, own_r)).to(A)
        B[:, own, :own_r] = layer.multilora_B[adapter].unflatten(1, (own_n, own_r)).to(B)
        s[:, own] = (weight * layer.scale[adapter] * layer.multilora_s[adapter]).to(s)
        first += own_n


def _check(
    model: Any,
    adapters: Sequence[str],
    weights: Sequence[float],
    name: str,
    combination: str,
    others: Mapping[str, Any],
) -> None:
    """Raise ValueError for what cannot be added exactly."""
    if combination not in COMBINATIONS or others:
        asked = ", ".join([f"combination_type {combination!r}", *others])
        raise ValueError(
            f"{asked}: not of MultiLoRA; expected 'cat' or 'linear', which both give Σ w ΔW exactly"
            " (export to LoRA, multilora.delta.save_as_lora, for the others)"
        )
    known = list(model.peft_config)
    if name in known:
        raise ValueError(f"adapter {name!r} exists already; expected a new name")
    if not adapters or len(adapters) != len(weights) or set(adapters) - set(known):
        raise ValueError(
            f"adapters {list(adapters)} with weights {list(weights)}; expected a weight for each of"
            f" some of {known}"
        )
    if not all(map(math.isfinite, weights)):
        raise ValueError(f"weights {list(weights)}; expected finite numbers")
    for adapter in adapters:
        config = model.peft_config[adapter]
        if config.bias != "none" or config.modules_to_save:
            raise ValueError(
                f"adapter {adapter!r} has bias {config.bias!r} and modules_to_save"
                f" {config.modules_to_save}, which are no ΔW; expected neither"
            )
