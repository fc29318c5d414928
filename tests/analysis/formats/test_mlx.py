"""mlx-lm's adapters, against ΔW written out by hand and against what mlx-lm itself fuses."""

import json

import numpy as np
import pytest
from entries import close, reasons, scan, scan_parts, updates
from safetensors.numpy import save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import Options
from analysis.update import LowRankUpdate, Other

RANK, SCALE = 4, 20.0
PARAMETERS = {"rank": RANK, "scale": SCALE, "dropout": 0.0}


@pytest.fixture
def write_mlx(tmp_path):
    """Write tensors and a config as mlx-lm would; returns the directory."""

    def write(tensors, name="adapters", file="adapters.safetensors", **config):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": PARAMETERS} | config
        (directory / "adapter_config.json").write_text(json.dumps(config))
        if file.endswith(".npz"):
            np.savez(directory / file, **tensors)
        else:
            save_file(tensors, directory / file)
        return directory

    return write


@pytest.fixture
def linear(rng):
    """The tensors of one layer, and ΔW."""

    def tensors(module="model.layers.0.q_proj", d_in=16, d_out=24, r=RANK, scale=SCALE):
        a, b = rng.standard_normal((d_in, r)).astype("f4"), rng.standard_normal((r, d_out))
        b = b.astype("f4")
        return {f"{module}.lora_a": a, f"{module}.lora_b": b}, scale * (
            a.astype(float) @ b.astype(float)
        ).T

    return tensors


@pytest.mark.parametrize("file", ["adapters.safetensors", "adapters.npz"])
@pytest.mark.parametrize("d_out", [24, 16])
def test_mlx_is_scale_times_the_transposed_product(write_mlx, linear, file, d_out):
    """A square layer too: the format decides the orientation, not the shapes."""
    tensors, want = linear(d_out=d_out)
    path = write_mlx(tensors, file=file)
    for place in (path, path / file):
        (update,) = checkpoint.read(place)
        close(update, want)
        assert (update.name, update.method) == ("model.layers.0.q_proj", "lora")
        assert update.B.shape == (d_out, RANK)
    (update,) = checkpoint.read(path, base=path)  # W0 is not needed
    close(update, want)
    (update,) = checkpoint.read(path, options=Options(scale=0.5))  # the config gives the scale
    close(update, want)


def test_every_expert_of_a_stack_is_a_part(write_mlx, rng):
    """(experts, r, d_in), or (experts · r, d_in) of early versions."""
    a, b = rng.standard_normal((3, RANK, 16)), rng.standard_normal((3, 24, RANK))
    for stored in (a, a.reshape(-1, 16)):
        found = scan_parts(write_mlx({"mlp.up.lora_a": stored, "mlp.up.lora_b": b}))
        assert list(found) == [("mlp.up", f"expert{i}") for i in range(3)]
        for i in range(3):
            close(found["mlp.up", f"expert{i}"], SCALE * b[i] @ a[i])
    wrong = {"mlp.up.lora_a": a[:2], "mlp.up.lora_b": b}
    assert (
        "expected (experts, d_out, r) and (experts, r, d_in)" in reasons(write_mlx(wrong))["mlp.up"]
    )


def test_the_update_of_an_embedding_has_one_column_per_entry(write_mlx, linear):
    tensors, want = linear("model.embed_tokens", d_in=30, d_out=16)
    (update,) = checkpoint.read(write_mlx(tensors))
    assert update.shape == (16, 30)
    close(update, want)


def test_mlx_without_a_config_needs_a_scale(write_file, linear):
    tensors, want = linear()
    path = write_file(tensors, "my.safetensors")
    with pytest.raises(
        CheckpointError, match=r"my\.safetensors: lora_a and lora_b of mlx-lm.*--scale"
    ):
        list(checkpoint.scan(path))
    (update,) = checkpoint.read(path, options=Options(scale=SCALE))
    close(update, want)


