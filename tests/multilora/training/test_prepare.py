"""Which parameters each method makes trainable."""

import pytest
from peft import PeftModel
from tiny_runs import settings_of

from multilora import delta
from multilora.methods.layers import MultiLoraLinear
from multilora.training import prepare


@pytest.fixture(scope="module")
def model_path(tiny_base):
    return str(tiny_base)


def test_targets_choose_the_same_layers_for_every_method(model_path):
    names = {}
    for method in ("full", "lora", "multilora"):
        settings = settings_of(model_path, method, target_modules="q_proj,down_proj")
        model = prepare.prepare(delta.load_base(model_path)[0], settings)
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        names[method] = {
            n.removeprefix("base_model.model.").split("_proj")[0] + "_proj" for n in trained
        }
    assert names["full"] == names["lora"] == names["multilora"]
    assert len(names["full"]) == 4


@pytest.mark.parametrize("method", ["lora", "multilora", "full"])
def test_one_name_alone_is_a_name_and_no_regex(model_path, method):
    model, _ = delta.load_base(model_path)
    model = prepare.prepare(model, settings_of(model_path, method, target_modules="q_proj"))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".q_proj." in name for name in trained)


def test_the_settings_reach_the_adapter(model_path):
    settings = settings_of(model_path, r=3, n=2, scale=1.5, dropout=0.25)
    model = prepare.prepare(delta.load_base(model_path)[0], settings)
    assert isinstance(model, PeftModel)
    layers = [m for m in model.modules() if isinstance(m, MultiLoraLinear)]
    assert len(layers) == 14
    for layer in layers:
        assert (layer.n["default"], layer.r["default"], layer.scale["default"]) == (2, 3, 1.5)
        assert layer.multilora_dropout["default"].p == 0.25
