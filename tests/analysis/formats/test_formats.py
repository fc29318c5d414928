"""The readers against PEFT itself, against the formulas, and against broken files."""

import json
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import multilora
from analysis.update import LowRankUpdate, Other, Skipped

EPS = np.finfo(float).eps


def scan(path):
    """name → entry."""
    return {entry.name: entry for entry in checkpoint.scan(path)}


def reasons(path):
    return {e.name: e.reason for e in checkpoint.scan(path) if isinstance(e, Skipped)}


# PEFT as the oracle


def llama():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=12, **sizes))


def gpt2():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=2, n_head=2))


PEFT_CASES = {
    "plain": (llama, {"target_modules": ["q_proj", "down_proj"]}),
    "rslora": (llama, {"target_modules": ["q_proj"], "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": ["q_proj", "v_proj"],
            # layers.1 is not layers.11; the first key that matches wins; keys are expressions.
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, r"layers\.(2|3)\..*": 3, "v_proj": 6},
            "alpha_pattern": {"v_proj": 1, r"model\.layers\.2\.self_attn\.v_proj": 100},
        },
    ),
    "rslora patterns": (
        llama,
        {
            "target_modules": ["q_proj"],
            "use_rslora": True,
            "rank_pattern": {"^model.layers.1.self_attn.q_proj": 9},
            "alpha_pattern": {"1.self_attn.q_proj": 5},
        },
    ),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "gaussian": (llama, {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
    "bias": (llama, {"target_modules": ["q_proj"], "lora_bias": True}),
    "modules_to_save": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("case", PEFT_CASES)
def test_updates_are_those_of_peft(tmp_path, case, suffix):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora import LoraLayer

    model, options = PEFT_CASES[case]
    config = {"r": 4, "lora_alpha": 7} | options
    peft_model = get_peft_model(model(), LoraConfig(**config))
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    peft_model.save_pretrained(tmp_path, safe_serialization=suffix == "safetensors")

    # Loaded again: PEFT sorts patterns when it saves them, so that another may be the first match.
    peft_model = PeftModel.from_pretrained(model(), tmp_path)
    updates = {update.name: update for update in checkpoint.read(tmp_path)}
    want = {
        name.removeprefix("base_model.model."): (module.get_delta_weight("default"), module)
        for name, module in peft_model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert updates.keys() == want.keys()
    for name, (delta, module) in want.items():
        delta = delta.detach().numpy()
        delta = delta.T if module.fan_in_fan_out else delta
        np.testing.assert_allclose(
            updates[name].dense(), delta, rtol=0, atol=1e-6 * np.abs(delta).max()
        )
        assert updates[name].method == "lora"


def test_pattern_rule_is_pefts_own():
    from peft.utils.other import get_pattern_key

    from analysis.formats.rule import Rule

    modules = ["model.layers.1.q_proj", "model.layers.11.q_proj", "q_proj", "model.layers.1.v_proj"]
    patterns = [["layers.1.q_proj"], ["q_proj", "layers.1.q_proj"], ["1"], [".*1.*"], ["^q_proj"]]
    for keys in patterns:
        values = {key: i + 2 for i, key in enumerate(keys)}
        config = {"r": 1, "lora_alpha": 1, "rank_pattern": values}
        rule = Rule(config, "adapter_config.json", modules)
        for module in modules:
            assert rule.rank(module) == values.get(get_pattern_key(keys, module), 1)


# Real adapters: an independent reading of the same bytes


def raw_safetensors(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    dtypes = {"F32": np.float32, "F16": np.float16}
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            flat = np.frombuffer(data[begin:end], dtypes[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"]).astype(np.float64)
    return tensors


@pytest.mark.parametrize(
    ("name", "modules", "other"),
    [
        ("roberta-portuguese-run/checkpoint-8610", 24, 4),
        ("roberta-agnews-bias-all-run/checkpoint-1200", 36, 105),
        ("opencalm1b-rank1-fp16", 24, 0),
        ("roberta-mrpc-monteclora", 24, 4),
    ],
)
def test_real_adapters_are_scale_times_b_times_a(real_adapter, name, modules, other):
    path = real_adapter(name)
    config = json.loads((path / "adapter_config.json").read_text())
    raw = raw_safetensors(path / "adapter_model.safetensors")
    entries = scan(path)
    assert sum(isinstance(e, LowRankUpdate) for e in entries.values()) == modules
    assert sum(isinstance(e, Other) for e in entries.values()) == other
    for update in entries.values():
        if isinstance(update, LowRankUpdate):
            prefix = f"base_model.model.{update.name}"
            B, A = (raw[f"{prefix}.lora_{factor}.weight"] for factor in "BA")
            np.testing.assert_array_equal(update.B.astype(np.float64), B)
            np.testing.assert_array_equal(update.A.astype(np.float64), A)
            assert update.scale == config["lora_alpha"] / config["r"]


def test_real_bin_is_read_without_its_code(real_adapter):
    entries = scan(real_adapter("peft-regression-lora_mlp_modules_to_save"))
    assert {name: type(entry).__name__ for name, entry in entries.items()} == {
        "lin0": "LowRankUpdate",
        "base_model.model.lin1.weight": "Other",
        "base_model.model.lin1.bias": "Other",
    }
    assert entries["lin0"].shape == (20, 10)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not-lora-ia3-opt350m", "peft_type is 'IA3'.*pass .* --base DIR"),
        ("not-lora-unilora", "peft_type is 'UNILORA'.*pass .* --base DIR"),
    ],
)
def test_real_adapters_that_are_not_lora_are_refused(real_adapter, name, words):
    with pytest.raises(CheckpointError, match=words):
        scan(real_adapter(name))


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("peft-regression-lora_emb_conv1d", {"emb": (5, 100), "conv1d": (1, 5)}),
        ("peft-regression-lora_conv2d", {"conv2d": (10, 45)}),
    ],
)
def test_real_layers_of_other_kinds(real_adapter, name, shapes):
    import torch

    path = real_adapter(name)
    raw = torch.load(path / "adapter_model.bin", map_location="cpu", weights_only=True)
    raw = {key.split(".", 2)[2]: tensor.double().numpy() for key, tensor in raw.items()}
    entries = scan(path)
    assert {module: entry.shape for module, entry in entries.items()} == shapes
    for module, update in entries.items():
        names = [k for k in raw if k.startswith(module)]
        A, B = (next(raw[k] for k in names if f"_{f}" in k.split(".")[1]) for f in "AB")
        want = B.reshape(len(B), -1) @ A.reshape(len(A), -1)
        np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-14)


def test_real_adalora_has_a_scale_of_its_own(real_adapter):
    import torch

    path = real_adapter("peft-regression-adalora_mlp")
    raw = torch.load(path / "adapter_model.bin", map_location="cpu", weights_only=True)
    A, B, E = (raw[f"base_model.model.lin0.lora_{part}"].double().numpy() for part in "ABE")
    want = 8 / (12 + 1e-5) * B @ (E * A)
    np.testing.assert_allclose(scan(path)["lin0"].dense(), want, rtol=1e-14, atol=1e-15)


def test_real_merged_linear_is_two_updates_a_module(real_adapter):
    import torch

    path = real_adapter("bloom560m-peft02-merged-linear-bin")
    updates = list(checkpoint.read(path))
    assert len(updates) == 48
    assert {(u.part, u.shape, u.capacity) for u in updates} == {
        ("slice0", (1024, 1024), 8),
        ("slice2", (1024, 1024), 8),
    }
    raw = torch.load(path / "adapter_model.bin", map_location="cpu", weights_only=True)
    key = f"base_model.model.{updates[1].name}.lora_{{}}.weight"
    A, B = raw[key.format("A")].double(), raw[key.format("B")].double()
    both = torch.nn.functional.conv1d(A[None], B, groups=2)[0].numpy()
    for update, want in zip(updates[:2], np.split(2.0 * both, 2), strict=True):
        np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-12)


