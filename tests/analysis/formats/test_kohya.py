"""kohya's files, against the product written out by hand."""

import numpy as np
import pytest
from entries import close, reasons, scan_parts, updates
from safetensors.numpy import save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import Options
from analysis.formats.kohya import dotted
from analysis.numerics.floor import noise_floor
from analysis.spectrum import analyse
from analysis.update import DenseUpdate, LowRankUpdate, Other, Skipped


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
    assert dotted("lora_unet__blocks_0_self_attn_q") == "unet.blocks.0.self_attn_q"
    assert dotted("lora_te2_encoder_layers_3_mlp_fc1") == "te2.encoder_layers.3.mlp_fc1"
    assert dotted("lora_prior_unet_down_1_0_q") == "prior_unet.down.1.0.q"
    assert dotted("lora_prior_blocks_7_q") == "prior.blocks.7.q"
    assert dotted("lora_transformer_single_transformer_blocks_7_proj") == (
        "transformer.single_transformer_blocks.7.proj"
    )
    assert dotted("lycoris_layers_0_q") == "layers.0.q"
    assert dotted("lycoris_unet_mid_0_q") == "unet.mid.0.q"
    assert dotted("model.diffusion_model.blocks.0.q") == "blocks.0.q"


def test_kohyas_other_layers_are_skipped_by_name(write_file, product):
    B, A, want = product()
    good = {"lora_unet_a.lora_down.weight": A, "lora_unet_a.lora_up.weight": B}
    bad = {
        **{"lora_unet_b.hada_w1_a": A, "lora_unet_b.hada_w1_b": A, "lora_unet_b.alpha": A[0, :1]},
        **{"lora_unet_c.lora_down.weight": A, "lora_unet_c.oft_blocks": B},
        **{"lora_unet_d.lora_up.weight": B},
        **{"lora_unet_e.lora_down.weight": A, "lora_unet_e.lora_up.weight": B},
        **{"lora_unet_e.alpha": np.ones(2, "f4"), "emb.weight": A},
    }
    entries = scan_parts(write_file(good | bad))
    close(entries["unet.a", ""], want)
    reasons = {name: e.reason for (name, _), e in entries.items() if isinstance(e, Skipped)}
    assert "has alpha, hada_w1_a, hada_w1_b; expected hada_w1_a, hada_w1_b" in reasons["unet.b"]
    assert "oft_blocks: OFT multiplies W0 by a rotation: not read" in reasons["unet.c"]
    assert "has B but no A" in reasons["unet.d"]
    assert "alpha is (2,); expected one number" in reasons["unet.e"]
    assert isinstance(entries["emb.weight", ""], Other)


def test_kohyas_layers_with_more_than_a_pair_are_skipped(write_file, product):
    B, A, _ = product()
    tensors = {f"{m}.lora_{f}.weight": x for m in "ab" for f, x in (("down", A), ("up", B))}
    tensors |= {f"c.lora_{f}.weight": x for f, x in (("down", A), ("up", B))}
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


@pytest.mark.parametrize("root", ["diffusion_model.", "model.diffusion_model.", ""])
def test_names_with_dots_are_kept_without_their_root(write_file, product, root):
    """ComfyUI, musubi and Wan: α is used, the change of a bias is listed."""
    tensors, wants = {}, {}
    for name in ("blocks.0.self_attn.q", "blocks.10.cross_attn.k_img", "blocks.10.ffn.0"):
        B, A, wants[name] = product()
        tensors |= {f"{root}{name}.lora_down.weight": A, f"{root}{name}.lora_up.weight": B}
        tensors |= {f"{root}{name}.alpha": np.array(1.5, "f4"), f"{root}{name}.diff_b": A[0]}
    path = write_file(tensors, "wan.safetensors")
    found = scan_parts(path)
    for name, want in wants.items():
        close(found[name, ""], want / 2)
        assert (found[name, ""].scale, found[name, ""].method) == (0.5, "kohya")
    assert sum(isinstance(entry, Other) for entry in found.values()) == 3
    (update, *_) = checkpoint.read(path, options=Options(scale=3))  # the file gives the scale
    close(update, wants[update.name] / 2)


def test_a_module_with_and_without_its_root_is_refused(write_file, product):
    B, A, _ = product()
    layers = ("blocks.0.q", "diffusion_model.blocks.0.q")
    tensors = {f"{m}.lora_{f}.weight": x for m in layers for f, x in (("down", A), ("up", B))}
    with pytest.raises(CheckpointError, match=r"are both blocks\.0\.q"):
        scan_parts(write_file(tensors))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_a_whole_difference_is_the_update_itself(write_file, rng, dtype):
    W, kernel = rng.standard_normal((6, 5)), rng.standard_normal((6, 5, 3, 2))
    tensors = {"diffusion_model.a.diff": W.astype(dtype), "lora_unet_b.diff": kernel.astype(dtype)}
    tensors |= {"diffusion_model.norm.diff": np.ones(5, dtype), "diffusion_model.a.diff_b": W[0]}
    path = write_file(tensors)
    found = scan_parts(path)
    np.testing.assert_array_equal(found["a", ""].dense(), W.astype(dtype).astype(float))
    assert found["unet.b", ""].shape == (6, 30)
    np.testing.assert_array_equal(
        found["unet.b", ""].dense(), kernel.astype(dtype).reshape(6, 30).astype(float)
    )
    assert found["a", ""].floor() == noise_floor(W.astype(dtype)) > 0
    assert isinstance(found["norm.diff", ""], Other)
    assert found["a", ""].noise() > 0