def test_mlx_files_of_single_steps(write_mlx, linear):
    tensors, want = linear()
    path = write_mlx(tensors)
    later, _ = linear()
    save_file(later, path / "0000100_adapters.safetensors")
    save_file(later, path / "0000200_adapters.safetensors")
    found = scan(path)
    close(found["model.layers.0.q_proj"], want)
    assert isinstance(found["0000100_adapters.safetensors"], Other)
    (update,) = checkpoint.read(path / "0000200_adapters.safetensors")
    assert update.scale == SCALE
    assert not np.allclose(update.dense(), want)
    (path / "adapters.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights; expected.*0000200_adapters"):
        list(checkpoint.scan(path))


def test_one_file_of_several_can_be_paired_by_patterns(write_mlx, linear):
    """The file that stands for the directory, though another lies next to it."""
    tensors, want = linear(scale=1)
    path = write_mlx(tensors)
    save_file(linear()[0], path / "0000100_adapters.safetensors")
    turned = (r"(.*)\.lora_b", r"(.*)\.lora_a")  # A, B of the transposed product
    (update,) = checkpoint.read(path / "adapters.safetensors", options=Options(factors=turned))
    np.testing.assert_allclose(update.dense().T, want, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"fine_tune_type": "full"}, "fine_tune_type is 'full'.*mlx_lm.fuse"),
        ({"lora_parameters": None}, "lora_parameters is None.*--scale X"),
        ({"lora_parameters": {"rank": 4}}, "scale is None; expected a number"),
        ({"lora_parameters": {"rank": "x", "scale": 1}}, "rank is 'x'; expected a number"),
        ({"fine_tune_type": "dora"}, "is DoRA.*--base DIR.*--direction-only"),
    ],
)
def test_a_config_without_a_scale_is_refused(write_mlx, linear, config, words):
    with pytest.raises(CheckpointError, match=words):
        list(checkpoint.scan(write_mlx(linear()[0], **config)))


def test_an_early_config_with_alpha_is_ambiguous(write_mlx, linear):
    tensors, want = linear(scale=20)
    path = write_mlx(tensors)
    old = {"lora_layers": 16, "lora_parameters": {"rank": 4, "alpha": 8, "scale": 10, "dropout": 0}}
    (path / "adapter_config.json").write_text(json.dumps(old))
    with pytest.raises(CheckpointError, match=r"multiplied \(20\).*without alpha \(10\)"):
        list(checkpoint.scan(path))
    (update,) = checkpoint.read(path, options=Options(scale=20))
    close(update, want)
    # Later versions do not read alpha, and name the layers otherwise.
    (path / "adapter_config.json").write_text(json.dumps(old | {"num_layers": 16}))
    (update,) = checkpoint.read(path)
    close(update, want / 2)


def test_factors_the_other_way_round_are_told(write_file, rng):
    for shape_a, shape_b in (((4, 16), (24, 4)), ((4, 16), (16, 4))):
        tensors = {
            "q.lora_a": rng.standard_normal(shape_a),
            "q.lora_b": rng.standard_normal(shape_b),
        }
        words = reasons(write_file(tensors), scale=1.0)["q"]
        assert "the other way round; pass --factors '(.*)\\.lora_a'" in words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q.lora_b": None}, "has no lora_b; expected both factors"),
        ({"q.lora_a": np.ones((16, 3), "f4")}, "inner ranks differ"),
        ({"q.lora_a": np.ones((2, 16, 4), "f4")}, "expected matrices"),
        ({"q.lora_a": np.ones((16, 5), "f4"), "q.lora_b": np.ones((5, 8), "f4")}, "expected r = 4"),
    ],
)
def test_broken_layers_are_skipped(write_mlx, linear, change, words):
    tensors = linear("q")[0] | change
    path = write_mlx({name: x for name, x in tensors.items() if x is not None} | linear("v")[0])
    assert words in reasons(path)["q"]
    assert isinstance(scan(path)["v"], LowRankUpdate)


