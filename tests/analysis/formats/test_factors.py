"""Factors as other tools name them, against the product written out by hand."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import Options
from analysis.formats.kohya import dotted
from analysis.spectrum import analyse, main
from analysis.update import Other, Skipped


@pytest.fixture
def write(tmp_path):
    def write(tensors, name="some.safetensors", **metadata):
        save_file(tensors, tmp_path / name, metadata=metadata or None)
        return tmp_path / name

    return write


@pytest.fixture
def product(rng):
    """B, A and their product, of a layer or of a kernel."""

    def factors(d_out=6, r=3, d_in=5, kernel=()):
        A = rng.standard_normal((r, d_in, *kernel)).astype("f4")
        B = rng.standard_normal((d_out, r, *(1 for _ in kernel))).astype("f4")
        return B, A, B.reshape(d_out, r).astype(float) @ A.reshape(r, -1).astype(float)

    return factors


def scan(path, **options):
    return {(e.name, getattr(e, "part", "")): e for e in checkpoint.scan(path, Options(**options))}


def close(update, want):
    np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-6 * np.abs(want).max())


# kohya


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
def test_kohya_is_alpha_over_r_times_up_times_down(write, product, kernel):
    B, A, want = product(kernel=kernel)
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B}
    (update,) = checkpoint.read(write(tensors, "whole.safetensors"))
    close(update, want)
    tensors[f"{name}.alpha"] = np.array(6, "f4")
    (update,) = checkpoint.read(write(tensors))
    close(update, 2 * want)
    module = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1_to_q"
    assert (update.name, update.method) == (module, "kohya")


def test_kohya_names_keep_their_numbers():
    te = "lora_te1_text_model_encoder_layers_11_self_attn_q_proj"
    assert dotted(te) == "te1.text_model_encoder_layers.11.self_attn_q_proj"
    assert dotted("lora_unet_out_0_2") == "unet.out.0.2"
    assert dotted("other") == "other"


def test_kohyas_other_layers_are_skipped_by_name(write, product):
    B, A, want = product()
    good = {"lora_unet_a.lora_down.weight": A, "lora_unet_a.lora_up.weight": B}
    bad = {
        **{"lora_unet_b.hada_w1_a": A, "lora_unet_b.hada_w1_b": A, "lora_unet_b.alpha": A[0, :1]},
        **{"lora_unet_c.lora_down.weight": A, "lora_unet_c.dora_scale": B},
        **{"lora_unet_d.lora_up.weight": B},
        **{"lora_unet_e.lora_down.weight": A, "lora_unet_e.lora_up.weight": B},
        **{"lora_unet_e.alpha": np.ones(2, "f4"), "emb.weight": A},
    }
    entries = scan(write(good | bad))
    close(entries["unet.a", ""], want)
    reasons = {name: e.reason for (name, _), e in entries.items() if isinstance(e, Skipped)}
    assert "has alpha, hada_w1_a, hada_w1_b; expected hada_w1_a, hada_w1_b" in reasons["unet.b"]
    assert "dora_scale is not read" in reasons["unet.c"]
    assert "has B but no A" in reasons["unet.d"]
    assert "alpha is (2,); expected one number" in reasons["unet.e"]
    assert isinstance(entries["emb.weight", ""], Other)


def test_loha_is_the_product_entry_by_entry_that_peft_makes(write, tmp_path):
    import torch
    from peft import LoHaConfig, get_peft_model

    torch.manual_seed(0)
    config = LoHaConfig(r=3, alpha=6, target_modules=["0"], init_weights=False)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(7, 5)), config)
    layer = model.base_model.model[0]
    tensors = {
        f"lora_unet_mid_0.{name}": getattr(layer, name)["default"].detach().numpy()
        for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    }
    want = layer.get_delta_weight("default").detach().numpy()
    tensors["lora_unet_mid_0.alpha"] = np.array(6, "f4")
    (update,) = checkpoint.read(write(tensors))
    close(update, want)
    assert (update.name, update.method) == ("unet.mid.0", "loha")
    tensors["lora_unet_mid_0.hada_w2_a"] = np.ones((4, 3), "f4")
    (entry,) = scan(write(tensors)).values()
    assert "expected two pairs of one shape" in entry.reason


def test_kohyas_layers_with_more_than_a_pair_are_skipped(write, product):
    B, A, _ = product()
    tensors = {f"{m}.lora_{f}.weight": x for m in "ab" for f, x in (("down", A), ("up", B))}
    tensors |= {"a.bias_values": A, "b.diff_b": A, "c.diff": A}
    entries = scan(write(tensors))
    assert {name for (name, _), e in entries.items() if isinstance(e, Skipped)} == {"a", "c"}
    assert "bias_values is not read" in entries["a", ""].reason
    assert "diff is not read" in entries["c", ""].reason
    assert isinstance(entries["b.diff_b", ""], Other)


def test_two_layers_of_kohya_that_would_get_one_name_are_refused(write, product):
    B, A, _ = product()
    layers = ("lora_te_a_1", "lora_te_a_1_")
    tensors = {f"{m}.lora_{f}.weight": x for m in layers for f, x in (("down", A), ("up", B))}
    with pytest.raises(CheckpointError, match=r"are both te\.a\.1"):
        scan(write(tensors))


def test_a_matrix_out_of_proportion_to_its_file_is_skipped(write):
    """Of 50,000 numbers a matrix of 600 million entries: 5 GB."""
    row, column = np.ones((1, 25_000), "f4"), np.ones((25_000, 1), "f4")
    loha = {f"lora_unet_a.hada_w{i}_{x}": m for i in (1, 2) for x, m in (("a", column), ("b", row))}
    (entry,) = scan(write(loha)).values()
    assert "makes a matrix (25000, 25000) of 100000 numbers" in entry.reason
    groups = {"lora_unet_a.lora_up.weight": column[..., None, None]}
    groups |= {"lora_unet_a.lora_down.weight": column[..., None, None]}
    (entry,) = scan(write(groups)).values()
    assert "makes a matrix (25000, 25000) of 50000 numbers" in entry.reason


# diffusers


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
def test_diffusers_old_and_new(write, product, down, up):
    B, A, want = product()
    (update,) = checkpoint.read(write({down: A, up: B}))
    close(update, want)
    assert (update.name, update.method) == ("unet.up.0.attn.to_q", "diffusers")
    (update,) = checkpoint.read(write({down: A, up: B}), options=Options(scale=0.5))
    close(update, 0.5 * want)


def test_diffusers_alpha_by_module_and_by_metadata(write, product):
    B, A, want = product()
    tensors = {}
    for component in ("unet", "text_encoder"):
        tensors |= {f"{component}.q.lora_A.weight": A, f"{component}.q.lora_B.weight": B}
    close(scan(write(tensors | {"unet.q.alpha": np.array(6, "f4")}))["unet.q", ""], 2 * want)
    both = {"unet.q.lora_A.weight": A, "unet.q.lora_B.weight": B, "unet.q.alpha": np.array(6, "f4")}
    text = json.dumps({"unet.r": 3, "unet.lora_alpha": 6})
    close(scan(write(both, "both.safetensors", lora_adapter_metadata=text))["unet.q", ""], 2 * want)
    config = {"unet.r": 3, "unet.lora_alpha": 12, "text_encoder.r": 4}
    config |= {"text_encoder.lora_alpha": 6, "text_encoder.use_rslora": True}
    entries = scan(write(tensors, "new.safetensors", lora_adapter_metadata=json.dumps(config)))
    close(entries["unet.q", ""], 4 * want)
    close(entries["text_encoder.q", ""], 3 * want)
    for text in ("{", "[]", '{"unet.lora_alpha": 1}', '{"unet.use_dora": true}'):
        with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
            scan(write(tensors, "bad.safetensors", lora_adapter_metadata=text))


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


# loralib


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_loralib_needs_to_be_told_its_scale(write, product, suffix, tmp_path):
    B, A, want = product()
    tensors = {"h.0.q.lora_A": A, "h.0.q.lora_B": B, "h.0.q.bias": np.ones(3, "f4")}
    if suffix == "pt":
        import torch

        path = tmp_path / "lora.pt"
        torch.save({"state_dict": {k: torch.from_numpy(v) for k, v in tensors.items()}}, path)
    else:
        path = write(tensors)
    entries = scan(path)
    close(entries["h.0.q", ""], want)
    assert "says nothing of α" in entries[path.name, ""].what
    entries = scan(path, scale=4.0)
    close(entries["h.0.q", ""], 4 * want)
    assert (path.name, "") not in entries


def test_a_merged_layer_of_loralib_is_read_block_by_block(write, rng):
    """MergedLinear with two slices of r = 2 enabled: a grouped convolution of A."""
    import torch

    A, B = rng.standard_normal((4, 7)).astype("f4"), rng.standard_normal((10, 2)).astype("f4")
    kernel = torch.from_numpy(B)[..., None]
    both = torch.nn.functional.conv1d(torch.from_numpy(A)[None], kernel, groups=2)[0].numpy()
    entries = scan(write({"h.qkv.lora_A": A, "h.qkv.lora_B": B}))
    for i in range(2):
        close(entries["h.qkv", f"block{i}"], both[5 * i : 5 * i + 5])


@pytest.mark.parametrize(
    ("A_name", "B_name", "more"),
    [
        ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
        ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"),
        ("lora_A", "lora_B", "lora_E"),
    ],
)
def test_what_is_more_than_two_factors_is_not_their_product(write, product, A_name, B_name, more):
    B, A, _ = product()
    tensors = {f"unet.q.{A_name}": A, f"unet.q.{B_name}": B, "unet.q.lora_B.bias": B[:, 0].copy()}
    entries = scan(write(tensors | {f"unet.q.{more}": np.ones((3, 1), "f4")}))
    assert f"{more.split('.')[0]} is not read beside" in entries["unet.q", ""].reason
    assert not isinstance(scan(write(tensors))["unet.q", ""], Skipped)  # negative control


# By pattern


def test_any_pair_by_the_patterns_of_its_names(write, product):
    B, A, want = product()
    path = write({"w_a_000": A, "w_b_000": B, "w_a_001": A, "other": A})
    entries = scan(path, factors=(r"w_a_(\d+)", r"w_b_(\d+)"), scale=2.0)
    close(entries["000.w", ""], 2 * want)
    assert "001.w: has A but no B" in entries["001.w", ""].reason
    assert entries["other", ""].what == "matches neither pattern"
    path = write({"h.q.down": A, "h.q.up": B}, "named.safetensors")
    (update,) = checkpoint.read(path, options=Options(factors=(r"(.*)\.down", r"(.*)\.up")))
    assert (update.name, update.method) == ("h.q", "factors")
    with pytest.raises(CheckpointError, match="inner ranks differ"):
        list(checkpoint.read(path, options=Options(factors=(r"(.*)\.up", r"(.*)\.down"))))
    with pytest.raises(CheckpointError, match="no name matches"):
        list(checkpoint.scan(path, Options(factors=("x", "y"))))
    with pytest.raises(ValueError, match="no regular expression"):
        list(checkpoint.scan(path, Options(factors=("(", "y"))))


def test_the_real_ranks_of_sam(real_adapter, capfd):
    """One task at five ranks: each file's own directory is a run."""
    root = real_adapter("sam-lora-ranks")
    paths = [root / f"rank{r}" for r in (2, 4, 6, 8, 16)]
    found = analyse(paths, options=Options(factors=(r"w_a_(\d+)", r"w_b_(\d+)")))
    assert (len(found.rows), found.skipped, found.other) == (5 * 24, [], [])
    assert {(row["run"], row["capacity"]) for row in found.rows} == {
        (f"rank{r}", r) for r in (2, 4, 6, 8, 16)
    }
    assert {row["kind"] for row in found.rows} == {"w"}
    raw = load_file(paths[0] / "lora_rank2.safetensors")
    want = np.linalg.svd(raw["w_b_003"].astype(float) @ raw["w_a_003"].astype(float))[1][:2]
    np.testing.assert_allclose(found.s["rank2/003.w"], want, rtol=1e-12)
    assert main([str(paths[0])]) == 2
    assert "expected lora_A and lora_B" in capfd.readouterr().err
    assert main([str(paths[0]), "--factors", "(", "x"]) == 2
    assert "no regular expression" in capfd.readouterr().err


def test_several_files_in_a_directory_are_runs(write, product, tmp_path):
    B, A, _ = product()
    for i in (1, 2):
        write({"m.lora_down.weight": A, "m.lora_up.weight": B}, f"style-{i}.safetensors")
    (tmp_path / "notes.txt").write_text("")
    names = [run.name for run in checkpoint.runs([tmp_path])]
    assert names == ["style-1.safetensors", "style-2.safetensors"]
    assert len(analyse(tmp_path).rows) == 2
