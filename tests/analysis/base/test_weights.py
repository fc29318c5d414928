"""How W0 is found for an update: names, turned layers, and what is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import CheckpointError, checkpoint
from analysis.base import weights as base_weights
from analysis.update import DenseUpdate, LowRankUpdate

# How W0 is found


@pytest.fixture
def write_base(tmp_path):
    def write(tensors, **config):
        path = tmp_path / "base"
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(config))
        save_file(tensors, path / "model.safetensors")
        return path

    return write


def named(name, shape, r=2, **facts):
    return LowRankUpdate(name, np.ones((shape[0], r)), np.ones((r, shape[1])), **facts)


@pytest.mark.parametrize("prefix", ["", "model.", "base.model."])
def test_names_meet_after_a_prefix(write_base, rng, prefix):
    weights = {f"layers.{i}.q.weight": rng.standard_normal((4, 3)).astype("f4") for i in range(3)}
    base = base_weights.open_base(
        write_base({prefix + name: W for name, W in weights.items()}),
        (f"model.layers.{i}.q" for i in range(3)),
    )
    for i in range(3):
        got = base.weight(named(f"model.layers.{i}.q", (4, 3)))
        np.testing.assert_array_equal(got, weights[f"layers.{i}.q.weight"])
        assert got.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_weights_are_read_exactly(write_base, rng, dtype):
    W = rng.standard_normal((4, 3)).astype(dtype)
    base = base_weights.open_base(write_base({"a.q.weight": W}), ["a.q"])
    got = base.weight(named("a.q", (4, 3)))
    assert got.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_array_equal(got.astype(float), W.astype(float))


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_its_embedding(write_base, rng, tied):
    W = rng.standard_normal((9, 3)).astype("f4")
    tensors = {"model.embed_tokens.weight": W, "model.layers.0.q.weight": W}
    path = write_base(tensors, tie_word_embeddings=tied)
    base = base_weights.open_base(path, ["model.layers.0.q", "lm_head"])
    if tied:
        np.testing.assert_array_equal(base.weight(named("lm_head", (9, 3))), W)
    else:
        with pytest.raises(CheckpointError, match="lm_head: its weight is not in the base"):
            base.weight(named("lm_head", (9, 3)))


def test_only_the_weight_that_is_asked_for_is_read(write_base, rng):
    base = base_weights.open_base(
        write_base({f"a.{i}.q.weight": np.ones((4, 3), "f4") for i in range(3)}),
        [f"a.{i}.q" for i in range(3)],
    )
    read = []
    watched = {
        name: type(W)(W.shape, W.dtype, lambda name=name, W=W: read.append(name) or W.load())
        for name, W in base.weights.items()
    }
    base_weights.Base(base.file, watched, False).weight(named("a.1.q", (4, 3)))
    assert read == ["a.1.q"]


def test_convolutions_are_flattened_and_embeddings_turned(write_base, rng):
    W = {
        "a.conv.weight": rng.standard_normal((8, 3, 2, 2)).astype("f4"),
        "a.emb.weight": rng.standard_normal((11, 6)).astype("f4"),
        "a.wpe.weight": rng.standard_normal((6, 6)).astype("f4"),
    }
    base = base_weights.open_base(write_base(W), ["a.conv", "a.emb", "a.wpe"])
    for name, shape, want in [
        ("a.conv", (8, 12), W["a.conv.weight"].reshape(8, 12)),
        ("a.emb", (6, 11), W["a.emb.weight"].T),
        ("a.wpe", (6, 6), W["a.wpe.weight"].T),
    ]:
        np.testing.assert_array_equal(base.weight(named(name, shape)), want)


def test_square_conv1d_is_turned_as_its_update_is(write_base, rng):
    W = rng.standard_normal((6, 6)).astype("f4")
    name = "h.0.c_proj"
    base = base_weights.open_base(write_base({f"{name}.weight": W}, model_type="gpt2"), [name])
    stored = DenseUpdate(name, (6, 6), lambda: W, method="full", source="x/model.safetensors")
    turned = DenseUpdate(name, (6, 6), lambda: W, method="full", source="x/delta.safetensors")
    np.testing.assert_array_equal(base.weight(named(name, (6, 6), method="lora")), W.T)
    np.testing.assert_array_equal(base.weight(turned), W.T)
    np.testing.assert_array_equal(base.weight(stored), W)  # as both models store it
    linear = base_weights.open_base(write_base({f"{name}.weight": W}, model_type="llama"), [name])
    np.testing.assert_array_equal(linear.weight(named(name, (6, 6))), W)


def test_an_adapters_settings_that_hide_its_weight_are_refused(
    write_base, write_adapter, lora_tensors
):
    path = write_base({"h.0.q.weight": np.ones((6, 6), "f4")})
    for settings, words in [
        ({"fan_in_fan_out": True}, "h.0.q: cannot tell Conv1D from Linear: W0 is square"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication is set in .*used as several"),
    ]:
        adapter = write_adapter(lora_tensors("h.0.q", d_out=6, d_in=6), **settings)
        (update,) = checkpoint.read(adapter)
        with pytest.raises(CheckpointError, match=words):
            base_weights.open_base(path, ["h.0.q"]).weight(update)


def test_an_expert_is_taken_out_of_its_stack(tmp_path, rng):
    W0 = rng.standard_normal((3, 5, 4)).astype("f4")
    name, paths = "layers.0.experts.gate", []
    for label, W in (("base", W0), ("tuned", W0 + 1)):
        paths.append(tmp_path / label)
        paths[-1].mkdir()
        save_file({name: W, "layers.0.q.weight": W[0]}, paths[-1] / "model.safetensors")
    entries = [u for u in checkpoint.read(paths[1], base=paths[0]) if u.name == name]
    base = base_weights.open_base(paths[0], [name, "layers.0.q"])
    assert [u.part for u in entries] == ["expert0", "expert1", "expert2"]
    for i, update in enumerate(entries):
        np.testing.assert_array_equal(base.weight(update), W0[i])
    beyond = DenseUpdate(name, (5, 4), lambda: W0[0], part="expert7", method="full")
    with pytest.raises(CheckpointError, match=r"gate: is \(3, 5, 4\) in the base.*expert7"):
        base.weight(beyond)


def test_what_has_no_weight_to_stand_beside_is_refused_by_name(write_base):
    W = {
        "h.0.q.weight": np.ones((12, 6), "f4"),
        "h.0.k.weight": np.ones((6, 6), "f4"),
        "h.0.k.weight_scale": np.ones((1, 1), "f4"),
        "h.0.v.weight": np.ones((6, 6), np.int8),
        "h.0.n.weight": np.array([[1, np.nan]], "f4"),
        "h.0.i.weight": np.array([[1, -np.inf]], "f4"),
    }
    names = [f"h.0.{x}" for x in "qkvni"]
    base = base_weights.open_base(write_base(W), names)
    cases = [
        (named("h.0.x", (6, 6)), "h.0.x: its weight is not in the base; expected h.0.x.weight"),
        (named("h.0.q", (4, 6)), r"h.0.q: is \(12, 6\) in the base; expected \(4, 6\)"),
        (
            named("h.0.q", (4, 6), part="slice0", source="a.bin", of_rows=True),
            r"h.0.q: is \(12, 6\) in the base, and slice0 of a.bin is \(4, 6\), a block of rows;"
            " expected an update of the whole layer",
        ),
        (named("h.0.k", (6, 6)), r"h.0.k: its weight in the base is scaled .*\(quantised\)"),
        (named("h.0.v", (6, 6)), "h.0.v: .*stored as I8; expected one of"),
        (named("h.0.n", (1, 2)), "h.0.n: W0 holds NaN or Inf"),
        (named("h.0.i", (1, 2)), "h.0.i: W0 holds NaN or Inf"),
    ]
    for update, words in cases:
        with pytest.raises(CheckpointError, match=words) as raised:
            base.weight(update)
        assert str(base.file) in str(raised.value)


def test_another_base_is_refused(write_base, tmp_path):
    path = write_base({"encoder.q.weight": np.ones((6, 6), "f4")})
    with pytest.raises(CheckpointError, match=r"has no weight of h.0.k, .*; expected the base"):
        base_weights.open_base(path, ["h.0.k", "h.1.k"])
    with pytest.raises(CheckpointError, match="no such file or directory"):
        base_weights.open_base(tmp_path / "absent", ["h.0.k"])
    path = write_base({"h.0.k.weight": np.ones((6, 6))}, quantization_config={"quant_method": "q"})
    with pytest.raises(CheckpointError, match=r"weights are quantised \(q\)"):
        base_weights.open_base(path, ["h.0.k"])
