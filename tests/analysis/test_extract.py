"""A LoRA of any update: the best of its rank, as PEFT loads it, and what is left out."""

import numpy as np
import pytest
import torch
from own_files import TASKS
from peft import LoraConfig, PeftModel
from safetensors.numpy import load_file, save_file
from tiny_models import gpt2, layers, llama, matrix, save_base, tiny, trained

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
    assert "ΔW is zero" in capsys.readouterr().err
    assert not (tmp_path / "lora").exists()
    assert extract.main([*words, str(base)]) == 2
    assert "exists" in capsys.readouterr().err


def moved(model, seed=2, size=0.1):
    """The model with every parameter changed, tied ones once."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model


def only_matrices(model, other):
    """The model with the vectors (norms, biases) of another one."""
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            if ours.dim() == 1:
                ours.copy_(theirs)
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gpt2_does_what_the_tuned_one_does(tmp_path, capsys):
    """Conv1D layers, embeddings of tokens and positions, and a head that is tied."""
    base, tuned = gpt2(), only_matrices(moved(gpt2()), gpt2())
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    words = [str(tmp_path / "tuned"), "--base", str(tmp_path / "base"), "--energy", "1"]
    assert extract.main([*words, "--embeddings", "--out", str(tmp_path / "lora")]) == 0
    assert "lm_head: is tied" in capsys.readouterr().err
    model = PeftModel.from_pretrained(gpt2(), tmp_path / "lora").eval()
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        want, before = (m.eval()(tokens).logits for m in (tuned, base))
        got = model(tokens).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert (before - want).abs().max() > 0.1


@pytest.mark.parametrize("rows", [28, 36])
def test_a_resized_vocabulary_loads_on_the_base(tmp_path, models, rows, capsys):
    base, tuned = models
    file = tuned / "model.safetensors"
    weights = load_file(file)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        more = np.ones((max(0, rows - 32), 16), np.float32)
        weights[name] = np.vstack([weights[name][:rows], more])
    save_file(weights, file, metadata={"format": "pt"})
    out = tmp_path / "lora"
    words = [str(tuned), "--base", str(base), "--energy", "1", "--embeddings", "--out", str(out)]
    assert extract.main(words) == 0
    assert ("4 new rows" in capsys.readouterr().err) == (rows > 32)
    of_layers = layers(PeftModel.from_pretrained(llama(), out))
    W0 = load_file(base / "model.safetensors")
    for module in ("model.embed_tokens", "lm_head"):
        with torch.no_grad():
            dW = of_layers[module].get_delta_weight("default").numpy()
        shared = min(rows, 32)
        name = f"{module}.weight"
        np.testing.assert_allclose(
            dW[:shared], weights[name][:shared] - W0[name][:shared], atol=1e-5
        )
        assert (dW[shared:] == 0).all()


def test_kernels_of_convolutions_are_those_of_peft(tmp_path):
    base, tuned = tiny(), moved(tiny())
    for model, name in ((base, "base"), (tuned, "tuned")):
        del model.groups
        save_base(model, tmp_path / name)
    out = tmp_path / "lora"
    words = [str(tmp_path / "tuned"), "--base", str(tmp_path / "base"), "--energy", "1"]
    assert extract.main([*words, "--modules", "conv|lin|point", "--out", str(out)]) == 0
    of_layers = layers(PeftModel.from_pretrained(base, out))
    assert len(of_layers) == 5
    for name, layer in of_layers.items():
        with torch.no_grad():
            dW = layer.get_delta_weight("default")
        change = getattr(tuned, name).weight - layer.get_base_layer().weight
        torch.testing.assert_close(dW, change, rtol=0, atol=1e-5)


def test_shares_of_what_is_left_out_add_up(models, capsys, tmp_path):
    result = extracted(models, rank=2)
    exact = {u.name: np.linalg.norm(u.dense()) for u in checkpoint.read(models[1], base=models[0])}
    shares = [result.share(name) for name in result.left_out]
    kept = sum(row["norm"] ** 2 for row in result.rows)
    whole = kept + sum(norm**2 for norm in result.norms.values())
    assert sum(shares) == pytest.approx(1 - kept / whole, rel=1e-9)
    assert result.norms["model.embed_tokens"] == pytest.approx(exact["model.embed_tokens"])
    base, tuned = models
    words = [str(tuned), "--base", str(base), "--rank", "2", "--out", str(tmp_path / "lora")]
    assert extract.main(words) == 0
    err = capsys.readouterr().err
    assert "model.embed_tokens: left out: embedding; --embeddings takes it too (" in err
    assert "more are left out" in err


def test_multilora_becomes_one_lora(tmp_path, write_adapter, rng):
    """n modules of rank r, stacked, are one update of rank n·r; its best LoRA has fewer."""
    shapes = {"A": (6, 5), "B": (6, 6), "s": (6, 3)}
    name = "base_model.model.layers.0.q.multilora_"
    tensors = {name + part: rng.standard_normal(shape) for part, shape in shapes.items()}
    adapter = write_adapter(tensors, peft_type="MULTILORA", n=3, r=2, lora_alpha=8)
    words = [str(adapter), "--rank", "4", "--out", str(tmp_path / "lora")]
    assert extract.main(words) == 0
    (exact,) = checkpoint.read(adapter)
    (update,) = checkpoint.read(tmp_path / "lora")
    U, s, Vh = np.linalg.svd(exact.dense())
    np.testing.assert_allclose(update.dense(), (U[:, :4] * s[:4]) @ Vh[:4], atol=1e-5 * s[0])


def test_one_task_of_several_is_chosen_by_its_name(tmp_path, write_own, capsys):
    tasks = write_own("mtllora")
    words = [str(tasks), "--energy", "1", "--out", str(tmp_path / "lora")]
    assert extract.main(words) == 2
    assert "one part of several in a module, --part" in capsys.readouterr().err
    assert extract.main([*words, "--part", TASKS[0]]) == 0
    exact = {update.part: update.dense() for update in checkpoint.read(tasks)}
    (update,) = checkpoint.read(tmp_path / "lora")
    np.testing.assert_allclose(update.dense(), exact[TASKS[0]], atol=1e-5)
    assert f"layers.0.q {TASKS[1]}: left out" in capsys.readouterr().err


def test_factors_are_as_large_as_they_are_stored(write_adapter, lora_tensors):
    """And not as the matrix that they make."""
    adapter = write_adapter(lora_tensors("l.0.q", d_out=12, d_in=10, r=4), "plain")
    (row,) = extract.extract(checkpoint.at(adapter), rank=2).rows
    assert (row["bytes"], row["bytes_kept"]) == (4 * 22 * 4, 2 * 22 * 4)
    assert (row["r"], row["rank"]) == (4, 2)
