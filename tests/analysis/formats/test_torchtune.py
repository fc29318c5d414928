"""torchtune's adapters, against the product written out by hand.

The tensors are as torchtune 0.6.1's LoRALinear and DoRALinear name and shape them.
"""

import json

import numpy as np
import pytest
import torch
from entries import close, reasons, scan

from analysis import CheckpointError, checkpoint
from analysis.formats import Options
from analysis.update import Other

NAME = "layers.0.attn.q_proj"


@pytest.fixture
def write_tune(tmp_path):
    """Write the tensors as torchtune's checkpointer would; returns the directory."""

    def write(tensors, name="adapter_model.pt", config=None):
        torch.save({key: torch.from_numpy(x) for key, x in tensors.items()}, tmp_path / name)
        if config is not None:
            config = {
                "r": 3,
                "lora_alpha": 6,
                "target_modules": ["q_proj"],
                "peft_type": "LORA",
            } | config
            (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.fixture
def layer(product):
    """The tensors of one layer, and B·A."""

    def tensors(name=NAME):
        B, A, want = product()
        return {f"{name}.lora_a.weight": A, f"{name}.lora_b.weight": B}, want

    return tensors


def test_torchtune_is_alpha_over_r_times_the_product(write_tune, layer):
    tensors, want = layer()
    path = write_tune(tensors, config={})
    for place in (path, path / "adapter_model.pt"):
        (update,) = checkpoint.read(place)
        close(update, 2 * want)
        assert (update.name, update.method) == (NAME, "lora")
    write_tune(tensors, config={"use_rslora": True, "alpha_pattern": {"q_proj": 12}})
    (update,) = checkpoint.read(path)
    close(update, 12 / np.sqrt(3) * want)


def test_torchtune_without_a_config_needs_a_scale(write_tune, layer):
    tensors, want = layer()
    path = write_tune(tensors)
    with pytest.raises(CheckpointError, match=r"adapter_model\.pt: lora_a\.weight.*--scale X"):
        list(checkpoint.scan(path))
    (update,) = checkpoint.read(path, options=Options(scale=2))
    close(update, 2 * want)


def test_the_last_epoch_stands_for_the_directory(write_tune, layer):
    for epoch in (0, 9, 10):
        tensors, want = layer()
        path = write_tune(tensors, f"adapter_{epoch}.pt", config={})
    found = scan(path)
    close(found[NAME], 2 * want)
    assert {n for n, e in found.items() if isinstance(e, Other)} == {"adapter_0.pt", "adapter_9.pt"}
    (update,) = checkpoint.read(path / "adapter_0.pt")
    assert not np.allclose(update.dense(), 2 * want)


def test_the_copy_of_peft_is_read_instead(write_tune, layer, write_adapter, lora_tensors, tmp_path):
    write_adapter(lora_tensors("q"), name=".")
    path = write_tune(layer()[0])
    assert [update.name for update in checkpoint.read(path)] == ["q"]
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_config.json").unlink()
    (update,) = checkpoint.read(path, options=Options(scale=1))  # negative control
    assert update.name == NAME


def test_dora_of_torchtune_is_read_as_its_product_alone(write_tune, layer):
    tensors, want = layer()
    path = write_tune(tensors | {f"{NAME}.magnitude": np.ones(6, "f4")}, config={})
    with pytest.raises(CheckpointError, match=r"is DoRA.*PEFT's copy.*--direction-only"):
        list(checkpoint.scan(path))
    (update,) = checkpoint.read(path, options=Options(direction_only=True))
    close(update, 2 * want)


def test_broken_layers_of_torchtune_are_skipped(write_tune, layer):
    tensors, _ = layer()
    half, _ = layer("layers.1.attn.v_proj")
    half.pop("layers.1.attn.v_proj.lora_b.weight")
    path = write_tune(tensors | half | {"norm.scale": np.ones(3, "f4")}, config={})
    (words,) = reasons(path).values()
    assert "layers.1.attn.v_proj: has A but no B; expected both factors" in words
    assert isinstance(scan(path)["norm.scale"], Other)
    write_tune(tensors, config={"r": 8})
    assert "expected r = 8 by" in reasons(path)[NAME]