# MultiLoRA


@pytest.fixture
def write_multilora(write_adapter, rng):
    def write(n=3, r=2, d_out=6, d_in=5, drop=(), **config):
        shapes = {"A": (n * r, d_in), "B": (d_out, n * r), "s": (d_out, n)}
        tensors = {
            f"base_model.model.layers.0.q.multilora_{part}": rng.standard_normal(shape)
            for part, shape in shapes.items()
            if part not in drop
        }
        tensors["base_model.model.score.weight"] = np.ones((2, 2))
        config = {"peft_type": "MULTILORA", "n": n, "r": r, "lora_alpha": 8} | config
        return write_adapter(tensors, **config)

    return write


@pytest.mark.parametrize(("rslora", "scale"), [(False, 4.0), (True, 8 / 2**0.5)])
def test_multilora_is_the_sum_over_its_modules(write_multilora, rslora, scale):
    path = write_multilora(use_rslora=rslora)
    # What lies in lora/ is the same update again.
    (path / "lora").mkdir()
    (path / "lora" / "adapter_config.json").write_text("{}")
    entries = scan(path)
    raw = load_file(path / "adapter_model.safetensors")
    A, B, s = (raw[f"base_model.model.layers.0.q.multilora_{part}"] for part in "ABs")
    want = sum(
        scale * np.diag(s[:, i]) @ B[:, 2 * i : 2 * i + 2] @ A[2 * i : 2 * i + 2] for i in range(3)
    )
    update = entries["layers.0.q"]
    np.testing.assert_allclose(update.dense(), want, rtol=0, atol=20 * EPS * np.abs(want).max())
    assert (update.method, update.capacity, update.shape) == ("multilora", 5, (6, 5))
    assert isinstance(entries["base_model.model.score.weight"], Other)


