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
    of_four, A4, want4 = product(r=4)
    tensors |= {"text_encoder.q.lora_A.weight": A4, "text_encoder.q.lora_B.weight": of_four}
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
    close(entries["text_encoder.q", ""], 3 * want4)
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


def metadata(**config):
    return {"lora_adapter_metadata": json.dumps({"peft_type": "LORA"} | config)}


def test_metadata_of_a_model_has_no_component(write_file, product):
    """What save_lora_adapter of a single model writes, with the patterns of PEFT."""
    tensors, wants = {}, {}
    for name in ("down.0.to_q", "down.1.to_q", "down.1.to_out.0"):
        B, A, wants[name] = product(r=4 if name == "down.1.to_q" else 3)
        tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    patterns = {"rank_pattern": {"1.to_q": 4}, "alpha_pattern": {r".*to_out\.0": 3}}
    whole = metadata(r=3, lora_alpha=12, use_rslora=False, **patterns)
    found = scan_parts(write_file(tensors, "whole.safetensors", **whole))
    for name, scale in (("down.0.to_q", 4), ("down.1.to_q", 3), ("down.1.to_out.0", 1)):
        close(found[name, ""], scale * wants[name])
    rooted = metadata(r=3, lora_alpha=12, use_rslora=True, **patterns)
    found = scan_parts(write_file(tensors, "root.safetensors", **rooted))
    close(found["down.1.to_q", ""], 6 * wants["down.1.to_q"])
    path = write_file(tensors, "bad.safetensors", **metadata(r=3, lora_alpha=12))
    assert "A is (4, 5); expected r = 3 by lora_adapter_metadata" in reasons(path)["down.1.to_q"]


def test_patterns_of_a_component_name_its_own_modules(write_file, product):
    tensors, wants = {}, {}
    for name in ("transformer.a.to_q", "transformer.b.to_q", "text_encoder.b.to_q"):
        B, A, wants[name] = product()
        tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    config = {"transformer.r": 3, "transformer.lora_alpha": 3, "text_encoder.r": 3}
    config |= {"text_encoder.lora_alpha": 6, "transformer.alpha_pattern": {"^b.to_q": 12}}
    found = scan_parts(write_file(tensors, "p.safetensors", **metadata(**config)))
    for name, scale in zip(wants, (1, 4, 2), strict=True):
        close(found[name, ""], scale * wants[name])
    config["transformer.rank_pattern"] = {"(": 3}
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: transformer: rank_pattern"):
        scan_parts(write_file(tensors, "bad.safetensors", **metadata(**config)))


def test_dora_of_diffusers_is_read_as_its_product_alone(write_file, product):
    B, A, want = product()
    tensors = {"unet.q.lora_A.weight": A, "unet.q.lora_B.weight": B}
    path = write_file(tensors, "a.safetensors", **metadata(r=3, lora_alpha=6, use_dora=True))
    magnitude = {"unet.q.lora_magnitude_vector": np.ones(6, "f4")}
    magnitude["unet.q.alpha"] = np.array(6, "f4")
    for file in (path, write_file(tensors | magnitude, "b.safetensors")):
        with pytest.raises(CheckpointError, match=r"is set: DoRA.*--direction-only"):
            scan_parts(file)
        (update,) = checkpoint.read(file, options=Options(direction_only=True))
        close(update, 2 * want)


def test_a_module_of_comfyui_loses_its_root(write_file, product):
    B, A, want = product()
    name = "diffusion_model.blocks.0.q"
    tensors = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    (update,) = checkpoint.read(write_file(tensors | {f"{name}.alpha": np.array(6, "f4")}))
    close(update, 2 * want)
    assert update.name == "blocks.0.q"


@pytest.mark.parametrize(
    ("pair", "alpha", "module"),
    [
        ("unet.x.processor.to_q_lora.{}.weight", "unet.x.processor.to_q_lora.alpha", "unet.x.to_q"),
        ("unet.to_q.lora.{}.weight", "unet.to_q.lora.alpha", "unet.to_q"),
        ("te.fc.lora_linear_layer.{}.weight", "te.fc.lora_linear_layer.alpha", "te.fc"),
        ("unet.to_q.lora.{}.weight", "unet.to_q.alpha", "unet.to_q"),
    ],
)
def test_alpha_counts_wherever_it_stands_by_its_pair(write_file, product, pair, alpha, module):
    B, A, want = product()
    tensors = {pair.format("down"): A, pair.format("up"): B, alpha: np.array(6, "f4")}
    (update,) = checkpoint.read(write_file(tensors))
    close(update, 2 * want)
    assert update.name == module
