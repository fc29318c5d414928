"""kohya's files, against the product written out by hand."""

import numpy as np
import pytest
from entries import close, scan_parts

from analysis import CheckpointError, checkpoint
from analysis.formats.kohya import dotted
from analysis.spectrum import analyse
from analysis.update import Other, Skipped


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
def test_kohya_is_alpha_over_r_times_up_times_down(write_file, product, kernel):
    B, A, want = product(kernel=kernel)
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B}
    (update,) = checkpoint.read(write_file(tensors, "whole.safetensors"))
    close(update, want)
    tensors[f"{name}.alpha"] = np.array(6, "f4")
    (update,) = checkpoint.read(write_file(tensors))
    close(update, 2 * want)
    module = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1_to_q"
    assert (update.name, update.method) == (module, "kohya")


def test_kohya_names_keep_their_numbers():
    te = "lora_te1_text_model_encoder_layers_11_self_attn_q_proj"
    assert dotted(te) == "te1.text_model_encoder_layers.11.self_attn_q_proj"
    assert dotted("lora_unet_out_0_2") == "unet.out.0.2"
    assert dotted("other") == "other"


def test_kohyas_other_layers_are_skipped_by_name(write_file, product):
    B, A, want = product()
    good = {"lora_unet_a.lora_down.weight": A, "lora_unet_a.lora_up.weight": B}
    bad = {
        **{"lora_unet_b.hada_w1_a": A, "lora_unet_b.hada_w1_b": A, "lora_unet_b.alpha": A[0, :1]},
        **{"lora_unet_c.lora_down.weight": A, "lora_unet_c.dora_scale": B},
        **{"lora_unet_d.lora_up.weight": B},
        **{"lora_unet_e.lora_down.weight": A, "lora_unet_e.lora_up.weight": B},
        **{"lora_unet_e.alpha": np.ones(2, "f4"), "emb.weight": A},
    }
    entries = scan_parts(write_file(good | bad))
    close(entries["unet.a", ""], want)
    reasons = {name: e.reason for (name, _), e in entries.items() if isinstance(e, Skipped)}
    assert "has alpha, hada_w1_a, hada_w1_b; expected hada_w1_a, hada_w1_b" in reasons["unet.b"]
    assert "dora_scale is not read" in reasons["unet.c"]
    assert "has B but no A" in reasons["unet.d"]
    assert "alpha is (2,); expected one number" in reasons["unet.e"]
    assert isinstance(entries["emb.weight", ""], Other)


def test_kohyas_layers_with_more_than_a_pair_are_skipped(write_file, product):
    B, A, _ = product()
    tensors = {f"{m}.lora_{f}.weight": x for m in "ab" for f, x in (("down", A), ("up", B))}
    tensors |= {"a.bias_values": A, "b.diff_b": A, "c.diff": A}
    entries = scan_parts(write_file(tensors))
    assert {name for (name, _), e in entries.items() if isinstance(e, Skipped)} == {"a", "c"}
    assert "bias_values is not read" in entries["a", ""].reason
    assert "diff is not read" in entries["c", ""].reason
    assert isinstance(entries["b.diff_b", ""], Other)


def test_two_layers_of_kohya_that_would_get_one_name_are_refused(write_file, product):
    B, A, _ = product()
    layers = ("lora_te_a_1", "lora_te_a_1_")
    tensors = {f"{m}.lora_{f}.weight": x for m in layers for f, x in (("down", A), ("up", B))}
    with pytest.raises(CheckpointError, match=r"are both te\.a\.1"):
        scan_parts(write_file(tensors))


def test_several_files_in_a_directory_are_runs(write_file, product, tmp_path):
    B, A, _ = product()
    for i in (1, 2):
        write_file({"m.lora_down.weight": A, "m.lora_up.weight": B}, f"style-{i}.safetensors")
    (tmp_path / "notes.txt").write_text("")
    names = [run.name for run in checkpoint.runs([tmp_path])]
    assert names == ["style-1.safetensors", "style-2.safetensors"]
    assert len(analyse(tmp_path).rows) == 2


def test_an_alpha_without_its_factors_is_told(write_file, product):
    B, A, _ = product()
    tensors = {"lora_unet_a.lora_down.weight": A, "lora_unet_a.lora_up.weight": B}
    path = write_file(tensors | {"lora_unet_b.alpha": np.array(6, "f4")})
    (entry,) = (e for e in scan_parts(path).values() if isinstance(e, Skipped))
    assert entry.name == "unet.b"
    assert entry.reason == (
        f"{path}: unet.b: has alpha but no A and no B; expected both factors, A and B"
    )
    path = write_file(tensors | {"lora_unet_b.lora_up.weight": B, "lora_unet_b.alpha": A[0, :1]})
    (entry,) = (e for e in scan_parts(path).values() if isinstance(e, Skipped))
    assert "has alpha, B but no A; expected both" in entry.reason
