"""LitGPT's files against its own rule, written out: a grouped convolution with unequal groups."""

import json

import numpy as np
import pytest
import torch
from entries import close, reasons, scan_parts

from analysis import CheckpointError, checkpoint
from analysis.formats import litgpt, stated
from analysis.spectrum import main

WIDTH, HEADS, GROUPS, SIZE, R, ALPHA = 16, 4, 2, 4, 3, 12
ROWS = {"query": HEADS * SIZE, "key": GROUPS * SIZE, "value": GROUPS * SIZE}


@pytest.fixture
def write_litgpt(tmp_path, rng):
    """Write a directory of `litgpt finetune lora`; ΔW / scale by (module, block)."""

    def write(enabled, fused="qkv", model=True, trained=True, **settings):
        state, wants = {}, {}
        for i in range(2):
            module = f"transformer.h.{i}.attn.{fused}"
            A = [rng.standard_normal((R, WIDTH)).astype("f4") for _ in enabled]
            B = [rng.standard_normal((ROWS[name], R)).astype("f4") for name in enabled]
            state[f"{module}.lora_A"], state[f"{module}.lora_B"] = np.vstack(A), np.vstack(B)
            for name, b, a in zip(enabled, B, A, strict=True):
                wants[module, name] = b.astype(float) @ a.astype(float)
            B, A = rng.standard_normal((24, R)), rng.standard_normal((R, WIDTH))
            state |= {f"transformer.h.{i}.mlp.fc_1.lora_{f}": x for f, x in (("A", A), ("B", B))}
            wants[f"transformer.h.{i}.mlp.fc_1", ""] = B @ A
        state = {name: torch.from_numpy(x) for name, x in state.items()}
        torch.save({"model": state}, tmp_path / "lit_model.pth.lora")
        if model:
            (tmp_path / "model_config.yaml").write_text(
                f"bias: false\nhf_config:\n  name: x\n  n_head: 99\nn_embd: {WIDTH}\n"
                f"n_head: {HEADS}\nn_query_groups: {GROUPS}\nhead_size: null\nname: 'tiny'\n"
            )
        if trained:
            values = {"lora_r": R, "lora_alpha": ALPHA}
            values |= {f"lora_{name}": name in enabled for name in ROWS} | settings
            lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
            text = "\n".join(["checkpoint_dir: x", "data:", "  lora_r: 9", *lines])
            (tmp_path / "hyperparameters.yaml").write_text(text)
        return tmp_path, wants

    return write


@pytest.mark.parametrize(
    "enabled",
    [
        ["query", "value"],
        ["query", "key"],
        ["key", "value"],
        ["query", "key", "value"],
        ["query"],
        ["value"],
    ],
)
@pytest.mark.parametrize("fused", ["qkv", "attn"])
def test_blocks_have_the_rows_and_the_scale_of_the_configs(write_litgpt, enabled, fused):
    path, wants = write_litgpt(enabled, fused)
    for place in (path, path / "lit_model.pth.lora"):
        entries = scan_parts(place)
        assert entries.keys() == wants.keys()
        for key, want in wants.items():
            close(entries[key], ALPHA / R * want)
            assert (entries[key].method, entries[key].of_rows) == ("litgpt", bool(key[1]))


def test_equal_blocks_are_lit_gpts_grouped_convolution(write_litgpt):
    path, wants = write_litgpt(["key", "value"])
    state = torch.load(path / "lit_model.pth.lora")["model"]
    module = "transformer.h.0.attn.qkv"
    A, B = (state[f"{module}.lora_{f}"].double() for f in "AB")
    both = torch.nn.functional.conv1d(A[None], B[..., None], groups=2)[0].numpy()
    np.testing.assert_allclose(
        np.vstack([wants[module, "key"], wants[module, "value"]]), both, rtol=0, atol=1e-12
    )


def test_without_the_models_config_the_rows_are_asked_for(write_litgpt, capfd):
    path, wants = write_litgpt(["query", "value"], model=False)
    assert main([str(path)]) == 1
    assert "--blocks N,N, with a sum of 24" in capfd.readouterr().err
    entries = scan_parts(path, blocks=(16, 8))
    close(
        entries["transformer.h.1.attn.qkv", "block0"],
        4 * wants["transformer.h.1.attn.qkv", "query"],
    )
    close(
        entries["transformer.h.1.attn.qkv", "block1"],
        4 * wants["transformer.h.1.attn.qkv", "value"],
    )
    close(entries["transformer.h.1.mlp.fc_1", ""], 4 * wants["transformer.h.1.mlp.fc_1", ""])
    (path / "lit_config.json").write_text(
        json.dumps({"n_head": HEADS, "n_embd": WIDTH, "n_query_groups": GROUPS})
    )
    close(
        scan_parts(path)["transformer.h.0.attn.qkv", "value"],
        4 * wants["transformer.h.0.attn.qkv", "value"],
    )


