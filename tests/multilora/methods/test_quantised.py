"""The methods on bases in 4 and 8 bits; the file skips where bitsandbytes is not installed."""

import copy
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn

from analysis import spectrum
from multilora import ExpertBank, MtlLoraConfig, MultiLoraConfig, RLoraConfig
from multilora.delta import save_as_lora
from multilora.methods import quantised
from multilora.methods.layers import AdapterLinear

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
warnings.filterwarnings("ignore", module="peft")

BITS = [4, 8]
CONFIGS = {
    "multilora": MultiLoraConfig(r=2, n=3, target_modules="all-linear", task_type="CAUSAL_LM"),
    "rlora": RLoraConfig(r=2, n=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    "mtllora": MtlLoraConfig(
        r=2, n=2, target_modules="all-linear", task_type="CAUSAL_LM", tasks=["a", "b"]
    ),
}
IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    # In 4 bits a block of 64 weights has one scale: narrower layers would be little but rounding.
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=32, num_hidden_layers=2, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def loaded(stored, bits):
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config = transformers.BitsAndBytesConfig(**(four if bits == 4 else {"load_in_8bit": True}))
    model = transformers.AutoModelForCausalLM.from_pretrained(stored, quantization_config=config)
    quantised.plain_layout(model)  # as delta.load_base does
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def adapted(stored, bits, method="multilora"):
    torch.manual_seed(0)
    return get_peft_model(loaded(stored, bits), copy.deepcopy(CONFIGS[method])).eval()


def moved(model):
    """As if training had moved all that it can move."""
    generator = torch.Generator().manual_seed(1)
    for layer in layers(model):
        for name in layer.adapter_layer_names:
            for p in getattr(layer, name).values():
                p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return model


def layers(model):
    return [layer for layer in model.modules() if isinstance(layer, AdapterLinear)]


def extra(model):
    return {"multilora_task_ids": torch.tensor([0, 1])} if "tasks" in vars(layers(model)[0]) else {}


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, **extra(model)).logits


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", list(CONFIGS))
def test_training_moves_the_adapter_and_never_the_quantised_base(stored, bits, method):
    model = adapted(stored, bits, method).train()
    before = [layer.get_base_layer().weight.data.clone() for layer in layers(model)]
    assert {w.dtype for w in before} == {torch.uint8 if bits == 4 else torch.int8}
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(5):
        loss = model(input_ids=IDS, labels=IDS, **extra(model)).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    after = [layer.get_base_layer().weight.data for layer in layers(model)]
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("bits", BITS)
def test_the_start_is_the_quantised_base_and_a_trained_adapter_is_not(stored, bits):
    base = logits_of_base(stored, bits)
    assert torch.equal(logits(adapted(stored, bits)), base)
    assert not torch.equal(logits(moved(adapted(stored, bits))), base)


def logits_of_base(stored, bits):
    with torch.no_grad():
        return loaded(stored, bits).eval()(input_ids=IDS).logits


@pytest.mark.parametrize("bits", BITS)
def test_the_output_of_a_layer_is_that_of_the_dequantised_weight(stored, bits):
    layer = next(m for m in moved(adapted(stored, bits)).modules() if isinstance(m, AdapterLinear))
    W0 = layer.get_base_weight().double()
    assert W0.shape == (layer.out_features, layer.in_features)
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(2))
    want = x.double() @ (W0 + layer.get_delta_weight("default").double()).T
    # The product of 8 bits rounds x to 8 bits too; that of 4 bits rounds nothing.
    near = {4: 1e-5, 8: 0.02}[bits]
    with torch.no_grad():
        assert float((layer(x).double() - want).norm() / want.norm()) < near


@pytest.mark.parametrize("bits", BITS)
def test_saving_loading_and_the_export_to_lora_give_the_same_outputs(stored, bits, tmp_path):
    model = moved(adapted(stored, bits))
    want = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    back = PeftModel.from_pretrained(loaded(stored, bits), tmp_path / "adapter").eval()
    assert torch.equal(logits(back), want)
    save_as_lora(model, tmp_path / "lora")
    plain = PeftModel.from_pretrained(loaded(stored, bits), tmp_path / "lora").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=IDS).logits, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_the_analysis_reads_what_was_trained_on_a_quantised_base(stored, bits, tmp_path):
    model = moved(adapted(stored, bits))
    model.save_pretrained(tmp_path)
    spectra = spectrum.analyse(str(tmp_path))
    assert len(spectra.rows) == 14
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    (key,) = [k for k in spectra.s if "layers.0.self_attn.q_proj" in k]
    want = torch.linalg.svdvals(layer.get_delta_weight("default").detach().double())[:6]
    assert torch.allclose(torch.from_numpy(spectra.s[key]).double()[:6], want, atol=1e-5)


