"""Adapters that are written: as PEFT reads them, all or nothing."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.utils.other import get_pattern_key
from tiny_models import layers, llama, matrix, tiny, trained

from analysis import CheckpointError, UserError, checkpoint
from analysis.numerics import compress
from analysis.update import LowRankUpdate
from analysis.writing import peft

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


def updates_of(path):
    return list(checkpoint.read(path))


def of_peft(path, model):
    """ΔW of each module as PEFT computes it from the files."""
    tuned = PeftModel.from_pretrained(model, path)
    with torch.no_grad():
        return {
            name: matrix(layer.get_delta_weight("default"), layer)
            for name, layer in layers(tuned).items()
        }


@pytest.fixture
def lora(tmp_path):
    """A LoRA of a tiny LLaMA with patterns, rsLoRA and a saved head."""
    config = LoraConfig(
        r=6, lora_alpha=12, use_rslora=True, rank_pattern={"1.self_attn.q_proj": 3},
        alpha_pattern={"down_proj": 5}, modules_to_save=["lm_head"],
        target_modules=["q_proj", "v_proj", "down_proj"],
    )  # fmt: skip
    trained(llama(), config).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peft_loads_what_was_meant(lora, tmp_path, dtype):
    """Ranks of their own, in every dtype; the error is that of the factors as PEFT has them."""
    exact = updates_of(lora)
    original = peft.original(lora)
    cut = [compress.best(update, 1 + i % 3) for i, update in enumerate(exact)]
    stored = peft.write(
        tmp_path / "out", cut, dtype, config=original.config, carried=original.carried
    )
    of_module = of_peft(tmp_path / "out", llama())
    assert of_module.keys() == {update.name for update in exact}
    for update, small in zip(exact, stored, strict=True):
        dW, whole = of_module[update.name], update.dense()
        np.testing.assert_allclose(dW, small.dense(), atol=1e-6 * np.abs(whole).max())
        measured = np.linalg.norm(dW - whole) / np.linalg.norm(whole)
        assert compress.error(update, small) == pytest.approx(measured, abs=1e-6)
    head = [name for name in original.carried if "lm_head" in name]
    assert head
    assert original.carried.keys() <= set(peft.original(tmp_path / "out").carried)


def test_layers_of_every_kind(tmp_path):
    """Embeddings, Conv1D and convolutions keep the shapes of their factors."""
    names = ["emb", "lin", "square", "turned", "conv1", "conv2", "point", "conv3"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=names, fan_in_fan_out=False)
    trained(tiny(), config).save_pretrained(tmp_path / "a")
    original = peft.original(tmp_path / "a")
    cut = [compress.best(update, 2) for update in updates_of(tmp_path / "a")]
    peft.write(tmp_path / "b", cut, config=original.config, layouts=original.layouts)
    of_module = of_peft(tmp_path / "b", tiny())
    for update in cut:
        np.testing.assert_allclose(of_module[update.name], update.dense(), atol=1e-6)


def test_factors_that_are_not_cut_stay_as_they_are(lora, tmp_path):
    exact = updates_of(lora)
    peft.write(tmp_path / "out", exact, config=peft.original(lora).config)
    for update, read in zip(exact, updates_of(tmp_path / "out"), strict=True):
        assert np.array_equal(update.B, read.B)
        assert update.scale == pytest.approx(read.scale, rel=1e-12)


def test_no_key_of_a_pattern_finds_another_module(rng, tmp_path):
    """PEFT takes keys for the ends of names."""
    names = ["q", "block.q", "x.block.q", "blockzq"]
    updates = [
        LowRankUpdate(name, rng.standard_normal((5, i)), rng.standard_normal((i, 7)))
        for i, name in enumerate(names, 1)
    ]
    peft.write(tmp_path / "out", updates, np.dtype(np.float64))
    read = {update.name: update.r for update in updates_of(tmp_path / "out")}
    assert read == {name: i for i, name in enumerate(names, 1)}


def test_keys_are_the_names_unless_peft_finds_more_by_them(rng):
    """Against PEFT's own rule, on names of few letters, which are often the end of another."""

    def name():
        parts = ["".join(rng.choice(list("ab"), rng.integers(1, 3))) for _ in range(3)]
        return ".".join(parts[: rng.integers(1, 4)])

    for _ in range(100):
        names = sorted({name() for _ in range(rng.integers(1, 25))})
        keys = peft.pattern_keys(names)
        for own in names:
            finds = [other for other in names if get_pattern_key([keys[own]], other) == keys[own]]
            assert finds == [own]
            by_name = [other for other in names if re.match(rf"(.*\.)?({own})$", other)]
            assert keys[own] == (own if by_name == [own] else "^" + re.escape(own))
    assert peft.pattern_keys(["a+b"]) == {"a+b": r"^a\+b"}