def test_without_the_settings_the_scale_is_said_to_be_one(write_litgpt):
    path, wants = write_litgpt(["query", "value"], trained=False)
    entries = scan_parts(path)
    assert entries["lit_model.pth.lora", ""].what == stated.UNSCALED
    module = "transformer.h.0.attn.qkv"  # a value or a key: the rows do not tell
    close(entries[module, "block0"], wants[module, "query"])
    close(entries[module, "block1"], wants[module, "value"])
    close(scan_parts(path, scale=2.0)[module, "block0"], 2 * wants[module, "query"])


def test_a_flat_file_of_query_and_value_is_refused_or_cut_as_told(tmp_path, rng, capfd):
    B, A = rng.standard_normal((80, 4)).astype("f4"), rng.standard_normal((8, 64)).astype("f4")
    state = {f"transformer.h.0.attn.qkv.lora_{f}": x for f, x in (("A", A), ("B", B))}
    torch.save({name: torch.from_numpy(x) for name, x in state.items()}, tmp_path / "flat.pth")
    assert main([str(tmp_path / "flat.pth")]) == 2
    assert "--blocks" in capfd.readouterr().err
    entries = scan_parts(tmp_path / "flat.pth", blocks=(64, 16))
    close(entries["transformer.h.0.attn.qkv", "block0"], B[:64].astype(float) @ A[:4])
    close(entries["transformer.h.0.attn.qkv", "block1"], B[64:].astype(float) @ A[4:])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora_r": 4}, "has r = 3; expected 4 by"),
        ({"lora_value": False}, "expected 16 rows for a query and 8 for a key or a value"),
        ({"lora_key": True}, "expected 16 rows for a query"),
    ],
)
def test_settings_that_do_not_fit_the_file_are_told(write_litgpt, settings, words):
    path, _ = write_litgpt(["query", "value"], **settings)
    assert words in reasons(path)["transformer.h.0.attn.qkv"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("model_config.yaml", "n_head: 0", "n_head is 0; expected at least 1"),
        ("model_config.yaml", "n_embd: 16", "n_head is None; expected a number"),
        ("model_config.yaml", "x" * 2_000_000, "is over 1000000 bytes long"),
        ("model_config.yaml", b"\xff", "cannot be read"),
        ("hyperparameters.yaml", "lora_r: .inf", "lora_r is '.inf'; expected a number"),
        ("hyperparameters.yaml", "lora_r: 3\nlora_alpha: x", "lora_alpha is 'x'"),
    ],
)
def test_a_broken_config_is_refused(write_litgpt, name, text, words):
    path, _ = write_litgpt(["query"])
    (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=rf"{name}: {words}"):
        scan_parts(path)


def test_the_configs_are_inputs_of_a_result(write_litgpt):
    path, _ = write_litgpt(["query"])
    names = ["hyperparameters.yaml", "lit_model.pth.lora", "model_config.yaml"]
    assert [file.name for file in checkpoint.inputs(path)] == names
    assert sorted(file.name for file in checkpoint.inputs(path / "lit_model.pth.lora")) == names


def test_enabled_blocks_by_their_rows():
    assert litgpt.enabled_blocks((16, 16), 2, 32, {}) == [("block0", 16), ("block1", 16)]
    assert litgpt.enabled_blocks((16, 8), 3, 32, {}) == [
        ("query", 16),
        ("key", 8),
        ("value", 8),
    ]
    assert litgpt.enabled_blocks((16, 8), 2, 25, {}) == []


def test_a_real_model_of_litgpt(tmp_path):
    """LitGPT's own ΔW, where it is installed."""
    pytest.importorskip("litgpt")
    from litgpt.lora import GPT, Config, lora_filter
    from litgpt.utils import save_config

    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_query_groups": 2, "block_size": 16}
    sizes |= {"padded_vocab_size": 40, "intermediate_size": 48, "mlp_class_name": "LLaMAMLP"}
    torch.manual_seed(0)
    lora = {"lora_r": 3, "lora_alpha": 12, "lora_query": True, "lora_value": True}
    model = GPT(Config(name="tiny", **lora, **sizes))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    state = {name: x for name, x in model.state_dict().items() if lora_filter(name, x)}
    torch.save({"model": state}, tmp_path / "lit_model.pth.lora")
    save_config(Config(name="tiny", **sizes), tmp_path)
    text = "\n".join(f"{key}: {str(value).lower()}" for key, value in lora.items())
    (tmp_path / "hyperparameters.yaml").write_text(text)
    entries = scan_parts(tmp_path)
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            want = layer.get_lora_AB().detach().double().numpy()
            close(entries[name, "query"], want[:32])
            close(entries[name, "value"], want[-16:])
