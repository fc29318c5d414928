"""A LoRA of any update: the best of its rank, as PEFT loads it, and what is left out."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from tiny_models import layers, llama, matrix, trained

from analysis import UserError, checkpoint, extract
from analysis.formats import Options


@pytest.fixture
def models(tmp_path):
    """A base and a full fine-tune of it, on disk."""
    base, tuned = llama(), llama()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in tuned.parameters():
            low = torch.randn(len(parameter), 2) @ torch.randn(2, parameter[0].numel())
            noise = 0.01 * torch.randn(parameter.shape)
            parameter.add_(0.1 * low.reshape(parameter.shape) + noise)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    return tmp_path / "base", tmp_path / "tuned"


def extracted(models, **asked):
    base, tuned = models
    return extract.extract(checkpoint.at(tuned), Options(base=base), **asked)


def test_no_lora_of_the_rank_is_nearer(models):
    result = extracted(models, rank=3)
    exact = {u.name: u.dense() for u in checkpoint.read(models[1], base=models[0])}
    assert {u.name for u in result.updates} <= exact.keys()
    for update, row in zip(result.updates, result.rows, strict=True):
        U, s, Vh = np.linalg.svd(exact[update.name], full_matrices=False)
        np.testing.assert_allclose(update.dense(), (U[:, :3] * s[:3]) @ Vh[:3], atol=1e-6)
        best = np.linalg.norm(s[3:]) / np.linalg.norm(s)
        assert best <= row["error"] * (1 + 1e-6)
        assert row["error"] == pytest.approx(best, rel=1e-3)


def test_energy_takes_the_least_rank_that_holds_it(models):
    result = extracted(models, energy=0.95)
    for update, row in zip(result.updates, result.rows, strict=True):
        dW = next(u for u in checkpoint.read(models[1], base=models[0]) if u.name == update.name)
        s = np.linalg.svd(dW.dense(), compute_uv=False)
        held = np.cumsum(s**2) / np.sum(s**2)
        assert row["rank"] == int(np.argmax(held >= 0.95)) + 1


def test_what_is_no_matrix_is_named(models):
    result = extracted(models, rank=2)
    assert "model.norm.weight" in result.left_out
    assert "embedding" in result.left_out["model.embed_tokens"]
    assert "model.embed_tokens" not in {u.name for u in result.updates}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peft_loads_it_and_measures_the_printed_error(models, tmp_path, capsys, dtype):
    base, tuned = models
    out = tmp_path / "lora"
    words = [str(tuned), "--base", str(base), "--rank", "4", "--embeddings", "--dtype", dtype]
    assert extract.main([*words, "--out", str(out), "--csv"]) == 0
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    printed = {line[0]: float(line[-1]) for line in lines[1:]}
    of_peft = PeftModel.from_pretrained(llama(), out)
    exact = {u.name: u.dense() for u in checkpoint.read(tuned, base=base)}
    of_layers = layers(of_peft)
    assert printed.keys() == of_layers.keys()
    for name, layer in of_layers.items():
        with torch.no_grad():
            dW = matrix(layer.get_delta_weight("default"), layer)
        whole = exact[name].T if "embed" in name else exact[name]
        error = np.linalg.norm(whole - dW) / np.linalg.norm(whole)
        assert printed[name] == pytest.approx(error, abs=1e-6)


def test_the_model_does_what_the_tuned_one_does(models, tmp_path):
    """With all of the rank, embeddings and head, up to the norms' gains."""
    base, tuned = models
    words = [str(tuned), "--base", str(base), "--energy", "1", "--embeddings"]
    assert extract.main([*words, "--out", str(tmp_path / "lora")]) == 0
    model = PeftModel.from_pretrained(llama(), tmp_path / "lora").merge_and_unload()
    other = llama().from_pretrained(tuned)
    own, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    for name, W in theirs.items():
        if W.dim() == 2:
            np.testing.assert_allclose(own[name].detach(), W.detach(), atol=1e-5)


def test_any_adapter_becomes_a_lora(tmp_path, models):
    base, _ = models
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=True)
    trained(llama(), config).save_pretrained(tmp_path / "dora")
    words = [str(tmp_path / "dora"), "--base", str(base), "--energy", "0.999"]
    assert extract.main([*words, "--out", str(tmp_path / "lora")]) == 0
    exact = {u.name: u.dense() for u in checkpoint.read(tmp_path / "dora", base=base)}
    for update in checkpoint.read(tmp_path / "lora"):
        error = np.linalg.norm(update.dense() - exact[update.name])
        assert error <= 0.04 * np.linalg.norm(exact[update.name])


@pytest.mark.parametrize("asked", [{}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"energy": 2.0}])
def test_what_is_asked_for_is_checked(models, asked):
    with pytest.raises(UserError, match="expected"):
        extracted(models, **asked)


def test_outputs_and_empty_updates(models, tmp_path, capsys):
    base, _ = models
    words = [str(base), "--base", str(base), "--rank", "2", "--out"]
    assert extract.main([*words, str(tmp_path / "lora")]) == 2
    assert "no matrix has changed" in capsys.readouterr().err
    assert not (tmp_path / "lora").exists()
    assert extract.main([*words, str(base)]) == 2
    assert "exists" in capsys.readouterr().err