def test_replicated_layers_stay_replicated(tmp_path):
    """Their names are those of the longer model, which only the setting makes."""
    config = LoraConfig(r=4, target_modules=["q_proj"], layer_replication=[(0, 1), (0, 2)])
    trained(llama(), config).save_pretrained(tmp_path / "a")
    original = peft.original(tmp_path / "a")
    cut = [compress.best(update, 2) for update in updates_of(tmp_path / "a")]
    peft.write(tmp_path / "b", cut, config=original.config)
    of_module = of_peft(tmp_path / "b", llama())
    assert len(of_module) == len(cut) == 3
    for update in cut:
        np.testing.assert_allclose(of_module[update.name], update.dense(), atol=1e-6)


def test_factors_of_parameters_are_refused(tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], target_parameters=["0.mlp.up_proj.weight"])
    trained(llama(), config).save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match="target_parameters is set"):
        peft.original(tmp_path / "a")


def test_what_is_there_is_not_replaced_without_force(lora, tmp_path):
    exact = updates_of(lora)
    before = (lora / "adapter_config.json").read_bytes()
    with pytest.raises(UserError, match="exists; pass another name, or --force"):
        peft.write(lora, exact)
    assert (lora / "adapter_config.json").read_bytes() == before
    peft.write(lora, exact[:1], force=True)
    assert len(updates_of(lora)) == 1


def test_nothing_is_left_of_an_adapter_that_reads_wrong(lora, tmp_path, monkeypatch):
    exact = updates_of(lora)
    settings = peft.settings_of(exact, {})
    monkeypatch.setattr(peft, "settings_of", lambda *_: settings | {"lora_alpha": 7})
    with pytest.raises(CheckpointError, match="reads as another update after writing"):
        peft.write(tmp_path / "out", exact)
    assert not (tmp_path / "out").exists()


def test_an_overflow_is_named(rng, tmp_path):
    large = LowRankUpdate("q", np.full((4, 2), 1e9), rng.standard_normal((2, 3)))
    with pytest.raises(UserError, match="q: its factors overflow in float16; pass --dtype float32"):
        peft.write(tmp_path / "out", [large], np.dtype(np.float16))
    with pytest.raises(UserError, match="no module is left"):
        peft.write(tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_adapters_that_are_no_plain_pairs_are_refused(write_adapter, lora_tensors):
    tensors = lora_tensors("l.0.q")
    dora = {"base_model.model.l.0.q.lora_magnitude_vector": np.ones(12, np.float32)}
    with pytest.raises(CheckpointError, match="expected lora_A and lora_B alone"):
        peft.original(write_adapter(tensors | dora))


def test_the_config_keeps_what_is_about_the_base(lora, tmp_path):
    given = json.loads((lora / "adapter_config.json").read_text()) | {"task_type": "CAUSAL_LM"}
    peft.write(tmp_path / "out", updates_of(lora), config=given)
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["task_type"] == "CAUSAL_LM"
    assert written["modules_to_save"] == ["lm_head"]
    assert not written["use_rslora"]