def test_stacking_the_blocks_in_another_order_is_another_update(rng):
    """Negative control: scales that meet the wrong blocks are seen."""
    B, s = rng.standard_normal((6, 6)), rng.standard_normal((6, 3))
    right = np.hstack([s[:, [i]] * B[:, 2 * i : 2 * i + 2] for i in range(3)])
    np.testing.assert_array_equal(multilora.stack(B, s, 3), right)
    wrong = B * np.tile(s, 2)
    assert not np.allclose(multilora.stack(B, s, 3), wrong)


@pytest.mark.parametrize("part", ["A", "B", "s"])
def test_multilora_without_a_part_is_skipped(write_multilora, part):
    (reason,) = reasons(write_multilora(drop=part)).values()
    assert f"layers.0.q: has no multilora_{part}" in reason


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"n": None}, "n is None; expected a number"),
        ({"r": 1.5}, "r is 1.5; expected a whole number"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; expected a number"),
    ],
)
def test_multilora_with_a_broken_config_is_refused(write_multilora, config, words):
    with pytest.raises(CheckpointError, match=words):
        scan(write_multilora() if not config else _with_config(write_multilora(), **config))


def test_multilora_of_another_n_is_skipped(write_multilora):
    (reason,) = reasons(_with_config(write_multilora(), n=2)).values()
    assert "A is (6, 5), B is (6, 6), s is (6, 3); expected A (4, d_in)" in reason


def _with_config(path, **changes):
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return path


# Full fine-tuning


def test_full_fine_tuning_is_what_was_stored(write_delta, rng):
    W = rng.standard_normal((5, 7)).astype("f4")
    path = write_delta(
        {"model.layers.0.q": W},
        vectors={"model.norm": {"frobenius_norm": 0.25}},
        tied=["lm_head"],
    )
    entries = scan(path)
    update = entries["model.layers.0.q"]
    assert (update.shape, update.floor, update.method) == ((5, 7), 1e-9, "full")
    np.testing.assert_array_equal(update.dense(), W)
    assert "norm 0.25" in entries["model.norm"].what
    assert "tied" in entries["lm_head"].what


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_full_fine_tuning_in_other_dtypes(write_delta, rng, dtype):
    W = rng.standard_normal((5, 7)).astype(dtype)
    np.testing.assert_array_equal(scan(write_delta({"q": W}))["q"].dense(), W.astype(np.float64))


def test_full_fine_tuning_that_disagrees_with_its_config_is_skipped(write_delta):
    W = np.ones((2, 2), "f4")
    facts = {"floor": 0.0}
    path = write_delta(
        {
            "good": W,
            "extra": W,
            "vector": np.ones(3, "f4"),
            "whole": np.ones((2, 2), "i4"),
            "bad": W,
        },
        modules={
            **{"good": facts, "vector": facts, "whole": facts},
            **{"missing": facts, "bad": {"floor": -1}, "odd": 3},
        },
    )
    found = reasons(path)
    assert found.keys() == {"extra", "vector", "whole", "missing", "bad", "odd"}
    assert "extra: stands in delta.safetensors, not in delta_config.json" in found["extra"]
    assert "missing: stands in delta_config.json, not in delta.safetensors" in found["missing"]
    assert "vector: is F32 (3,); expected a floating-point matrix" in found["vector"]
    assert "whole: is I32 (2, 2)" in found["whole"]
    assert "bad: floor is -1; expected at least 0" in found["bad"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"version": 2}, "version 2; expected 'multilora-delta', version 1"),
        ({"format": None}, "format None"),
        ({"modules": []}, None),
        ({"modules": [1]}, "modules is a list; expected a dict"),
        ({"tied": 3}, "tied is a int; expected a list"),
        ({"vectors": {"norm": {}}}, "norm: frobenius_norm is None"),
    ],
)
def test_full_fine_tuning_with_a_broken_config(write_delta, config, words):
    path = write_delta({"q": np.ones((2, 2), "f4")}, **config)
    if words is None:
        assert reasons(path).keys() == {"q"}
    else:
        with pytest.raises(CheckpointError, match=words):
            scan(path)


