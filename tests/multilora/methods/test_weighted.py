import re
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import gpt2, llama

from multilora import MtlLoraConfig, MultiLoraConfig, RLoraConfig
from multilora.methods.layers import MultiLoraLinear

warnings.filterwarnings("ignore", module="peft")

IDS = torch.arange(12).reshape(2, 6)
FIRST = {"r": 2, "n": 3, "lora_alpha": 5, "target_modules": ["q_proj", "embed_tokens"]}
SECOND = {"r": 3, "n": 2, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}


def config_of(**given):
    return MultiLoraConfig(**given, init_lora_weights=False)


def two(build=llama, first=FIRST, second=SECOND):
    torch.manual_seed(0)
    model = get_peft_model(build(), config_of(**first))
    model.add_adapter("second", config_of(**second))
    return model.eval()


def deltas(model, adapter):
    """{module: ΔW in float64} of an adapter."""
    return {
        name: layer.get_delta_weight(adapter).detach().double()
        for name, layer in model.named_modules()
        if isinstance(layer, MultiLoraLinear) and adapter in layer.scale
    }


def assert_sum(model, adapter, terms):
    """ΔW of the adapter is Σ w ΔW of the terms {name: w}, to the rounding of float32."""
    got, parts = deltas(model, adapter), {name: deltas(model, name) for name in terms}
    assert got.keys() == set().union(*parts.values())
    for module, value in got.items():
        want = sum(w * parts[name][module] for name, w in terms.items() if module in parts[name])
        size = sum(
            abs(w) * parts[name][module].norm()
            for name, w in terms.items()
            if module in parts[name]
        )
        assert float((value - want).norm()) <= 2e-6 * float(size), module


@pytest.mark.parametrize("combination", ["cat", "linear"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, -2.0), (0.0, 1.5)])
def test_the_sum_is_exact_for_unlike_ranks_counts_scales_and_targets(combination, weights):
    model = two()
    model.add_weighted_adapter(["default", "second"], list(weights), "sum", combination)
    assert_sum(model, "sum", dict(zip(["default", "second"], weights, strict=True)))
    assert model.peft_config["sum"].n == 5
    assert model.peft_config["sum"].r == 3


def test_the_sum_of_conv1d_layers_and_of_one_number_per_module():
    own = {"r": 2, "n": 2, "target_modules": ["c_attn"], "scale_per": "module"}
    for second, kept in ((own, "module"), (own | {"scale_per": "feature"}, "feature")):
        model = two(gpt2, own, second)
        model.add_weighted_adapter(["default", "second"], [0.5, 2], "sum")
        assert_sum(model, "sum", {"default": 0.5, "second": 2})
        assert model.peft_config["sum"].scale_per == kept


def test_ranks_and_scales_of_single_modules_are_kept():
    first = FIRST | {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 7}}
    model = two(first=first)
    model.add_weighted_adapter(["default", "second"], [1, 1], "sum")
    assert_sum(model, "sum", {"default": 1, "second": 1})


def test_the_sum_is_an_adapter_like_any_other(tmp_path):
    model = two()
    with torch.no_grad():
        before = model(IDS).logits
        model.add_weighted_adapter(["default", "second"], [1, -1], "sum")
        assert torch.equal(model(IDS).logits, before)  # silent until it is chosen
        model.set_adapter("sum")
        want = model(IDS).logits
        model.base_model.set_adapter(["default"])
        assert torch.equal(model(IDS).logits, before)
        model.set_adapter("sum")
        model.save_pretrained(tmp_path, selected_adapters=["sum"])
        model.delete_adapter("sum")
        assert not [name for name in model.state_dict() if ".sum" in name]
        back = PeftModel.from_pretrained(llama(), tmp_path / "sum").eval()
        assert torch.equal(back(IDS).logits, want)
    assert not torch.equal(want, before)


def test_both_together_are_their_sum():
    """Two active adapters add up, so the sum of the two gives the same outputs."""
    model = two()
    model.add_weighted_adapter(["default", "second"], [1, 1], "sum")
    with torch.no_grad():
        model.base_model.set_adapter(["default", "second"])
        want = model(IDS).logits
        model.set_adapter("sum")
        torch.testing.assert_close(model(IDS).logits, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"combination_type": "svd"}, "combination_type 'svd': not of MultiLoRA; expected 'cat'"),
        ({"combination_type": "ties", "density": 0.5}, "combination_type 'ties', density: not"),
        ({"adapter_name": "second"}, "adapter 'second' exists already"),
        ({"adapters": ["default", "third"]}, "some of ['default', 'second']"),
        ({"weights": [1.0]}, "expected a weight for each"),
        ({"adapters": [], "weights": []}, "expected a weight for each"),
        ({"weights": [1.0, float("nan")]}, "expected finite numbers"),
    ],
)
def test_what_is_no_weighted_sum_is_refused(given, words):
    model = two()
    usual = {"adapters": ["default", "second"], "weights": [1, 1], "adapter_name": "sum"}
    with pytest.raises(ValueError, match=re.escape(words)):
        model.add_weighted_adapter(**usual | given)
    assert list(model.peft_config) == ["default", "second"]


def test_what_is_no_update_is_not_added():
    model = two(gpt2, *[{"r": 2, "target_modules": ["c_attn"]}] * 2)
    model.peft_config["second"].bias = "all"
    with pytest.raises(ValueError, match="adapter 'second' has bias 'all'"):
        model.add_weighted_adapter(["default", "second"], [1, 1], "sum")


def test_nothing_is_left_behind_where_an_adapter_is_merged():
    model = two()
    model.merge_adapter(["default"])
    with pytest.raises(ValueError, match="call unmerge_adapter first"):
        model.add_weighted_adapter(["default", "second"], [1, 1], "sum")
    assert "sum" not in model.peft_config


@pytest.mark.parametrize("config", [RLoraConfig, lambda **k: MtlLoraConfig(tasks=["a"], **k)])
def test_the_relatives_say_what_to_do_instead(config):
    model = get_peft_model(llama(), config(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"has no adapter .* export them to LoRA"):
        model.add_weighted_adapter(["default"], [1], "sum")
