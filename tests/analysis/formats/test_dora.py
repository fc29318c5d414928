"""DoRA, made by PEFT, against PEFT's own merge minus the base."""

import numpy as np
import pytest
import torch
from entries import close, updates
from safetensors.numpy import save_file
from tiny_models import layers, matrix, save_base, tiny, trained

from analysis import CheckpointError, checkpoint
from analysis.formats import Options
from analysis.update import DenseUpdate


@pytest.mark.parametrize(
    "targets", [["lin"], ["emb"], ["conv1", "conv2", "conv3"], ["square", "turned"]]
)
def test_dora_with_the_base_is_merged_minus_base(tmp_path, targets):
    from peft import LoraConfig

    config = LoraConfig(
        r=4, lora_alpha=7, use_dora=True, target_modules=targets, fan_in_fan_out="square" in targets
    )
    base = save_base(tiny(), tmp_path / "base")
    model = trained(tiny(), config)
    model.save_pretrained(tmp_path / "adapter")
    before = {n: layer.get_base_layer().weight.double() for n, layer in layers(model).items()}
    with pytest.raises(CheckpointError, match="use_dora is set: DoRA"):
        updates(tmp_path / "adapter")
    found = updates(tmp_path / "adapter", base=base)
    directions = updates(tmp_path / "adapter", direction_only=True)
    assert {name for name, _ in found} == set(targets)
    for (name, part), update in found.items():
        layer = layers(model)[name]
        close(directions[name, part], matrix(layer.get_delta_weight("default"), layer))
        assert isinstance(update, DenseUpdate)
        # PEFT's merge in float64, or its own rounding would be what is compared.
        double = layer.double()
        double.merge()
        close(update, matrix(double.get_base_layer().weight - before[name], layer))


def test_dora_without_its_weight_in_the_base_is_skipped(tmp_path):
    from peft import LoraConfig

    trained(tiny(), LoraConfig(r=4, use_dora=True, target_modules=["lin"])).save_pretrained(
        tmp_path
    )
    (tmp_path / "base").mkdir()
    save_file({"other.weight": np.ones((2, 2))}, tmp_path / "base" / "model.safetensors")
    (entry,) = checkpoint.scan(tmp_path, Options(base=tmp_path / "base"))
    assert "lin: its weight is not in the base" in entry.reason


def test_dora_on_a_scaled_weight_is_skipped(write_adapter, lora_tensors, tmp_path):
    tensors = lora_tensors("q") | {"base_model.model.q.lora_magnitude_vector": np.ones(12, "f4")}
    path = write_adapter(tensors, use_dora=True)
    (tmp_path / "base").mkdir()
    W = {"q.weight": np.ones((12, 10), "f4"), "q.weight_scale": np.ones((1, 1), "f4")}
    save_file(W, tmp_path / "base" / "model.safetensors")
    (entry,) = checkpoint.scan(path, Options(base=tmp_path / "base"))
    assert "q: its weight in the base is scaled by another tensor" in entry.reason


def test_dora_on_a_square_weight_among_both_kinds_is_skipped(tmp_path):
    """PEFT keeps fan_in_fan_out of the last layer only: Conv1D and Linear cannot be told apart."""
    from peft import LoraConfig

    config = LoraConfig(r=4, use_dora=True, target_modules=["lin", "square", "turned"])
    base = save_base(tiny(), tmp_path / "base")
    trained(tiny(), config).save_pretrained(tmp_path / "adapter")
    entries = {e.name: e for e in checkpoint.scan(tmp_path / "adapter", Options(base=base))}
    assert "cannot tell Conv1D from Linear: W0 is square" in entries["square"].reason
    assert isinstance(entries["lin"], DenseUpdate)
    assert isinstance(entries["turned"], DenseUpdate)


def test_dora_on_gpt2_and_a_head_knows_which_weights_are_turned(tmp_path):
    from peft import LoraConfig
    from transformers import GPT2Config, GPT2LMHeadModel

    def gpt2():
        torch.manual_seed(0)
        sizes = {"n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
        return GPT2LMHeadModel(GPT2Config(vocab_size=16, tie_word_embeddings=False, **sizes))

    gpt2().save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, use_dora=True, target_modules=["c_attn", "attn.c_proj", "lm_head"])
    model = trained(gpt2(), config)
    model.save_pretrained(tmp_path / "adapter")
    before = {n: layer.get_base_layer().weight.double() for n, layer in layers(model).items()}
    found = updates(tmp_path / "adapter", base=tmp_path / "base")
    assert len(found) == 3
    for (name, _), update in found.items():
        layer = layers(model)[name].double()
        layer.merge()
        close(update, matrix(layer.get_base_layer().weight - before[name], layer))
