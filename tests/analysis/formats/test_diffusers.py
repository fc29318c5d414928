"""diffusers' files, old and new, against the product written out by hand."""

import json

import numpy as np
import pytest
from entries import close, reasons, scan_parts
from safetensors.numpy import load_file

from analysis import CheckpointError, checkpoint
from analysis.formats import Options


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("unet.up.0.attn.to_q.lora_A.weight", "unet.up.0.attn.to_q.lora_B.weight"),
        ("unet.up.0.attn.to_q.lora.down.weight", "unet.up.0.attn.to_q.lora.up.weight"),
        (
            "unet.up.0.attn.to_q.lora_linear_layer.down.weight",
            "unet.up.0.attn.to_q.lora_linear_layer.up.weight",
        ),
        (
            "unet.up.0.attn.processor.to_q_lora.down.weight",
            "unet.up.0.attn.processor.to_q_lora.up.weight",
        ),
        ("unet.up.0.attn.to_q.lora_A.default.weight", "unet.up.0.attn.to_q.lora_B.default.weight"),
    ],
)
def test_diffusers_old_and_new(write_file, product, down, up):
    B, A, want = product()
    (update,) = checkpoint.read(write_file({down: A, up: B}))
    close(update, want)
    assert (update.name, update.method) == ("unet.up.0.attn.to_q", "diffusers")
    (update,) = checkpoint.read(write_file({down: A, up: B}), options=Options(scale=0.5))
    close(update, 0.5 * want)


def test_diffusers_alpha_by_module_and_by_metadata(write_file, product):
    B, A, want = product()
    tensors = {}
    for component in ("unet", "text_encoder"):
        tensors |= {f"{component}.q.lora_A.weight": A, f"{component}.q.lora_B.weight": B}
    close(
        scan_parts(write_file(tensors | {"unet.q.alpha": np.array(6, "f4")}))["unet.q", ""],
        2 * want,
    )
    both = {"unet.q.lora_A.weight": A, "unet.q.lora_B.weight": B, "unet.q.alpha": np.array(6, "f4")}
    text = json.dumps({"unet.r": 3, "unet.lora_alpha": 6})
    close(
        scan_parts(write_file(both, "both.safetensors", lora_adapter_metadata=text))["unet.q", ""],
        2 * want,
    )
    config = {"unet.r": 3, "unet.lora_alpha": 12, "text_encoder.r": 4}
    config |= {"text_encoder.lora_alpha": 6, "text_encoder.use_rslora": True}
    entries = scan_parts(
        write_file(tensors, "new.safetensors", lora_adapter_metadata=json.dumps(config))
    )
    close(entries["unet.q", ""], 4 * want)
    close(entries["text_encoder.q", ""], 3 * want)
    for text in ("{", "[]", '{"unet.lora_alpha": 1}', '{"unet.use_dora": true}'):
        with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
            scan_parts(write_file(tensors, "bad.safetensors", lora_adapter_metadata=text))


def test_a_real_file_of_diffusers(real_adapter):
    path = real_adapter("sd15-diffusers-legacy")
    raw = load_file(path / "pytorch_lora_weights.safetensors")
    updates = {u.name: u for u in checkpoint.read(path)}
    assert len(updates) == len(raw) / 2 == 128
    for key in raw:
        if key.endswith("_lora.down.weight"):
            name = key.replace(".processor", "").removesuffix("_lora.down.weight")
            B = raw[key.replace(".down.", ".up.")].astype(float)
            np.testing.assert_array_equal(updates[name].dense(), B @ raw[key].astype(float))


def test_an_alpha_without_its_factors_is_told(write_file, product):
    B, A, want = product()
    tensors = {"unet.q.lora_A.weight": A, "unet.q.lora_B.weight": B}
    tensors |= {"unet.v.alpha": np.array(6, "f4")}
    path = write_file(tensors)
    (words,) = reasons(path).values()
    assert words == (f"{path}: unet.v: has alpha but no A and no B; expected both factors, A and B")
    close(scan_parts(path)["unet.q", ""], want)
    del tensors["unet.v.alpha"]
    assert reasons(write_file(tensors)) == {}  # negative control


def test_a_file_of_attention_processors(write_file, product):
    """A made-up twin of the real file: every module is B·A, under its dotted name."""
    tensors, wants = {}, {}
    for block in ("unet.down_blocks.0.attentions.1.attn1", "unet.mid_block.attentions.0.attn2"):
        for layer in ("to_q", "to_k", "to_v", "to_out"):
            B, A, wants[f"{block}.{layer}"] = product()
            tensors[f"{block}.processor.{layer}_lora.down.weight"] = A
            tensors[f"{block}.processor.{layer}_lora.up.weight"] = B
    path = write_file(tensors, "pytorch_lora_weights.safetensors").parent
    updates = {u.name: u for u in checkpoint.read(path)}
    assert updates.keys() == wants.keys()
    for name, want in wants.items():
        close(updates[name], want)
        assert (updates[name].method, updates[name].scale) == ("diffusers", 1.0)
