import json

import peft
import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.conversion import convert_to_lora, save_as_lora
from safetensors.torch import save_file
from torch import nn

from multilora import MethodType, MultiLoraConfig, MultiLoraModel
from multilora.methods.layers import MultiLoraLinear

V, QV = ["v_proj"], ["q_proj", "v_proj"]
PROJECTIONS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()


def llama(**config):
    """A LLaMA of two layers, the same at every call."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.2,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | config)).eval()


def gpt2():
    """A GPT-2 of two layers, whose linear layers are Conv1D."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=32, initializer_range=0.2
    )
    return transformers.GPT2LMHeadModel(config).eval()


MODELS = {"llama": (llama, ["q_proj", "down_proj"]), "gpt2": (gpt2, ["c_attn", "c_fc"])}


@pytest.fixture(params=list(MODELS))
def family(request):
    """(model function, target modules), once for Linear and once for Conv1D."""
    return MODELS[request.param]


def tokens():
    return torch.arange(24).reshape(2, 12) % 50


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits


def adapted(model, **config):
    """The model with MultiLoRA at its start."""
    config = {"r": 2, "n": 3, "target_modules": ["q_proj", "down_proj"]} | config
    return get_peft_model(model, MultiLoraConfig(**config)).eval()


def trained(model, **config):
    """The same, as if training had moved every s."""
    return move(adapted(model, **config))


def move(model, adapter="default", seed=1):
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(model).values():
        s = layer.multilora_s[adapter].data
        s.copy_(torch.randn(s.shape, generator=generator))
    return model


def layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, MultiLoraLinear)}


def targets(model):
    return {name.removeprefix("base_model.model.") for name in layers(model)}


def assert_near(got, want, factor=100):
    eps, scale = torch.finfo(want.dtype).eps, float(want.abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=factor * eps * scale)


def test_peft_knows_the_method():
    assert peft.get_peft_config({"peft_type": "MULTILORA", "r": 3}).r == 3
    assert peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[MethodType.MULTILORA] is MultiLoraModel
    model = adapted(llama())
    assert isinstance(model, PeftModel)
    assert isinstance(model.base_model, MultiLoraModel)


def test_the_start_is_the_base_model_bit_for_bit(family):
    build, names = family
    for start in ({}, {"start_b": "zero", "start_s": 1.0}):
        model = adapted(build(), target_modules=names, **start)
        assert torch.equal(logits(model), logits(build()))
    assert not torch.equal(logits(move(adapted(build(), target_modules=names))), logits(build()))


def test_only_the_adapter_is_trained(family):
    build, names = family
    model = trained(build(), target_modules=names)
    for name, p in model.named_parameters():
        assert p.requires_grad == ("multilora_" in name)
    model(tokens(), labels=tokens()).loss.backward()
    assert all(p.grad is None or p.grad.any() for p in model.parameters())
    assert sum(p.grad is not None for p in model.parameters()) == 3 * len(layers(model))


def test_the_budget_is_lora_of_rank_nr_and_the_scales():
    multi = adapted(llama(), r=2, n=3, target_modules="all-linear")
    lora = get_peft_model(llama(), LoraConfig(r=6, target_modules="all-linear"))
    scales = sum(3 * layer.out_features for layer in layers(multi).values())
    assert scales > 0
    trainable, _ = multi.get_nb_trainable_parameters()
    assert trainable == lora.get_nb_trainable_parameters()[0] + scales


def test_all_linear_leaves_the_head_out():
    names = targets(adapted(llama(), target_modules="all-linear"))
    assert names == {
        f"model.layers.{i}.{'mlp' if name[0] in 'gud' else 'self_attn'}.{name}"
        for i in (0, 1)
        for name in PROJECTIONS
    }


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({"target_modules": V}, {0: V, 1: V}),
        ({"target_modules": r".*\.1\..*\.[qv]_proj"}, {1: QV}),
        ({"target_modules": QV, "layers_to_transform": 0}, {0: QV}),
        ({"target_modules": V, "layers_to_transform": [1], "layers_pattern": "layers"}, {1: V}),
        ({"target_modules": QV, "exclude_modules": ["q_proj"]}, {0: V, 1: V}),
        ({"target_modules": QV, "exclude_modules": r".*\.0\..*"}, {1: QV}),
        ({"target_modules": None}, {0: QV, 1: QV}),  # PEFT's own choice for LLaMA
    ],
)
def test_modules_are_chosen_by_pefts_rules(settings, want):
    names = {f"model.layers.{i}.self_attn.{name}" for i, chosen in want.items() for name in chosen}
    assert targets(adapted(llama(), **settings)) == names
    lora = get_peft_model(llama(), LoraConfig(**settings))
    chosen = {name for name, m in lora.named_modules() if isinstance(m, peft.tuners.lora.Linear)}
    assert {name.removeprefix("base_model.model.") for name in chosen} == names


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no_such_layer"):
        adapted(llama(), target_modules=["no_such_layer"])


@pytest.mark.parametrize("layer", [nn.LayerNorm(3), nn.Conv2d(3, 3, 1)])
def test_other_layers_are_refused(layer):
    words = (
        f"target module layer is of type {type(layer).__name__}; MultiLoRA adapts torch.nn.Linear"
    )
    with pytest.raises(ValueError, match=words):
        get_peft_model(nn.ModuleDict({"layer": layer}), MultiLoraConfig(target_modules=["layer"]))


def test_a_quantised_layer_is_refused():
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"layer is quantised \(Linear, torch.int8\).*load the mod"
    ):
        get_peft_model(nn.ModuleDict({"layer": linear}), MultiLoraConfig(target_modules=["layer"]))


