"""Whole models minus their base: matrices, names, noise, and what cannot be compared."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import Options
from analysis.numerics import decompose
from analysis.numerics.denoise import noise_size
from analysis.numerics.floor import noise_floor
from analysis.spectrum import analyse, main
from analysis.update import DenseUpdate, Other, Skipped

MODULES = ("model.layers.0.q", "model.layers.1.q", "lm_head")


@pytest.fixture
def weights(rng):
    shapes = {f"{module}.weight": (9, 7) for module in MODULES}
    shapes |= {"model.norm.weight": (7,), "model.embed.weight": (11, 7)}
    return {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}


@pytest.fixture
def write(tmp_path):
    """Write a model directory, by default one safetensors file; in `shards` files if given."""

    def write(name, tensors, shards=1, suffix="safetensors", **config):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        names, index = sorted(tensors), {}
        for i in range(shards):
            file = f"{stem}-{i}.{suffix}" if shards > 1 else f"{stem}.{suffix}"
            part = {name: tensors[name] for name in names[i::shards]}
            save(part, path / file)
            index |= dict.fromkeys(part, file)
        if shards > 1:
            text = json.dumps({"weight_map": index})
            (path / f"{stem}.{suffix}.index.json").write_text(text)
        return path

    return write


def save(tensors, file):
    if file.suffix == ".safetensors":
        save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, file)
    else:
        import torch

        torch.save({name: torch.from_numpy(x) for name, x in tensors.items()}, file)


def moved(weights, rng, by=1e-2):
    return {n: (w + by * rng.standard_normal(w.shape)).astype(w.dtype) for n, w in weights.items()}


def scan(tuned, base, **options):
    return {e.name: e for e in checkpoint.scan(tuned, Options(base=base, **options))}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [(1, 1), (1, 3), (3, 2)])
def test_a_fine_tune_is_its_weights_minus_the_base(write, weights, rng, suffix, shards):
    tuned = moved(weights, rng)
    paths = [
        write("base", weights, shards[0], suffix),
        write("tuned", tuned, shards[1], suffix),
    ]
    entries = scan(paths[1], paths[0])
    assert {n for n, e in entries.items() if isinstance(e, DenseUpdate)} == {
        *MODULES,
        "model.embed",
    }
    for module in MODULES:
        name = f"{module}.weight"
        want = tuned[name].astype(float) - weights[name]
        update = entries[module]
        np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-7 * np.abs(want).max())
        # What the training started from is what is stored: only W_tuned was rounded.
        assert decompose.spectrum(update).floor == noise_floor(tuned[name])
        assert (update.method, update.shape) == ("full", (9, 7))
    norm = np.linalg.norm(tuned["model.norm.weight"] - weights["model.norm.weight"])
    assert entries["model.norm.weight"].what == f"change of norm {norm:.3g}"


DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of_base", ["same", "float32"])
def test_every_floating_dtype_works(write, rng, dtype, of_base):
    W0 = rng.standard_normal((30, 20)).astype(DTYPES[dtype if of_base == "same" else of_base])
    W = (W0.astype(float) + 0.3 * rng.standard_normal((30, 20))).astype(DTYPES[dtype])
    base, tuned = write("base", {"h.0.q.weight": W0}), write("tuned", {"h.0.q.weight": W})
    update = scan(tuned, base)["h.0.q"]
    want = W.astype(float) - W0.astype(float)
    np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-6 * np.abs(want).max())
    assert update.load().dtype == (np.float64 if dtype == "float64" else np.float32)
    assert decompose.spectrum(update).floor == noise_floor(W)
    assert decompose.spectrum(update).noise == noise_size(W)
    both = scan(tuned, base, base_rounded=True)["h.0.q"]
    assert decompose.spectrum(both).floor == noise_floor(W, W0)
    assert decompose.spectrum(both).noise == noise_size(W, W0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_narrow_dtypes_in_a_bin_are_those_in_safetensors(write, rng, dtype):
    import torch

    W = {"h.0.q.weight": rng.standard_normal((6, 5)).astype(DTYPES[dtype])}
    plain, base = write("plain", W), write("base", {"h.0.q.weight": np.zeros((6, 5), "f4")})
    tensor = torch.from_numpy(W["h.0.q.weight"].astype("f4")).to(getattr(torch, dtype))
    torch.save({"h.0.q.weight": tensor}, base.parent / "pytorch_model.bin")
    pair = [scan(p, base)["h.0.q"] for p in (plain, base.parent)]
    np.testing.assert_array_equal(pair[0].dense(), pair[1].dense())
    assert decompose.spectrum(pair[0]).floor == decompose.spectrum(pair[1]).floor


@pytest.mark.parametrize("cut", ["tuned", "base"])
def test_prefixes_are_reconciled(write, weights, rng, cut):
    tuned = moved(weights, rng)
    bare = {n.removeprefix("model."): w for n, w in (tuned if cut == "tuned" else weights).items()}
    wrapped = {
        f"base_model.model.{n}": w for n, w in (weights if cut == "tuned" else tuned).items()
    }
    base, path = (wrapped, bare) if cut == "tuned" else (bare, wrapped)
    entries = scan(write("tuned", path), write("base", base))
    updates = {n: e for n, e in entries.items() if isinstance(e, DenseUpdate)}
    # Named as the base has them; a head outside the common part meets its own name.
    assert len(updates) == 4
    assert all(f"{name}.weight" in base for name in updates)
    head = next(update for name, update in updates.items() if "lm_head" in name)
    want = tuned["lm_head.weight"].astype(float) - weights["lm_head.weight"]
    np.testing.assert_allclose(head.dense(), want, rtol=0, atol=1e-7 * np.abs(want).max())


def test_matrices_of_one_side_or_of_another_shape_are_skipped(write, weights, rng, capsys):
    tuned = moved(weights, rng)
    tuned["model.layers.1.q.weight"] = np.ones((13, 7), "f4")
    tuned["score.weight"] = tuned.pop("lm_head.weight")
    tuned["model.rotary.inv_freq"] = tuned["model.extra.bias"] = np.ones((2, 3), "f4")
    base = write("base", weights)
    entries = scan(write("tuned", tuned), base)
    reasons = {n: e.reason.split(": ", 1)[1] for n, e in entries.items() if isinstance(e, Skipped)}
    assert reasons == {
        "model.layers.1.q": "model.layers.1.q: is (13, 7), in the base (9, 7); expected equal"
        " shapes",
        "score": f"score: (9, 7) is not in the base, {base}/model.safetensors: not compared",
        "lm_head": f"lm_head: (9, 7) is in the base only, {base}/model.safetensors: not compared",
    }
    others = {name: e.what for name, e in entries.items() if isinstance(e, Other)}
    assert others["model.rotary.inv_freq"] == others["model.extra.bias"] == "not in the base"
    argv = [str(write("a", tuned)), "--base", str(base)]
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 3
    assert "score: (9, 7) is not in the base" in err
    assert main([*argv, "--strict"]) == 2
    # Negative control: vectors alone are no reason.
    del weights["model.norm.weight"]
    assert main([str(write("b", weights)), "--base", str(base), "--strict"]) == 0


@pytest.mark.parametrize("rows", [(11, 13), (13, 11), (11, 11)])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_resized_vocabulary_is_compared_in_the_rows_that_both_have(write, rng, rows, name):
    W0, W = (rng.standard_normal((n, 7)).astype("f4") for n in rows)
    entries = scan(write("tuned", {name: W, "h.0.q.weight": W}), write("base", {name: W0}))
    update = entries[name.removesuffix(".weight")]
    assert update.shape == (11, 7)
    want = W[:11].astype(float) - W0[:11]
    np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-6)
    assert decompose.spectrum(update).floor == noise_floor(W[:11])
    words = {
        (11, 13): {f"{name}[11:]": "2 new rows, which have no counterpart"},
        (13, 11): {f"{name}[11:]": "2 removed rows, which have no counterpart"},
        (11, 11): {},
    }
    assert {n: e.what for n, e in entries.items() if isinstance(e, Other)} == words[rows]


TIED = {"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    "config", [TIED, {"text_config": TIED}, {"architectures": ["GPT2LMHeadModel"]}]
)
@pytest.mark.parametrize("rows", [11, 14])
def test_an_untied_head_is_compared_with_the_embedding_it_shared(write, weights, rng, config, rows):
    tuned = moved(weights, rng)
    embedding = weights["model.embed_tokens.weight"] = weights.pop("model.embed.weight")
    tuned["model.embed_tokens.weight"] = tuned.pop("model.embed.weight")
    del weights["lm_head.weight"]
    head = tuned["lm_head.weight"] = rng.standard_normal((rows, 7)).astype("f4")
    base, path = write("base", weights, **config), write("tuned", tuned)
    entries = scan(path, base)
    np.testing.assert_allclose(entries["lm_head"].dense(), head[:11] - embedding, atol=1e-6)
    assert not any(isinstance(entry, Skipped) for entry in entries.values())
    # The other way around: a head that the training tied.
    entries = scan(base, path)
    np.testing.assert_allclose(entries["lm_head"].dense(), embedding - head[:11], atol=1e-6)
    # Negative control: a base whose config says that it is not tied, or has none.
    for name, words in (("bare", {}), ("untied", {"tie_word_embeddings": False})):
        entries = scan(path, write(name, weights, **words))
        assert "lm_head: " in entries["lm_head"].reason


def test_tied_weights_are_listed_once(write, weights, tmp_path):
    import torch

    base = write("base", weights)
    tensors = {name: torch.from_numpy(w + 1) for name, w in weights.items()}
    tensors["lm_head.weight"] = tensors["model.layers.0.q.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    entries = scan(tmp_path, base)
    ties = [e for e in entries.values() if isinstance(e, Other) and "tied" in e.what]
    assert [(e.name, e.what) for e in ties] == [
        ("lm_head.weight", "tied to model.layers.0.q.weight, listed once")
    ]
    # Where the base has only the other of the two names, that one is compared.
    del weights["model.layers.0.q.weight"]
    entries = scan(tmp_path, write("other", weights))
    assert isinstance(entries["lm_head"], DenseUpdate)


def test_masks_are_listed(write, weights):
    for name, dtype in (("model.attn.bias", "u1"), ("model.attn.mask", "?")):
        weights[name] = np.ones((1, 1, 4, 4), dtype)
    weights["model.old.attn.bias"] = np.ones((1, 1, 4, 4), "f4")
    entries = scan(write("tuned", weights), write("base", weights))
    others = {name: e.what for name, e in entries.items() if isinstance(e, Other)}
    assert others["model.attn.mask"] == "BOOL, in the base BOOL: not compared"
    assert others["model.old.attn.bias"] == "change of norm 0"
    assert not any(isinstance(e, Skipped) for e in entries.values())


def test_experts_are_parts_and_kernels_are_matrices(write, rng):
    W = {
        "model.layers.0.mlp.experts.up.weight": rng.standard_normal((3, 5, 4)).astype("f4"),
        "model.conv.weight": rng.standard_normal((6, 2, 3, 3)).astype("f4"),
    }
    base = write("base", {name: np.zeros_like(w) for name, w in W.items()})
    updates = list(checkpoint.read(write("tuned", W), base))
    found = {(u.name, u.part): u.dense() for u in updates}
    for i in range(3):
        want = W["model.layers.0.mlp.experts.up.weight"][i]
        np.testing.assert_array_equal(found["model.layers.0.mlp.experts.up", f"expert{i}"], want)
    np.testing.assert_array_equal(found["model.conv", ""], W["model.conv.weight"].reshape(6, 18))


def test_embeddings_of_encoder_and_decoder_meet_the_shared_one(write, rng):
    W0, W, V = (rng.standard_normal((11, 7)).astype("f4") for _ in range(3))
    base = write("base", {"shared.weight": W0, "encoder.block.0.q.weight": W0})
    names = ("shared.weight", "encoder.embed_tokens.weight", "encoder.block.0.q.weight")
    entries = scan(write("tuned", dict(zip(names, (W, V, W), strict=True))), base)
    assert not any(isinstance(entry, Skipped) for entry in entries.values())
    np.testing.assert_allclose(entries["shared"].dense(), W - W0, atol=1e-6)
    np.testing.assert_allclose(entries["encoder.embed_tokens"].dense(), V - W0, atol=1e-6)


@pytest.mark.parametrize("stem", ["model", "pytorch_model"])
def test_factors_in_a_file_of_a_whole_model_are_read_as_such(tmp_path, rng, stem):
    import torch

    A, B = rng.standard_normal((2, 5)), rng.standard_normal((6, 2))
    tensors = {"h.0.q.weight": np.ones((6, 5)), "h.0.q.lora_A": A, "h.0.q.lora_B": B}
    torch.save({n: torch.from_numpy(x) for n, x in tensors.items()}, tmp_path / f"{stem}.bin")
    (update,) = checkpoint.read(tmp_path, options=Options(scale=2.0))
    np.testing.assert_allclose(update.dense(), 2 * B @ A, rtol=0, atol=1e-12)


# Refused


def test_quantised_weights_are_refused(write, weights, rng):
    whole = {n: w.astype(np.int8) if "layers.0" in n else w for n, w in weights.items()}
    entries = scan(write("int8", whole), write("base", weights))
    (skip,) = (e for e in entries.values() if isinstance(e, Skipped))
    assert "model.layers.0.q: stored as I8 and F32; expected floating point" in skip.reason

    scaled = {n: w.astype(ml_dtypes.float8_e4m3fn) for n, w in weights.items()}
    scaled["model.layers.0.q.weight_scale_inv"] = np.ones((1, 1), "f4")
    entries = scan(write("float8", scaled), write("base2", weights))
    (skip,) = (e for e in entries.values() if isinstance(e, Skipped))
    assert "model.layers.0.q: is scaled by another tensor" in skip.reason

    quantised = write("four", weights, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(
        CheckpointError, match=r"config\.json: the weights are quantised \(bitsandb"
    ):
        scan(quantised, write("base3", weights))


@pytest.mark.parametrize("side", ["tuned", "base"])
@pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_inv"])
def test_scaled_float8_is_refused_on_either_side_under_any_prefix(write, weights, side, scale):
    bare = {n.removeprefix("model."): w.astype(ml_dtypes.float8_e4m3fn) for n, w in weights.items()}
    bare[f"layers.0.q.{scale}"] = np.ones((1, 1), "f4")
    base, tuned = (weights, bare) if side == "tuned" else (bare, weights)
    entries = scan(write("tuned", tuned), write("base", base))
    (skip,) = (e for e in entries.values() if isinstance(e, Skipped))
    assert "layers.0.q: is scaled by another tensor" in skip.reason


def test_where_both_are_scaled_the_scales_are_no_update(write, weights):
    weights["model.layers.0.q.weight_scale"] = np.ones((3, 2), "f4")
    entries = scan(write("tuned", weights), write("base", weights))
    assert isinstance(entries["model.layers.0.q"], Skipped)
    assert isinstance(entries["model.layers.0.q.weight_scale"], Other)


def test_packed_weights_are_refused_without_a_word_in_the_config(write, weights):
    packed = weights | {"model.layers.0.q.weight": np.ones((32, 1), "u1")}
    entries = scan(write("tuned", packed), write("base", weights))
    assert "stored as U8 and F32; expected floating" in entries["model.layers.0.q"].reason


def test_a_model_without_its_base_says_what_to_pass(write, weights):
    with pytest.raises(CheckpointError, match="is a whole model; pass the one"):
        list(checkpoint.scan(write("tuned", weights)))


def test_a_base_that_is_none_is_refused(write, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tuned = write("tuned", weights)
    (tmp_path / "empty").mkdir()
    for base, words in [
        (tmp_path / "empty", "empty: no weights here; expected model.safetensors"),
        (tmp_path / "nowhere", "nowhere: no such file or directory"),
        (write("other", {"a.b.c": np.ones((2, 2))}), "no tensor has a name of"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            scan(tuned, base)


def test_nan_in_either_model_costs_its_module_only(write, weights, rng):
    tuned = moved(weights, rng)
    tuned["model.layers.0.q.weight"][3, 2] = np.nan
    weights["model.layers.1.q.weight"][0, 0] = np.inf
    found = analyse(write("tuned", tuned), base=write("base", weights))
    assert [row["module"] for row in found.rows] == ["lm_head", "model.embed"]
    assert all("ΔW holds NaN or Inf" in skip["reason"] for skip in found.skipped)


# In use


def test_noise_alone_is_called_noise(write, rng, capsys):
    """A difference of two roundings is flat, full of rank, and nothing but an artefact."""
    W = rng.standard_normal((80, 60))
    base = write("base", {"h.0.q.weight": W.astype("f4"), "h.1.q.weight": W.astype("f4")})
    rounded = W.astype(ml_dtypes.bfloat16).astype("f4")
    spike = W + np.outer(rng.standard_normal(80), rng.standard_normal(60))
    tuned = write(
        "tuned",
        {
            "h.0.q.weight": rounded.astype(ml_dtypes.bfloat16),
            "h.1.q.weight": spike.astype(ml_dtypes.bfloat16),
        },
    )
    found = analyse(tuned, base=base)
    assert [row["above_floor"] for row in found.rows] == [0, 1]
    assert main([str(tuned), "--base", str(base)]) == 0
    out = capsys.readouterr().out
    assert "In 2 modules more than half of the values lie below the rounding noise." in out
    assert main([str(base), "--base", str(base)]) == 0
    assert "rounding noise" not in capsys.readouterr().out


def test_a_model_against_transformers_own(tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, num_hidden_layers=2, tie_word_embeddings=True, **sizes)
    model = LlamaForCausalLM(config)
    model.model.save_pretrained(tmp_path / "base")
    before = {n: p.detach().clone() for n, p in model.model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned", max_shard_size="8KB")
    assert (tmp_path / "tuned" / "model.safetensors.index.json").exists()
    found = {u.name: u for u in checkpoint.read(tmp_path / "tuned", tmp_path / "base")}
    assert len(found) == 1 + 2 * 7
    for name, parameter in model.model.named_parameters():
        if parameter.ndim == 2:
            want = (parameter.double() - before[name].double()).detach().numpy()
            update = found[name.removesuffix(".weight")]
            np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-6 * want.max())
    tied = load_file(tmp_path / "base" / "model.safetensors")
    assert "lm_head.weight" not in tied


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "ckpt", "safetensors"])
def test_a_whole_model_in_a_bare_file_is_read_with_its_base(write, weights, rng, tmp_path, suffix):
    tuned = moved(weights, rng)
    file = tmp_path / f"mine.{suffix}"
    save(tuned, file)
    base = write("base", weights)
    found = {u.name: u for u in checkpoint.read(file, base)}
    assert found.keys() == {*MODULES, "model.embed"}
    want = tuned["lm_head.weight"].astype(float) - weights["lm_head.weight"]
    np.testing.assert_allclose(found["lm_head"].dense(), want, rtol=0, atol=1e-7)
    # The base may be a file too.
    other = tmp_path / f"base.{suffix}"
    save(weights, other)
    again = {u.name: u for u in checkpoint.read(file, other)}
    np.testing.assert_array_equal(again["lm_head"].dense(), found["lm_head"].dense())
    with pytest.raises(
        CheckpointError, match=r"mine\.\w+: no pair of factors .* whole model, --base"
    ):
        checkpoint.scan(file)
    # Another model's names: no base would help there, and that is said.
    save({"blocks.0.wq.weight": tuned["lm_head.weight"]}, file)
    with pytest.raises(CheckpointError, match="no tensor has a name of"):
        list(checkpoint.scan(file, Options(base=base)))