def test_tensors_that_are_no_difference_are_skipped(write_file, product):
    B, A, _ = product()
    good = {"a.lora_down.weight": A, "a.lora_up.weight": B}
    bad = {"b.diff": np.ones((2, 2), "i4"), "c.set_weight": A, "d.diff": np.ones((0, 2), "f4")}
    words = reasons(write_file(good | bad))
    assert words.keys() == {"b", "c", "d"}
    assert "diff is I32 (2, 2); expected a floating-point matrix" in words["b"]
    assert "set_weight: replaces W0: not read" in words["c"]


@pytest.fixture
def write_base(tmp_path, rng):
    """Write weights of these shapes as a base; returns its directory and the weights."""

    def write(shapes, root=""):
        weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        (tmp_path / "base").mkdir(exist_ok=True)
        named = {f"{root}{name}.weight": W for name, W in weights.items()}
        save_file(named, tmp_path / "base" / "model.safetensors")
        return tmp_path / "base", weights

    return write


def rescaled(W, m, axes):
    """DoRA's W by the definition: m in the place of the norms over `axes`."""
    return W * m / np.sqrt((W**2).sum(axis=axes, keepdims=True))


@pytest.mark.parametrize("of_inputs", [False, True])
@pytest.mark.parametrize("kernel", [(), (3, 2)])
@pytest.mark.parametrize("root", ["", "model.diffusion_model."])
def test_dora_rescales_the_base_with_the_update(
    write_file, write_base, product, rng, of_inputs, kernel, root
):
    B, A, want = product(kernel=kernel)
    path, weights = write_base({"down_blocks.0.to_q": (6, 5, *kernel), "mid.0.k": (4, 4)}, root)
    W0 = weights["down_blocks.0.to_q"]
    shape = (1, 5) if of_inputs else (6, 1)
    m = rng.uniform(1, 2, shape + (1,) * len(kernel)).astype("f4")
    for name, module in (
        ("lora_unet_down_blocks_0_to_q", "unet.down_blocks.0.to_q"),
        ("diffusion_model.down_blocks.0.to_q", "down_blocks.0.to_q"),
    ):
        tensors = {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B}
        tensors |= {f"{name}.alpha": np.array(6, "f4"), f"{name}.dora_scale": m}
        file = write_file(tensors)
        (update,) = updates(file, base=path).values()
        axes = (0, *range(2, W0.ndim)) if of_inputs else tuple(range(1, W0.ndim))
        W = rescaled(W0 + 2 * want.reshape(W0.shape), m.astype(float), axes)
        close(update, (W - W0).reshape(6, -1))
        assert (update.name, update.method) == (module, "dora")
        assert isinstance(update, DenseUpdate)
        (alone,) = updates(file, direction_only=True).values()
        close(alone, 2 * want)
        assert isinstance(alone, LowRankUpdate)
        with pytest.raises(CheckpointError, match=r"has dora_scale.*--base DIR.*--direction-only"):
            updates(file)


def test_a_layer_of_dora_that_could_be_two_of_the_base_is_skipped(write_file, write_base, product):
    B, A, _ = product()
    path, _ = write_base({"a.b_c.q": (6, 5), "a_b.c.q": (6, 5), "v": (6, 5), "w": (6, 5)})
    tensors = {}
    for name in ("lora_unet_a_b_c_q", "lora_unet_v", "lora_unet_none"):
        tensors |= {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B}
        tensors[f"{name}.dora_scale"] = np.ones((6, 1), "f4")
    tensors["lora_unet_w.lora_down.weight"], tensors["lora_unet_w.lora_up.weight"] = A, B
    tensors["lora_unet_w.dora_scale"] = np.ones((7, 1), "f4")
    file = write_file(tensors)
    words = reasons(file, base=path)
    assert "could be a.b_c.q.weight or a_b.c.q.weight of the base" in words["unet.a_b_c_q"]
    assert "its weight is not in the base" in words["unet.none"]
    assert "(7, 1); expected (6,)" in words["unet.w"]
    assert ("unet.v", "") in scan_parts(file, base=path)
    # With dots, the name itself tells.
    dots = {name.replace("lora_unet_a_b_c_q", "a.b_c.q"): x for name, x in tensors.items()}
    assert "a.b_c.q" not in reasons(write_file(dots), base=path)


def test_pairs_under_two_kinds_of_names_are_all_read_and_a_lone_factor_is_named(
    write_file, product
):
    """ComfyUI's files have lora_A beside whole differences; mlx's names among kohya's are not."""
    B, A, want = product()
    tensors = {"a.lora_A.weight": A, "a.lora_B.weight": B, "patch.diff": np.ones((4, 5), "f4")}
    found = scan_parts(write_file(tensors | {"q.lora_a": A, "norm.weight": A[0]}))
    close(found["a", ""], want)
    assert found["patch", ""].shape == (4, 5)
    assert "q.lora_a: a factor under a name" in found["q.lora_a", ""].reason
    assert isinstance(found["norm.weight", ""], Other)  # negative control