# Bad LoRA adapters


def nested(depth):
    return [nested(depth - 1)] if depth else []


def lora_key(module, factor):
    return f"base_model.model.{module}.lora_{factor}.weight"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({lora_key("v", "B"): None}, "v: has lora_A but no lora_B; expected both"),
        ({lora_key("v", "A"): None}, "v: has lora_B but no lora_A; expected both"),
        (
            {
                lora_key("v", "A"): None,
                lora_key("v", "B"): None,
                f"{lora_key('v', 'B')[:-7]}.bias": 9,
            },
            "v: has no lora_B and no lora_A; expected both",
        ),
        ({lora_key("v", "B"): (12, 3)}, r"v: inner ranks differ, B is (12, 3), A is (4, 10)"),
        ({lora_key("v", "A"): (3, 10), lora_key("v", "B"): (12, 3)}, "expected r = 4"),
        ({lora_key("v", "A"): (0,)}, "v: B is (12, 4), A is (0,); expected matrices"),
        ({lora_key("v", "A"): (4, 0)}, "A is (4, 0): empty"),
        ({lora_key("v", "A"): (4, 10, 3, 3)}, "A is (4, 10, 3, 3); expected matrices, or kernels"),
        ({"base_model.model.v.lora_magnitude_vector": (12,)}, "lora_magnitude_vector is not read"),
        ({"base_model.model.v.lora_embedding_A": (4, 9)}, "is not read beside lora_embedding_B"),
    ],
)
def test_a_bad_module_is_skipped_and_the_others_read(write_adapter, lora_tensors, changes, words):
    tensors = lora_tensors("q", "v")
    for name, shape in changes.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = np.ones(shape, "f4")
    path = write_adapter(tensors)
    found = reasons(path)
    assert found.keys() == {"v"}
    assert words in found["v"]
    assert found["v"].startswith(str(path / "adapter_model.safetensors"))
    assert isinstance(scan(path)["q"], LowRankUpdate)


def test_whole_numbers_are_no_factors(write_adapter, lora_tensors):
    tensors = lora_tensors("q", "v")
    tensors[lora_key("v", "A")] = np.ones((4, 10), np.int8)
    assert (
        "v.lora_A.weight: stored as I8; expected one of F64" in reasons(write_adapter(tensors))["v"]
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": None}, "peft_type is None; expected 'LORA'"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"r": None}, "r is None; expected a number"),
        ({"r": 0}, "r is 0; expected at least 1"),
        ({"r": True}, "r is True"),
        ({"r": 10**400}, "expected a number"),
        ({"lora_alpha": nested(900)}, "lora_alpha is .*; expected a number"),
        ({"peft_type": nested(900)}, "peft_type is .*; expected 'LORA'"),
        ({"peft_type": "x" * 10**6}, "peft_type is 'xxx.{0,80}…; expected 'LORA'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"rank_pattern": [1]}, r"rank_pattern is \[1\]; expected an object"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern: missing"),
        ({"alpha_pattern": {"q": "x"}}, "q is 'x'; expected a number"),
        ({"use_dora": True}, "use_dora is set: DoRA.*--base DIR, .* --direction-only"),
        ({"target_parameters": ["w"]}, "target_parameters is set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'.* --initial DIR"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused(write_adapter, lora_tensors, config, words):
    path = write_adapter(lora_tensors("q"), **config)
    with pytest.raises(CheckpointError, match=words) as error:
        scan(path)
    assert str(error.value).startswith(str(path / "adapter_config.json"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b"[]", "holds a list; expected a JSON object"),
        (b"\xff\xfe\xfa", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
    ],
)
def test_a_missing_or_broken_config_is_refused(write_adapter, lora_tensors, content, words):
    file = write_adapter(lora_tensors("q")) / "adapter_config.json"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: {words}"):
        scan(file.parent)


def test_two_adapters_in_one_file_are_parts_of_its_modules(write_adapter, rng):
    tensors = {
        f"base_model.model.q.lora_{factor}.{adapter}.weight": rng.standard_normal(shape)
        for adapter in ("default", "other")
        for factor, shape in (("A", (4, 10)), ("B", (12, 4)))
    }
    updates = list(checkpoint.read(write_adapter(tensors)))
    assert [(update.name, update.part) for update in updates] == [("q", "default"), ("q", "other")]
    for update in updates:
        B = tensors[f"base_model.model.q.lora_B.{update.part}.weight"]
        np.testing.assert_array_equal(update.B, B)
    one = {name: tensor for name, tensor in tensors.items() if "default" in name}
    assert [u.part for u in checkpoint.read(write_adapter(one, "one"))] == [""]


def test_one_tensor_under_two_names_is_refused(write_adapter, lora_tensors):
    tensors = lora_tensors("q")
    tensors |= {name.removeprefix("base_model.model."): t for name, t in tensors.items()}
    with pytest.raises(CheckpointError, match="are one tensor of one module"):
        scan(write_adapter(tensors))


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -200, -1])
def test_a_truncated_file_is_refused(write_adapter, lora_tensors, keep):
    file = write_adapter(lora_tensors("q")) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: not a readable"):
        scan(file.parent)