def test_dora_of_mlx_is_rescaled_by_rows(write_mlx, linear, rng, tmp_path):
    tensors, lin = linear("model.layers.0.q")
    more, emb = linear("model.embed_tokens", d_in=30, d_out=16)
    W0 = {
        "model.layers.0.q": rng.standard_normal((24, 16)),
        "model.embed_tokens": rng.standard_normal((30, 16)),
    }
    m = {name: rng.standard_normal(len(W)) + 3 for name, W in W0.items()}
    tensors |= more | {f"{name}.m": x for name, x in m.items()}
    (tmp_path / "base").mkdir()
    save_file({f"{name}.weight": W for name, W in W0.items()}, tmp_path / "base/model.safetensors")
    path = write_mlx(tensors, fine_tune_type="dora")
    found = updates(path, base=tmp_path / "base")
    for name, direction in (("model.layers.0.q", lin), ("model.embed_tokens", emb.T)):
        V = W0[name] + direction
        want = m[name][:, None] * V / np.linalg.norm(V, axis=1, keepdims=True) - W0[name]
        close(found[name, ""], want.T if "embed" in name else want)
    close(updates(path, direction_only=True)["model.embed_tokens", ""], emb)


def test_a_directory_of_peft_is_not_of_mlx(write_adapter, lora_tensors, write_mlx, linear):
    (update,) = checkpoint.read(write_adapter(lora_tensors("q"), num_layers=4, lora_layers=1))
    assert update.scale == 2
    path = write_mlx(linear()[0])
    (path / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match="--scale X"):
        list(checkpoint.scan(path))
    (path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError):
        list(checkpoint.scan(path))


def test_mlx_lm_fuses_the_same(tmp_path):
    """The layers of mlx-lm itself, with their own fuse()."""
    mx = pytest.importorskip("mlx.core")
    tuner = pytest.importorskip("mlx_lm.tuner.lora")
    dora = pytest.importorskip("mlx_lm.tuner.dora")
    switch = pytest.importorskip("mlx_lm.models.switch_layers")
    import mlx.nn as nn

    mx.random.seed(0)
    layers = {
        "layers.0.q": tuner.LoRALinear.from_base(nn.Linear(16, 24), r=4, scale=7.5),
        "embed_tokens": tuner.LoRAEmbedding.from_base(nn.Embedding(30, 16), r=4, scale=7.5),
        "layers.0.up": tuner.LoRASwitchLinear.from_base(
            switch.SwitchLinear(16, 12, 3, bias=False), r=4, scale=7.5
        ),
    }
    of_dora = {
        "layers.0.q": dora.DoRALinear.from_base(nn.Linear(16, 16), r=4, scale=7.5),
        "embed_tokens": dora.DoRAEmbedding.from_base(nn.Embedding(30, 16), r=4, scale=7.5),
    }
    for kind, chosen in (("lora", layers), ("dora", of_dora)):
        path = tmp_path / kind
        want = save_by_mlx(path, kind, chosen)
        for place in (path, path / "by_itself.npz"):
            found = updates(place, base=path / "base")
            assert {name for name, _ in found} == set(chosen)
            for (name, part), update in found.items():
                W = want[name][int(part.removeprefix("expert"))] if part else want[name]
                W = W.T if name == "embed_tokens" else W
                np.testing.assert_allclose(update.dense(), W, rtol=0, atol=1e-6 * np.abs(W).max())


def save_by_mlx(path, kind, layers):
    """Save layers whose factors are off their start, and their base; ΔW by their own fuse()."""
    import mlx.core as mx

    tensors, base, want = {}, {}, {}
    for name, layer in layers.items():
        W0 = np.array(layer[next(key for key in ("linear", "embedding") if key in layer)].weight)
        for part in ("lora_a", "lora_b", "m"):
            if part in layer:
                layer[part] = mx.random.normal(layer[part].shape) + (3 if part == "m" else 0)
                tensors[f"{name}.{part}"] = layer[part]
        base[f"{name}.weight"] = W0
        want[name] = np.array(layer.fuse().weight).astype(float) - W0.astype(float)
    (path / "base").mkdir(parents=True)
    save_file(base, path / "base/model.safetensors")
    config = {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": {"rank": 4, "scale": 7.5}}
    (path / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(path / "adapters.safetensors"), tensors)
    mx.savez(str(path / "by_itself.npz"), **tensors)
    return want
