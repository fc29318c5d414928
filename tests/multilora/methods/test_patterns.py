"""PEFT's patterns of use, for each of the methods: what a PEFT user does with LoRA works here."""

import copy
import json

import peft
import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora.conversion import convert_to_lora
from torch import nn

from multilora import MethodType, MtlLoraConfig, MultiLoraConfig, RLoraConfig

TASKS = ["one", "two"]
CONFIGS = {
    "multilora": lambda **config: MultiLoraConfig(**config),
    "rlora": lambda **config: RLoraConfig(**config),
    "mtllora": lambda **config: MtlLoraConfig(tasks=TASKS, **config),
}
METHODS = sorted(CONFIGS)
IDS = torch.tensor([1, 0])


def llama(dtype=torch.float32):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.2,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval().to(dtype)


def gpt2(dtype=torch.float32):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=32, initializer_range=0.2
    )
    return transformers.GPT2LMHeadModel(config).eval().to(dtype)


MODELS = {"llama": (llama, ["q_proj", "down_proj"]), "gpt2": (gpt2, ["c_attn", "c_fc"])}


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture(params=list(MODELS))
def family(request):
    """(model function, target modules), once for Linear and once for Conv1D."""
    return MODELS[request.param]


def config_of(method, **config):
    given = {"r": 2, "n": 3, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    return CONFIGS[method](**given | config)


def adapted(method, model, **config):
    """The model with the method's adapter at its start."""
    return get_peft_model(model, config_of(method, **config)).eval()


def move(model, adapter="default", seed=1, by=0.3):
    """As if training had moved all that it can move."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(model):
        for name in layer.adapter_layer_names:
            parameters = getattr(layer, name)
            if adapter in parameters:
                p = parameters[adapter].data
                p += by * torch.randn(p.shape, generator=generator).to(p)
    return model


def trained(method, model, **config):
    return move(adapted(method, model, **config))


def layers(model):
    return [m for m in model.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]


def tokens():
    return torch.arange(24).reshape(2, 12) % 50


def logits(model, fixed=False):
    """Of two rows; with MTL-LoRA of two tasks, unless its task is `fixed`."""
    config = getattr(model, "active_peft_config", None)
    ids = {"multilora_task_ids": IDS} if isinstance(config, MtlLoraConfig) and not fixed else {}
    with torch.no_grad():
        return model(input_ids=tokens(), **ids).logits


def fix(model, adapter="default"):
    """Leave one ΔW for all inputs, as merging needs it."""
    config = model.peft_config[adapter]
    if isinstance(config, MtlLoraConfig):
        model.set_task("two", adapter=adapter)
    elif isinstance(config, RLoraConfig):
        model.fix_router(adapter=adapter)
    return model


def assert_near(got, want, factor=1000):
    eps, scale = torch.finfo(want.dtype).eps, float(want.abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=factor * eps * scale)


def test_peft_knows_the_method(method):
    given = {"peft_type": method.upper(), "r": 3}
    config = peft.get_peft_config(given | ({"tasks": TASKS} if method == "mtllora" else {}))
    assert config.r == 3
    assert config.peft_type is MethodType(method.upper())
    assert config.peft_type.value == method.upper()
    model = adapted(method, llama())
    assert type(model.base_model) is peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    assert model.base_model.prefix == f"{method}_"


def test_the_start_is_the_base_model(method, family):
    build, names = family
    got, want = logits(adapted(method, build(), target_modules=names)), logits(build())
    if method == "rlora":
        assert_near(got, want)
    else:
        assert torch.equal(got, want)
    moved = logits(trained(method, build(), target_modules=names))
    assert not torch.allclose(moved, want, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_adapter_is_trained(method, family, dtype):
    build, names = family
    model = trained(method, build(dtype), target_modules=names)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if f".{method}_" in name}
    ids = {"multilora_task_ids": IDS} if method == "mtllora" else {}
    model(input_ids=tokens(), labels=tokens(), **ids).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable
    assert all(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_all_linear_leaves_the_head_out(method):
    model = adapted(method, llama(), target_modules="all-linear")
    assert len(layers(model)) == 14
    assert not hasattr(model.base_model.model.lm_head, "base_layer")


def test_layers_are_chosen_by_pefts_rules(method):
    model = adapted(method, llama(), target_modules=["q_proj", "v_proj"], layers_to_transform=[1])
    chosen = {n for n, m in model.named_modules() if hasattr(m, "base_layer")}
    assert chosen == {f"base_model.model.model.layers.1.self_attn.{n}_proj" for n in "qv"}
    assert len(layers(adapted(method, llama(), target_modules=None))) == 4  # PEFT's own choice


def test_saving_and_loading_keeps_every_bit(method, family, tmp_path):
    build, names = family
    model = trained(method, build(), target_modules=names, lora_dropout=0.1)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (stored["peft_type"], stored["n"]) == (method.upper(), 3)
    saved = peft.load_peft_weights(str(tmp_path), device="cpu")
    assert all(f".{method}_" in name and "default" not in name for name in saved)
    want = logits(model)
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        back = PeftModel.from_pretrained(build(), tmp_path, **options).eval()
        assert torch.equal(logits(back), want)
        assert any(p.requires_grad for p in back.parameters()) == ("is_trainable" in options)
        assert not any(p.device.type == "meta" for p in (*back.parameters(), *back.buffers()))
        theirs = back.state_dict()
        assert theirs.keys() == model.state_dict().keys()
        assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())
    assert type(PeftConfig.from_pretrained(tmp_path)) is type(model.active_peft_config)


def test_the_automatic_class_finds_base_and_adapter(method, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = trained(method, base)
    model.save_pretrained(tmp_path / "adapter")
    back = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(back), logits(model))


@pytest.mark.parametrize("safe_merge", [False, True])
def test_merging_into_the_model_and_unloading(method, family, safe_merge):
    build, names = family
    model = fix(trained(method, build(torch.float64), target_modules=names))
    want = logits(model, fixed=True)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    assert type(merged) is type(build())
    assert merged.state_dict().keys() == build().state_dict().keys()
    assert_near(logits(merged), want)
    assert not torch.allclose(want, logits(build(torch.float64)), atol=1e-2)
    plain = trained(method, build(), target_modules=names).unload()
    assert torch.equal(logits(plain), logits(build()))


def test_merging_the_adapter_and_taking_it_out_again(method):
    model = fix(trained(method, llama(torch.float64)))
    want, base = logits(model, fixed=True), logits(llama(torch.float64))
    model.merge_adapter()
    assert all(layer.merged for layer in layers(model))
    assert_near(logits(model, fixed=True), want)
    model.unmerge_adapter()
    assert_near(logits(model, fixed=True), want)
    model.merge_adapter()
    with model.disable_adapter():
        assert_near(logits(model, fixed=True), base)
    assert_near(logits(model, fixed=True), want)


@pytest.mark.parametrize("method", ["rlora", "mtllora"])
def test_what_is_not_one_update_is_not_merged(method):
    model = trained(method, llama())
    before = copy.deepcopy(model.state_dict())
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"depends on the input|one update per task"):
            merge()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    logits(model)  # and it still runs


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_safe_merge_refuses_what_is_not_finite(method, bad):
    model = fix(trained(method, llama()))
    first = layers(model)[0]
    getattr(first, first.adapter_layer_names[0])["default"].data[0, 0] = bad
    before = first.base_layer.weight.detach().clone()
    with pytest.raises(ValueError, match="NaN or Inf in the merged weights"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(first.base_layer.weight, before)


def test_a_disabled_adapter_is_the_base_model(method):
    model = trained(method, llama())
    want = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))
    assert torch.equal(logits(model), want)
    assert not torch.equal(want, logits(llama()))


def test_several_adapters_live_side_by_side(method):
    model = trained(method, llama())
    first = logits(model)
    second = config_of(method, r=1, n=2, target_modules=["q_proj", "up_proj"])
    model.add_adapter("second", second)
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".second" in n)
    move(model, "second", seed=2)
    assert torch.equal(logits(model), first)  # a further adapter is silent until it is chosen
    model.set_adapter("second")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".second" in n
    }
    alone = get_peft_model(
        llama(), config_of(method, r=1, n=2, target_modules=["q_proj", "up_proj"])
    )
    theirs = {n: p for n, p in model.state_dict().items() if n.endswith(".second")}
    renamed = {n.removesuffix(".second") + ".default": p for n, p in theirs.items()}
    assert not alone.load_state_dict(renamed, strict=False).unexpected_keys
    assert torch.equal(logits(model), logits(alone.eval()))
    assert not torch.equal(logits(model), first)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.delete_adapter("second")
    assert not [name for name in model.state_dict() if "second" in name]
    assert torch.equal(logits(model), first)


def test_an_adapter_is_loaded_beside_another(method, tmp_path):
    other = trained(method, llama(), r=1)
    other.save_pretrained(tmp_path)
    model = trained(method, llama())
    model.load_adapter(tmp_path, "other")
    model.set_adapter("other")
    assert torch.equal(logits(model), logits(other))


def test_modules_to_save_are_trained_and_saved_whole(method, tmp_path):
    model = trained(method, llama(), modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head.modules_to_save["default"].weight
    assert head.requires_grad
    nn.init.normal_(head)
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert torch.equal(logits(back), logits(model))


@pytest.mark.parametrize("autocast", [True, False])
def test_a_bfloat16_base_has_a_float32_adapter_unless_told_otherwise(method, family, autocast):
    build, names = family
    config = config_of(method, target_modules=names)
    model = get_peft_model(build(torch.bfloat16), config, autocast_adapter_dtype=autocast).eval()
    tensors = [t for n, t in model.state_dict().items() if f".{method}_" in n]
    assert {t.dtype for t in tensors} == {torch.float32 if autocast else torch.bfloat16}
    got = logits(move(model, by=0.05))  # larger steps would amplify the base's own rounding
    assert got.dtype == torch.bfloat16
    exact = logits(copy.deepcopy(model).double())  # what is left is the rounding of bfloat16
    eps = torch.finfo(torch.bfloat16).eps
    assert float((got.double() - exact).norm() / exact.norm()) < 4 * eps
    exact = logits(copy.deepcopy(fix(model)).double(), fixed=True)
    got = logits(model.merge_and_unload()).double()
    assert float((got - exact).norm() / exact.norm()) < 4 * eps


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(method, reentrant):
    gradients = []
    for checkpointed in (False, True):
        model = trained(method, llama(), lora_dropout=0.1).train()
        model.enable_input_require_grads()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        ids = {"multilora_task_ids": IDS} if method == "mtllora" else {}
        torch.manual_seed(2)
        model(input_ids=tokens(), labels=tokens(), **ids).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_autocast_to_bfloat16_costs_its_rounding_and_no_more(method):
    model = move(adapted(method, llama()), by=0.05)
    ids = {"multilora_task_ids": IDS} if method == "mtllora" else {}
    want = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(input_ids=tokens(), labels=tokens(), **ids)
    out.loss.backward()
    eps = torch.finfo(torch.bfloat16).eps
    assert float((out.logits - want).norm() / want.norm()) < 4 * eps
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_generation_runs_through_the_adapter(method):
    model = fix(trained(method, llama()))
    merged = copy.deepcopy(model).merge_and_unload()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(input_ids=tokens(), **options), merged.generate(tokens(), **options)
    )


def test_pefts_own_conversion_to_lora_agrees(method):
    model = trained(method, llama())
    if method != "multilora":
        assert not model.supports_lora_conversion()
        with pytest.raises(TypeError, match="do not support LoRA conversion"):
            convert_to_lora(model, rank=6)
    fix(model)
    config, tensors = convert_to_lora(model, rank=6)
    lora = get_peft_model(llama(), config).eval()
    peft.set_peft_model_state_dict(lora, tensors)
    assert_near(logits(lora), logits(model, fixed=True))


def test_a_copy_of_a_model_is_a_model_of_its_own(method):
    model = trained(method, llama())
    want = logits(model)
    other = copy.deepcopy(model)
    fix(other)
    assert not torch.equal(logits(other, fixed=True), want) or method == "multilora"
    assert torch.equal(logits(model), want)


# What is refused.


NAMES = {"multilora": "MultiLoRA", "rlora": "R-LoRA", "mtllora": "MTL-LoRA"}


@pytest.mark.parametrize("layer", [nn.LayerNorm(3), nn.Conv2d(3, 3, 1)])
def test_other_layers_are_refused(method, layer):
    words = f"is of type {type(layer).__name__}; {NAMES[method]} adapts torch.nn.Linear"
    with pytest.raises(ValueError, match=words):
        get_peft_model(nn.ModuleDict({"layer": layer}), CONFIGS[method](target_modules=["layer"]))


def test_a_quantised_layer_is_refused(method):
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    words = rf"layer is quantised \(Linear, torch.int8\); {NAMES[method]} needs .*load the mod"
    with pytest.raises(ValueError, match=words):
        get_peft_model(nn.ModuleDict({"layer": linear}), CONFIGS[method](target_modules=["layer"]))


def test_a_fused_layer_is_refused(method):
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(ValueError, match=r"out_proj is part of .*MultiheadAttention, a fused"):
        get_peft_model(model, CONFIGS[method](target_modules=["out_proj"]))


def test_a_layer_that_carries_another_method_is_refused(method):
    host = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"])).base_model.model
    words = r"q_proj carries an adapter of another method \(peft\.tuners\.lora.*unload the model"
    with pytest.raises(ValueError, match=words):
        get_peft_model(host, config_of(method))


def test_nothing_is_added_to_a_merged_layer(method):
    model = fix(trained(method, llama()))
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"into which default is merged; call unmerge_adapter"):
        model.add_adapter("second", config_of(method))


def test_adapters_mixed_within_a_batch_are_refused_and_not_ignored(method):
    model = adapted(method, llama())
    with pytest.raises(ValueError, match=f"{NAMES[method]} cannot mix adapters within a batch"):
        model(input_ids=tokens(), adapter_names=["default"] * len(tokens()))


def test_a_fixed_router_is_given_back():
    model = trained("rlora", llama())
    want = logits(model)
    model.fix_router()
    assert not torch.allclose(logits(model), want, atol=1e-3)
    model.merge_adapter()
    with pytest.raises(ValueError, match="'default' is merged; call unmerge_adapter first"):
        model.fix_router(False)
    model.unmerge_adapter()
    model.fix_router(False)
    assert_near(logits(model), want)
