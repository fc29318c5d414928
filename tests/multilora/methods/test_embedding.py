import warnings

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from tiny_models import llama, trained
from torch import nn

from analysis import spectrum
from multilora import MtlLoraConfig, MultiLoraConfig, RLoraConfig
from multilora.delta import save_as_lora
from multilora.methods.embedding import MultiLoraEmbedding

warnings.filterwarnings("ignore", module="peft")

IDS = torch.arange(12).reshape(2, 6)
TARGETS = ["embed_tokens", "q_proj"]


def config_of(**given):
    return MultiLoraConfig(**{"r": 2, "n": 3, "target_modules": TARGETS} | given)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def embedding(model):
    (layer,) = (m for m in model.modules() if isinstance(m, MultiLoraEmbedding))
    return layer


def dense(layer):
    """ΔW (d_out, d_in) by the formula of the paper, in float64."""
    A, B, s = (
        getattr(layer, f"multilora_{name}")["default"].detach().double() for name in ("A", "B", "s")
    )
    n, r, scale = layer.n["default"], layer.r["default"], layer.scale["default"]
    parts = [slice(i * r, (i + 1) * r) for i in range(n)]
    return scale * sum(s[:, i, None] * (B[:, part] @ A[part]) for i, part in enumerate(parts))


def test_the_start_is_the_base():
    torch.manual_seed(0)
    model = get_peft_model(llama(), config_of())
    assert torch.equal(logits(model), logits(llama()))
    A = embedding(model).multilora_A["default"]
    assert A.shape == (6, 32)
    assert 0.9 < float(A.abs().max()) <= 1  # the fan-in of a one-hot vector is one


def test_an_index_is_looked_up_in_the_base_and_in_the_update():
    layer = embedding(trained(llama(), config_of(use_rslora=True)))
    want = F.embedding(IDS, layer.get_base_layer().weight.double() + dense(layer).T)
    torch.testing.assert_close(layer(IDS).double(), want, rtol=0, atol=1e-5)
    assert torch.allclose(layer.get_delta_weight("default").double(), dense(layer).T, atol=1e-6)
    assert not torch.allclose(layer(IDS), layer.get_base_layer()(IDS))


def test_the_padding_index_learns_nothing_and_a_scaled_embedding_scales_the_update():
    model = get_peft_model(
        nn.ModuleDict({"e": nn.Embedding(5, 4, padding_idx=2)}),
        MultiLoraConfig(r=2, target_modules=["e"], init_lora_weights=False),
    )
    layer = embedding(model)
    once = layer(torch.tensor([1, 2]))
    once.sum().backward()
    gradient = layer.multilora_A["default"].grad
    assert gradient[:, 1].any()
    assert not gradient[:, 2].any()
    layer.get_base_layer().embed_scale = 3.0
    base = layer.get_base_layer()(torch.tensor([1, 2]))
    torch.testing.assert_close(layer(torch.tensor([1, 2])) - base, 3 * (once - base))


def test_merging_saving_and_the_export_agree(tmp_path):
    model = trained(llama(), config_of(task_type="CAUSAL_LM"))
    want = logits(model)
    model.save_pretrained(tmp_path / "own")
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), tmp_path / "own")), want)
    save_as_lora(model, tmp_path / "lora")
    plain = PeftModel.from_pretrained(llama(), tmp_path / "lora")
    torch.testing.assert_close(logits(plain), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(model.merge_and_unload()), want, rtol=1e-4, atol=1e-5)


def test_the_analysis_reads_it_and_its_export(tmp_path):
    model = trained(llama(), config_of())
    model.save_pretrained(tmp_path / "own")
    save_as_lora(model, tmp_path / "lora")
    want = torch.linalg.svdvals(dense(embedding(model)))[:6]
    for name in ("own", "lora"):
        spectra = spectrum.analyse(str(tmp_path / name))
        assert len(spectra.rows) == 3
        (key,) = [k for k in spectra.s if "embed_tokens" in k]
        got = torch.from_numpy(spectra.s[key]).double()[:6]
        torch.testing.assert_close(got, want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("config", [RLoraConfig, lambda **k: MtlLoraConfig(tasks=["a"], **k)])
def test_the_relatives_adapt_no_embedding(config):
    with pytest.raises(ValueError, match=r"embed_tokens is of type Embedding; .*LoRA adapts"):
        get_peft_model(llama(), config(r=2, target_modules=TARGETS))