def test_saving_and_loading_keeps_every_bit(family, tmp_path):
    build, names = family
    model = trained(build(), target_modules=names, use_rslora=True, lora_dropout=0.1)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (stored["peft_type"], stored["n"]) == ("MULTILORA", 3)
    want = logits(model)
    assert not torch.equal(want, logits(build()))
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        back = PeftModel.from_pretrained(build(), tmp_path, **options).eval()
        assert torch.equal(logits(back), want)
        assert any(p.requires_grad for p in back.parameters()) == ("is_trainable" in options)
    theirs = back.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def test_a_tensor_that_is_missing_is_noticed_at_loading(tmp_path):
    trained(llama()).save_pretrained(tmp_path)
    tensors = peft.load_peft_weights(str(tmp_path), device="cpu")
    assert len(tensors) == 12
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.multilora_s"]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.warns(UserWarning, match=r"missing adapter keys.*multilora_s"):
        PeftModel.from_pretrained(llama(), tmp_path)


def test_the_automatic_classes_find_base_and_adapter(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = trained(base, task_type="CAUSAL_LM")
    want = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    back = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(back), want)
    # Transformers' own integration, with an adapter or with the adapter's directory alone.
    host = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    host.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(host.eval()), want)
    host = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(host.eval()), want)


def test_merging_into_the_model_and_unloading(family):
    build, names = family
    model = trained(build().double(), target_modules=names)
    want = logits(model)
    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged) is type(build())
    assert not layers(merged)
    assert merged.state_dict().keys() == build().state_dict().keys()
    assert_near(logits(merged), want, factor=1000)
    plain = trained(build().double(), target_modules=names).unload()
    assert torch.equal(logits(plain), logits(build().double()))


def test_merging_the_adapter_and_taking_it_out_again():
    model = trained(llama().double())
    want, base = logits(model), logits(llama().double())
    model.merge_adapter()
    assert all(layer.merged for layer in layers(model).values())
    assert_near(logits(model), want, factor=1000)
    model.unmerge_adapter()
    assert_near(logits(model), want, factor=1000)
    with model.disable_adapter():
        assert_near(logits(model), base, factor=1000)


def test_a_disabled_adapter_is_the_base_model():
    model = trained(llama())
    want = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))
    assert torch.equal(logits(model), want)
    assert not torch.equal(want, logits(llama()))


def test_several_adapters_live_side_by_side():
    model = trained(llama())
    first = logits(model)
    second_config = MultiLoraConfig(r=1, n=2, target_modules=["q_proj", "up_proj"])
    model.add_adapter("second", second_config)
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".second" in n)
    for layer in layers(model).values():
        if "second" in layer.multilora_s:
            nn.init.ones_(layer.multilora_s["second"])
    assert torch.equal(logits(model), first)  # a further adapter is silent until it is chosen
    model.set_adapter("second")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".second" in n
    }
    alone = get_peft_model(llama(), second_config).eval()
    theirs = {n: p for n, p in model.named_parameters() if ".second" in n}
    alone.load_state_dict(
        {n.replace(".second", ".default"): p for n, p in theirs.items()}, strict=False
    )
    assert torch.equal(logits(model), logits(alone))
    assert not torch.equal(logits(model), first)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.delete_adapter("second")
    assert not [name for name in model.state_dict() if "second" in name]
    assert torch.equal(logits(model), first)


def test_modules_to_save_are_trained_and_saved_whole(tmp_path):
    model = trained(llama(), modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head.modules_to_save["default"].weight
    assert head.requires_grad
    nn.init.normal_(head)
    model.save_pretrained(tmp_path)
    assert "base_model.model.lm_head.weight" in peft.load_peft_weights(str(tmp_path))
    back = PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert torch.equal(logits(back), logits(model))


@pytest.mark.parametrize("autocast", [True, False])
def test_a_bfloat16_base_has_a_float32_adapter_unless_told_otherwise(family, autocast):
    build, names = family
    config = MultiLoraConfig(r=2, n=3, target_modules=names)
    model = get_peft_model(build().bfloat16(), config, autocast_adapter_dtype=autocast).eval()
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32 if autocast else torch.bfloat16}
    assert torch.equal(logits(model), logits(build().bfloat16()))
    got = logits(move(model))
    assert got.dtype == torch.bfloat16
    # The same weights in float64: what is left is the rounding of bfloat16.
    exact = logits(model.double())
    eps = torch.finfo(torch.bfloat16).eps
    assert float((got.double() - exact).norm() / exact.norm()) < 4 * eps


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointed in (False, True):
        model = trained(llama()).train()
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(tokens(), labels=tokens()).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_generation_runs_through_the_adapter():
    model = trained(llama())
    merged = trained(llama()).merge_and_unload()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(input_ids=tokens(), **options), merged.generate(tokens(), **options)
    )


def test_pefts_own_conversion_to_lora_agrees(tmp_path):
    model = trained(llama(), r=2, n=3)
    save_as_lora(tmp_path, model, rank=6)
    back = PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert back.peft_config["default"].peft_type == "LORA"
    assert_near(logits(back), logits(model), factor=1000)
    config, tensors = convert_to_lora(trained(llama(), r=2, n=3), rank=1)
    assert config.r == 1
    assert all(min(t.shape) == 1 for t in tensors.values())


def test_adapters_mixed_within_a_batch_are_refused_and_not_ignored():
    model = adapted(llama())
    with pytest.raises(ValueError, match="cannot mix adapters within a batch"):
        model(input_ids=tokens(), adapter_names=["default"] * len(tokens()))
