"""Truncation: the ranks that are kept, the error that is printed, and what is refused."""

import numpy as np
import pytest
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel
from safetensors.numpy import save_file
from tiny_models import layers, llama, matrix, trained

from analysis import UserError, checkpoint, truncate
from analysis.numerics import compress
from analysis.update import LowRankUpdate


@pytest.fixture
def updates(rng):
    """Three modules of other shapes, spectra and sizes; the last one is zero."""
    made = []
    for name, (d_out, d_in), s in (
        ("l.0.q_proj", (20, 30), [5.0, 1.0, 0.5, 0.1]),
        ("l.0.v_proj", (40, 10), [1.0, 1.0, 1.0, 1.0]),
        ("l.1.q_proj", (20, 30), [0.0] * 4),
    ):
        U = np.linalg.qr(rng.standard_normal((d_out, 4)))[0]
        V = np.linalg.qr(rng.standard_normal((d_in, 4)))[0]
        made.append(LowRankUpdate(name, U * s, V.T))
    return made


def ranks(result):
    return [row["rank"] for row in result.rows]


def test_energy_is_kept_in_every_module(updates):
    result = truncate.truncate(updates, energy=0.95)
    assert ranks(result) == [1, 4, 0]
    assert result.left_out == ["l.1.q_proj"]
    assert [u.r for u in result.updates] == [1, 4]
    assert truncate.truncate(updates, energy=0.99).rows[0]["rank"] == 2
    assert truncate.truncate(updates, energy=1.0).rows[0]["error"] == pytest.approx(0, abs=1e-12)


def test_a_rank_is_the_largest_of_a_module(updates):
    assert ranks(truncate.truncate(updates, rank=3)) == [3, 3, 0]
    assert ranks(truncate.truncate(updates, rank=99)) == [4, 4, 0]


def test_a_budget_is_spent_where_it_holds_most(updates):
    """Against all choices of ranks that fit."""
    budget, sizes = 8 * 300, [50, 50]
    result = truncate.truncate(updates, budget=budget)
    spectra = [np.linalg.svd(u.dense(), compute_uv=False)[:4] for u in updates[:2]]
    held = {
        (i, j): sum(s[:n] @ s[:n] for s, n in zip(spectra, (i, j), strict=True))
        for i in range(5)
        for j in range(5)
        if 8 * (i * sizes[0] + j * sizes[1]) <= budget
    }
    assert held[tuple(ranks(result)[:2])] == pytest.approx(max(held.values()))
    assert sum(row["bytes_kept"] for row in result.rows) <= budget


def test_the_error_is_that_of_all_modules(updates):
    result = truncate.truncate(updates, rank=2)
    kept = {u.name: u.dense() for u in result.updates}
    lost = sum(np.linalg.norm(u.dense() - kept.get(u.name, 0)) ** 2 for u in updates)
    whole = sum(np.linalg.norm(u.dense()) ** 2 for u in updates)
    assert result.error == pytest.approx(np.sqrt(lost / whole), rel=1e-9)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "expected one of --energy"),
        ({"energy": 0.9, "rank": 2}, "expected one of --energy"),
        ({"energy": 1.5}, "expected a share"),
        ({"rank": 0}, "expected at least 1"),
        ({"budget": 0}, "expected megabytes"),
    ],
)
def test_what_is_asked_for_is_checked(updates, asked, message):
    with pytest.raises(UserError, match=message):
        truncate.truncate(updates, **asked)


# The command


@pytest.fixture
def lora(tmp_path):
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"]
    )
    trained(llama(), config).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_printed_error_is_the_one_that_peft_measures(lora, tmp_path, capsys, dtype):
    words = [str(lora), "--rank", "2", "--out", str(tmp_path / "out"), "--dtype", dtype, "--csv"]
    assert truncate.main(words) == 0
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    printed = {line[0]: float(line[-1]) for line in lines[1:]}
    before, after = (of_peft(path) for path in (lora, tmp_path / "out"))
    for module, dW in before.items():
        error = np.linalg.norm(dW - after[module]) / np.linalg.norm(dW)
        assert printed[module] == pytest.approx(error, abs=1e-6)


def of_peft(path):
    tuned = PeftModel.from_pretrained(llama(), path)
    return {
        name: matrix(layer.get_delta_weight("default"), layer)
        for name, layer in layers(tuned).items()
    }


def test_heads_are_carried_along(lora, tmp_path):
    assert truncate.main([str(lora), "--energy", "0.9", "--out", str(tmp_path / "out")]) == 0
    heads = [
        {e.name for e in checkpoint.scan(path) if not isinstance(e, LowRankUpdate)}
        for path in (lora, tmp_path / "out")
    ]
    assert heads[0] == heads[1] != set()