def quantised_again(W, layer):
    """W rounded by the functions of bitsandbytes themselves, as the layer was."""
    if (state := getattr(layer.get_base_layer().weight, "quant_state", None)) is not None:
        given = {"blocksize": state.blocksize, "quant_type": state.quant_type}
        return bnb.functional.dequantize_4bit(*bnb.functional.quantize_4bit(W, **given))
    rows, scales, _ = bnb.functional.int8_vectorwise_quant(W.half())
    return bnb.functional.int8_vectorwise_dequant(rows, scales)


@pytest.mark.parametrize("bits", BITS)
def test_a_merge_is_the_quantised_sum_and_is_undone_bit_for_bit(stored, bits):
    model = moved(adapted(stored, bits))
    want, layer = logits(model), layers(model)[0]
    base = logits_of_base(stored, bits)
    W0, delta = layer.get_base_weight().float(), layer.get_delta_weight("default").detach()
    with pytest.warns(UserWarning, match=rf"rounded to bnb {bits}bit again"):
        model.merge_adapter()
    assert torch.equal(layer.get_base_weight(), quantised_again(W0 + delta, layer))
    assert float((logits(model) - want).norm()) < 0.8 * float((want - base).norm())
    model.unmerge_adapter()
    assert torch.equal(logits(model), want)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize("bits", BITS)
def test_unloading_after_a_merge_leaves_a_quantised_model(stored, bits):
    model = moved(adapted(stored, bits))
    want = logits(model)
    with pytest.warns(UserWarning, match="rounded"):
        merged = model.merge_and_unload()
    kind = {4: bnb.nn.Linear4bit, 8: bnb.nn.Linear8bitLt}[bits]
    assert type(merged.model.layers[0].self_attn.q_proj) is kind
    with torch.no_grad():
        got = merged(input_ids=IDS).logits
    assert 0 < float((got - want).norm()) < float(want.norm())


@pytest.mark.parametrize("bits", BITS)
def test_two_adapters_merged_together_come_out_together(stored, bits):
    model = moved(adapted(stored, bits))
    model.add_adapter("second", copy.deepcopy(CONFIGS["multilora"]))
    base = logits_of_base(stored, bits)
    with pytest.warns(UserWarning, match="rounded"):
        model.merge_adapter(["default", "second"])
    model.unmerge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize("bits", BITS)
def test_an_expert_of_a_bank_is_merged_and_taken_out_bit_for_bit(stored, bits):
    torch.manual_seed(0)
    bank = ExpertBank(
        loaded(stored, bits), LoraConfig(r=2, target_modules=["q_proj"]), ["a", "b"]
    ).eval()
    for name, p in bank.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.3)
    bank.choose("a")
    with torch.no_grad():
        want = bank(input_ids=IDS).logits
        bank.merge("a")
        merged = bank(input_ids=IDS).logits
        bank.unmerge()
        assert torch.equal(bank(input_ids=IDS).logits, want)
    assert not torch.equal(merged, want)


class Widths(nn.Module):
    """A layer of 4 bits whose widths bitsandbytes can repack for a CPU."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = bnb.nn.Linear4bit(64, 32, bias=False, quant_type="nf4").to("cpu")

    def forward(self, x):
        return self.layer(x)


def test_a_layer_that_was_called_outside_training_is_trained_and_merged_all_the_same():
    model, x = Widths().eval(), torch.randn(3, 64)
    W0 = bnb.functional.dequantize_4bit(model.layer.weight.data, model.layer.weight.quant_state)
    model(x)  # repacks the layer, where the processor has AVX512-BF16
    config = MultiLoraConfig(r=2, target_modules=["layer"], init_lora_weights=False)
    own = get_peft_model(model, config).eval()
    layer = own.base_model.model.layer
    torch.testing.assert_close(layer.get_base_weight().float(), W0.float(), rtol=0.01, atol=1e-4)
    with torch.no_grad():
        want = own(x)
    inputs = x.clone().requires_grad_()
    layer.base_layer(inputs).sum().backward()
    assert inputs.grad.abs().sum() > 0
    with pytest.warns(UserWarning, match="rounded"):
        own.merge_adapter()
    merged = (layer.get_base_weight() - W0).norm() / layer.get_delta_weight("default").norm()
    assert 0.8 < float(merged) < 1.2
    own.unmerge_adapter()
    with torch.no_grad():
        assert torch.equal(own(x), want)


def test_a_plain_layer_is_not_called_quantised():
    for layer in (nn.Linear(3, 2), nn.Embedding(3, 2), nn.Linear(3, 2).bfloat16()):
        assert quantised.access(layer) is None
        assert quantised.fault(layer, layer) is None


def test_a_layer_of_bitsandbytes_that_was_never_packed_is_adapted():
    linear = bnb.nn.Linear4bit(6, 4, bias=False)
    model = get_peft_model(
        nn.ModuleDict({"layer": linear}), MultiLoraConfig(r=2, target_modules=["layer"])
    )
    layer = model.base_model.model["layer"]
    assert (layer.in_features, layer.out_features) == (6, 4)