def test_a_name_that_stands_twice_in_the_header_is_refused(tmp_path):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    header = f'{{"a":{entry % (0, 4)},"a":{entry % (0, 4)}}}'.encode()
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    with pytest.raises(CheckpointError, match="'a' stands twice in the header"):
        scan(tmp_path)


def test_weights_that_are_missing_are_named(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("q"))
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"no weights; expected adapter_model\.safetensors or"
    ):
        scan(path)


class Bomb:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, capsys):
    import torch

    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    file = tmp_path / "adapter_model.bin"
    for content in (lambda: torch.save({"a": Bomb()}, file), lambda: file.write_bytes(b"cos\n")):
        content()
        with pytest.raises(CheckpointError, match=r"adapter_model\.bin: not a readable"):
            scan(tmp_path)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02.")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin: not a readable"):
        scan(tmp_path)
    assert "executed" not in capsys.readouterr().out


def test_a_tensor_that_claims_more_than_it_stores_is_skipped(tmp_path):
    """Of stride 0, as an expanded one; 40 TB if its shape were believed."""
    import torch

    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    A, B = torch.ones(1).expand(4, 10**12), torch.ones(12, 4)
    torch.save({lora_key("q", "A"): A, lora_key("q", "B"): B}, tmp_path / "adapter_model.bin")
    (reason,) = reasons(tmp_path).values()
    assert "lora_A.weight: is (4, 1000000000000), but holds less" in reason


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    file = tmp_path / "adapter_model.bin"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**8))
    assert file.stat().st_size < 10**6
    with pytest.raises(CheckpointError, match="'archive/data/0' is compressed"):
        scan(tmp_path)


@pytest.mark.parametrize("length", [10**7 + 1, 2**40, 2**63, 2**64 - 1])
def test_an_absurd_header_is_not_believed(write_adapter, lora_tensors, length):
    file = write_adapter(lora_tensors("q")) / "adapter_model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(CheckpointError, match=f"a header of {length} bytes in a file of"):
        scan(file.parent)


def test_a_config_too_long_to_be_one_is_refused(write_adapter, lora_tensors):
    file = write_adapter(lora_tensors("q")) / "adapter_config.json"
    file.write_text('{"x": "' + "x" * 10**7 + '"}')
    with pytest.raises(CheckpointError, match="is over 10000000 bytes long"):
        scan(file.parent)


def test_a_file_cut_short_while_it_is_read_costs_its_modules(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("q", "v"))
    file = path / "adapter_model.safetensors"
    entries = checkpoint.scan(path)
    assert isinstance(next(entries), LowRankUpdate)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 300)
    assert "the file was cut short while it was read" in next(entries).reason


def test_bfloat16_in_a_bin_is_exact(tmp_path, rng):
    import torch

    A = torch.from_numpy(rng.standard_normal((4, 10)).astype("f4")).bfloat16()
    B = torch.from_numpy(rng.standard_normal((12, 4)).astype("f4")).bfloat16()
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    tensors = {lora_key("q", "A"): A, lora_key("q", "B"): B}
    torch.save(tensors, tmp_path / "adapter_model.bin")
    want = (B.double() @ A.double()).numpy()
    np.testing.assert_allclose(scan(tmp_path)["q"].dense(), want, rtol=0, atol=1e-15 * 100)


def test_layers_come_in_order(write_adapter, lora_tensors, tmp_path):
    modules = [f"layers.{i}.q" for i in range(12)]
    assert list(scan(write_adapter(lora_tensors(*modules)))) == modules
    save_file({}, tmp_path / "empty.safetensors")