def test_the_result_says_what_it_costs(lora, tmp_path, capsys):
    assert truncate.main([str(lora), "--rank", "2", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "instead of" in out
    assert "of its norm" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80 or str(tmp_path) in out


def test_an_existing_output_is_refused_before_any_work(lora, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(truncate, "truncate", lambda *_, **__: pytest.fail("was called"))
    assert truncate.main([str(lora), "--rank", "2", "--out", str(lora)]) == 2
    assert "exists" in capsys.readouterr().err


def test_updates_that_are_no_products_are_refused(tmp_path, write_adapter, lora_tensors, capsys):
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    trained(llama(), config).save_pretrained(tmp_path / "dora")
    assert truncate.main([str(tmp_path / "dora"), "--rank", "2", "--out", str(tmp_path / "o")]) == 2
    assert "use_dora" in capsys.readouterr().err
    nan = write_adapter({k: v * np.nan for k, v in lora_tensors("l.0.q").items()}, "nan")
    assert truncate.main([str(nan), "--rank", "2", "--out", str(tmp_path / "o")]) == 2
    assert "l.0.q" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "peft_type is 'IA3'"),
        (AdaLoraConfig(init_r=4, target_modules=["q_proj"], total_step=9), "lora_E"),
        (LoraConfig(r=4, target_modules=["q_proj"], use_dora=True), "use_dora"),
    ],
)
def test_the_command_that_helps_is_named(tmp_path, capsys, config, words):
    """And not --base, with which there would be nothing to truncate either."""
    trained(llama(), config).save_pretrained(tmp_path / "a")
    assert truncate.main([str(tmp_path / "a"), "--rank", "2", "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "python -m analysis.extract makes a" in error
    assert "pass the" not in error


def test_an_adapter_can_replace_itself(lora):
    before = {u.name: u for u in checkpoint.read(lora)}
    assert truncate.main([str(lora), "--rank", "2", "--out", str(lora), "--force"]) == 0
    for update in checkpoint.read(lora):
        want = compress.best(before[update.name], 2)
        np.testing.assert_allclose(update.dense(), want.dense(), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_printed_error_of_a_file_with_alpha(tmp_path, rng, capsys, dtype):
    """Rounding is that of the factors with the scale that α gives them, which is not 1."""
    tensors = {
        "lora_unet_a_to_q.lora_down.weight": rng.standard_normal((4, 10)),
        "lora_unet_a_to_q.lora_up.weight": rng.standard_normal((8, 4)),
        "lora_unet_a_to_q.alpha": np.array(3),
    }
    tensors = {name: M.astype(np.float32) for name, M in tensors.items()}
    save_file(tensors, tmp_path / "k.safetensors")
    files = [str(tmp_path / name) for name in ("k.safetensors", "out.safetensors")]
    words = ["--rank", "2", "--out", files[1], "--dtype", dtype, "--csv"]
    assert truncate.main([files[0], *words]) == 0
    printed = float(capsys.readouterr().out.splitlines()[1].split(",")[-1])
    before, after = (next(iter(checkpoint.read(file))) for file in files)
    assert after.scale == 1.5
    difference = before.dense() - after.dense()
    error = np.linalg.norm(difference) / np.linalg.norm(before.dense())
    assert printed == pytest.approx(error, abs=1e-9)


def test_a_directory_with_one_file_of_factors(tmp_path, rng, capsys):
    """As diffusers saves it."""
    tensors = {
        f"unet.mid.to_q.lora_{factor}.weight": rng.standard_normal(shape).astype(np.float32)
        for factor, shape in (("A", (4, 10)), ("B", (8, 4)))
    }
    (tmp_path / "d").mkdir()
    save_file(tensors, tmp_path / "d" / "pytorch_lora_weights.safetensors")
    out = tmp_path / "out.safetensors"
    assert truncate.main([str(tmp_path / "d"), "--rank", "2", "--out", str(out)]) == 0
    assert [update.r for update in checkpoint.read(out)] == [2]
    save_file({"x.weight": np.ones((2, 2), np.float32)}, tmp_path / "d" / "other.safetensors")
    out.unlink()
    assert truncate.main([str(tmp_path / "d"), "--rank", "2", "--out", str(out)]) == 2
    assert not out.exists()


REAL = ["roberta-portuguese-run/checkpoint-8610", "opencalm1b-rank1-fp16", "sd15-diffusers-legacy"]


@pytest.mark.parametrize("name", REAL)
def test_real_adapters_go_through(real_adapter, tmp_path, name):
    path = real_adapter(name)
    file = name.startswith("sd15")
    path = path / "pytorch_lora_weights.safetensors" if file else path
    out = tmp_path / ("out.safetensors" if file else "out")
    assert truncate.main([str(path), "--energy", "0.9", "--out", str(out)]) == 0
    assert len(list(checkpoint.read(out))) == len(list(checkpoint.read(path)))
