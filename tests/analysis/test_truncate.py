"""Truncation: the ranks that are kept, the error that is printed, and what is refused."""

import numpy as np
import pytest
from peft import LoraConfig, PeftModel
from tiny_models import layers, llama, matrix, trained

from analysis import UserError, checkpoint, truncate
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


REAL = ["roberta-portuguese-run/checkpoint-8610", "opencalm1b-rank1-fp16", "sd15-diffusers-legacy"]


@pytest.mark.parametrize("name", REAL)
def test_real_adapters_go_through(real_adapter, tmp_path, name):
    path = real_adapter(name)
    file = name.startswith("sd15")
    path = path / "pytorch_lora_weights.safetensors" if file else path
    out = tmp_path / ("out.safetensors" if file else "out")
    assert truncate.main([str(path), "--energy", "0.9", "--out", str(out)]) == 0
    assert len(list(checkpoint.read(out))) == len(list(checkpoint.read(path)))
