"""Fields that configs of PEFT's LoRA carry: bias, fan_in_fan_out, init_lora_weights."""

import copy
import re
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights
from tiny_models import gpt2, llama, trained
from torch import nn

from analysis import spectrum
from multilora import MtlLoraConfig, MultiLoraConfig, RLoraConfig
from multilora.delta import save_as_lora
from multilora.methods.layers import AdapterLinear

warnings.filterwarnings("ignore", module="peft")

IDS = torch.arange(12).reshape(2, 6)
CONFIGS = {
    "multilora": MultiLoraConfig,
    "rlora": RLoraConfig,
    "mtllora": lambda **given: MtlLoraConfig(tasks=["a", "b"], **given),
}


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def layers(model):
    return [layer for layer in model.modules() if isinstance(layer, AdapterLinear)]


@pytest.mark.parametrize("method", list(CONFIGS))
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_the_biases_that_lora_would_train_are_trained(method, bias):
    given = {"r": 2, "target_modules": ["c_attn"], "bias": bias}
    config = CONFIGS[method](**given)
    assert config.bias == (f"{method}_only" if bias == "lora_only" else bias)
    model = get_peft_model(gpt2(), config)
    theirs = get_peft_model(gpt2(), LoraConfig(**given, fan_in_fan_out=True))
    named = {n for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")}
    want = {n for n, p in theirs.named_parameters() if p.requires_grad and n.endswith("bias")}
    assert named == want
    assert len(want) == {"none": 0, "all": 2 * 6 + 1, "lora_only": 2}[bias]


@pytest.mark.parametrize("bias", ["all", "multilora_only"])
def test_trained_biases_are_saved_loaded_and_exported(bias, tmp_path):
    config = MultiLoraConfig(
        r=2, target_modules=["c_attn"], bias=bias, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = trained(gpt2(), config)
    want = logits(model)
    model.save_pretrained(tmp_path / "own")
    assert any(key.endswith("bias") for key in load_peft_weights(str(tmp_path / "own")))
    back = PeftModel.from_pretrained(gpt2(), tmp_path / "own")
    assert torch.equal(logits(back), want)
    save_as_lora(model, tmp_path / "lora")
    plain = PeftModel.from_pretrained(gpt2(), tmp_path / "lora")
    assert plain.peft_config["default"].bias == ("all" if bias == "all" else "lora_only")
    torch.testing.assert_close(logits(plain), want, rtol=1e-4, atol=1e-4)
    # Biases are no ΔW of a matrix.
    assert len(spectrum.analyse(str(tmp_path / "own")).rows) == 2


@pytest.mark.parametrize("method", list(CONFIGS))
@pytest.mark.parametrize("bias", ["some", "boft_only", None, True])
def test_a_bias_that_is_none_is_refused(method, bias):
    words = f"bias is {bias!r}; expected 'none', 'all' or '{method}_only'"
    with pytest.raises(ValueError, match=re.escape(words)):
        CONFIGS[method](bias=bias)


def test_two_adapters_with_biases_are_refused_as_peft_refuses_them():
    config = MultiLoraConfig(r=2, target_modules=["c_attn"], bias="all")
    model = get_peft_model(gpt2(), config)
    with pytest.raises(ValueError, match="supports only 1 adapter with bias"):
        model.add_adapter("second", copy.deepcopy(config))


@pytest.mark.parametrize("given", [True, False])
def test_fan_in_fan_out_changes_nothing(given):
    outputs = []
    for config in ({}, {"fan_in_fan_out": given}):
        torch.manual_seed(3)
        own = MultiLoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, **config)
        outputs.append(logits(get_peft_model(gpt2(), own)))
    assert torch.equal(*outputs)


def test_fan_in_fan_out_of_a_linear_layer_is_a_warning_as_in_lora():
    config = MultiLoraConfig(r=2, target_modules=["q_proj"], fan_in_fan_out=True)
    with pytest.warns(UserWarning, match=r"fan_in_fan_out is True, .*q_proj is a Linear"):
        get_peft_model(llama(), config)


@pytest.mark.parametrize("method", ["multilora", "mtllora"])
def test_a_gaussian_start_has_the_variance_of_lora_and_no_update(method):
    torch.manual_seed(0)
    config = CONFIGS[method](r=4, target_modules=["x"], init_lora_weights="gaussian")
    model = get_peft_model(nn.ModuleDict({"x": nn.Linear(4000, 8)}), config)
    (layer,) = layers(model)
    A = getattr(layer, f"{method}_A")["default"].detach()
    assert abs(float(A.std()) * 4 - 1) < 0.02  # std 1/r, of at least 16,000 numbers
    assert float((A.abs() > 2 / 4).float().mean()) > 0.03  # unlike a uniform one
    part = {"task": "a"} if method == "mtllora" else {}
    assert not layer.get_delta_weight("default", **part).any()


@pytest.mark.parametrize("method", ["multilora", "mtllora"])
@pytest.mark.parametrize("start", [{}, {"start_b": "zero", "start_s": 1.0}])
def test_without_initialisation_the_update_is_random_and_not_zero(method, start):
    if method == "mtllora" and start:
        pytest.skip("a setting of MultiLoRA")
    config = CONFIGS[method](r=2, target_modules=["x"], init_lora_weights=False, **start)
    (layer,) = layers(get_peft_model(nn.ModuleDict({"x": nn.Linear(7, 5)}), config))
    part = {"task": "a"} if method == "mtllora" else {}
    assert (layer.get_delta_weight("default", **part) != 0).all()


def test_the_usual_start_draws_the_numbers_that_it_always_drew():
    """A and B of every module in turn, Kaiming-uniform: runs depend on it bit for bit."""
    torch.manual_seed(5)
    model = get_peft_model(
        nn.ModuleDict({"x": nn.Linear(7, 5)}), MultiLoraConfig(r=2, n=3, target_modules=["x"])
    )
    (layer,) = layers(model)
    torch.manual_seed(5)
    nn.Linear(7, 5)
    for i in range(3):
        A, B = torch.empty(2, 7), torch.empty(5, 2)
        nn.init.kaiming_uniform_(A, a=5**0.5)
        nn.init.kaiming_uniform_(B, a=5**0.5)
        assert torch.equal(layer.multilora_A["default"][2 * i : 2 * i + 2], A)
        assert torch.equal(layer.multilora_B["default"][:, 2 * i : 2 * i + 2], B)


@pytest.mark.parametrize(
    ("method", "start", "words"),
    [
        ("multilora", "pissa", "it moves part of W0 into one pair of factors"),
        ("multilora", "pissa_niter_4", "it moves part of W0"),
        ("multilora", "olora", "it moves part of W0"),
        ("multilora", "eva", "it looks at data"),
        ("multilora", "corda", "it looks at data"),
        ("multilora", "loftq", "it moves the error of quantisation"),
        ("multilora", "orthogonal", "ΔW starts at zero anyhow"),
        ("multilora", "zeros", "is 'zeros'; expected True or False or 'gaussian'"),
        ("multilora", 1, "is 1; expected True or False or 'gaussian'"),
        ("mtllora", "pissa", "it moves part of W0"),
        ("rlora", False, "R-LoRA subtracts its random start, whose variance the paper fixes"),
        ("rlora", "gaussian", "R-LoRA subtracts its random start"),
        ("rlora", "pissa", "it moves part of W0"),
    ],
)
def test_other_starts_are_refused_with_the_reason(method, start, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        CONFIGS[method](init_lora_weights=start)
    assert str(error.value).startswith(f"init_lora_weights is {start!r}")


def test_a_config_of_lora_that_carries_them_becomes_one_of_multilora():
    """The README's one-line diff."""
    carried = {
        "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["c_attn", "c_fc"],
        "bias": "lora_only", "fan_in_fan_out": True, "init_lora_weights": "gaussian",
        "task_type": "CAUSAL_LM", "use_rslora": True, "modules_to_save": None,
        "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None,
    }  # fmt: skip
    for config in (LoraConfig, MultiLoraConfig):
        assert get_peft_model(gpt2(), config(**carried))(IDS).logits.isfinite().all()
