"""Quantised layers of a kind that no method adapts, by stand-ins: one line each."""

from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from torch import nn

from multilora import MultiLoraConfig, RLoraConfig
from multilora.methods import quantised


class Packed(nn.Module):
    """A layer as GPTQ and AWQ have it: packed integers instead of a weight."""

    def __init__(self):
        super().__init__()
        self.qweight = nn.Parameter(torch.ones(4, 4, dtype=torch.int32), requires_grad=False)
        self.in_features, self.out_features = 4, 4


class Model(nn.Module):
    def __init__(self, layer, **quantization):
        super().__init__()
        self.layer = layer
        self.config = SimpleNamespace(to_dict=dict, **quantization)


@pytest.mark.parametrize("config", [MultiLoraConfig, RLoraConfig])
@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quantization_config": SimpleNamespace(quant_method="gptq")}, r"\(gptq, Packed\)"),
        ({"quantization_config": {"quant_method": "awq"}}, r"\(awq, Packed\)"),
        ({}, r"\(Packed\)"),
    ],
)
def test_the_kind_is_named_and_what_to_do(config, quantization, words):
    with pytest.raises(ValueError, match=rf"layer is quantised {words}; .* in 4 or 8 bits") as e:
        get_peft_model(Model(Packed(), **quantization), config(target_modules=["layer"]))
    assert "\n" not in str(e.value)


def test_torchao_is_named_though_peft_asks_for_more(monkeypatch):
    def resolve(layer):
        raise ValueError("torchao quantized layer detected but …")

    monkeypatch.setattr(quantised, "resolve_quantization_backend", resolve)
    assert quantised.fault(nn.Linear(2, 2), nn.Module()) == "torchao, Linear, torch.float32"
    assert quantised.access(nn.Linear(2, 2)) is None


def test_a_backend_of_peft_that_was_never_tried_here_is_refused(monkeypatch):
    found = SimpleNamespace(backend_name="hqq")
    monkeypatch.setattr(quantised, "resolve_quantization_backend", lambda layer: found)
    assert quantised.fault(nn.Linear(2, 2), nn.Module()) == "hqq, Linear, torch.float32"
