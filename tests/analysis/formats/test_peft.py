"""PEFT's LoRA, made by PEFT on tiny models, against PEFT's own ΔW; and broken adapters."""

import json
import struct

import numpy as np
import pytest
import torch
from entries import close, reasons, scan, updates
from tiny_models import gpt2, layers, matrix, save_base, tiny, trained
from torch import nn

from analysis import CheckpointError, checkpoint
from analysis.formats import Options
from analysis.spectrum import main
from analysis.update import LowRankUpdate, Other


def deep_llama():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=12, **sizes))


PEFT_CASES = {
    "plain": (deep_llama, {"target_modules": ["q_proj", "down_proj"]}),
    "rslora": (deep_llama, {"target_modules": ["q_proj"], "use_rslora": True}),
    "patterns": (
        deep_llama,
        {
            "target_modules": ["q_proj", "v_proj"],
            # layers.1 is not layers.11; the first key that matches wins; keys are expressions.
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, r"layers\.(2|3)\..*": 3, "v_proj": 6},
            "alpha_pattern": {"v_proj": 1, r"model\.layers\.2\.self_attn\.v_proj": 100},
        },
    ),
    "rslora patterns": (
        deep_llama,
        {
            "target_modules": ["q_proj"],
            "use_rslora": True,
            "rank_pattern": {"^model.layers.1.self_attn.q_proj": 9},
            "alpha_pattern": {"1.self_attn.q_proj": 5},
        },
    ),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "gaussian": (deep_llama, {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
    "bias": (deep_llama, {"target_modules": ["q_proj"], "lora_bias": True}),
    "modules_to_save": (deep_llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
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


ALL = ["emb", "lin", "conv1", "conv2", "point", "conv3"]
LORA = {
    "embedding": {"target_modules": ["emb"]},
    "linear": {"target_modules": ["lin"]},
    "conv1d": {"target_modules": ["conv1"]},
    "conv2d": {"target_modules": ["conv2", "point"]},
    "conv3d": {"target_modules": ["conv3"]},
    "Conv1D": {"target_modules": ["square", "turned"], "fan_in_fan_out": True},
    "rslora": {"target_modules": ALL, "use_rslora": True},
    "lora_bias": {"target_modules": ["lin", "conv2"], "lora_bias": True},
    "patterns": {
        "target_modules": ALL,
        "rank_pattern": {"(e|l).*": 2},
        "alpha_pattern": {"c.*": 9},
    },
}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("case", LORA)
def test_lora_in_all_its_forms(tmp_path, case, suffix):
    from peft import LoraConfig

    model = trained(tiny(), LoraConfig(r=4, lora_alpha=7, **LORA[case]))
    model.save_pretrained(tmp_path, safe_serialization=suffix == "safetensors")
    found, want = updates(tmp_path), layers(model)
    assert {name for name, _ in found} == want.keys()
    for (name, _), update in found.items():
        assert isinstance(update, LowRankUpdate)
        close(update, matrix(want[name].get_delta_weight("default"), want[name]))


def test_a_convolution_in_groups_is_what_its_forward_does(tmp_path):
    """PEFT cannot merge one, so that its outputs are the oracle."""
    from peft import LoraConfig

    model = trained(tiny(), LoraConfig(r=4, lora_alpha=7, target_modules=["groups"]))
    model.save_pretrained(tmp_path)
    (update,) = updates(tmp_path).values()
    layer = layers(model)["groups"]
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        want = layer(x) - layer.get_base_layer()(x)
        # Its B works in groups, and its A does not.
        kernel = torch.from_numpy(update.dense()).float().reshape(8, 4, 3, 3)
        got = nn.functional.conv2d(x, kernel)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_lora_bias_and_saved_modules_are_listed_with_their_change(tmp_path):
    from peft import LoraConfig

    config = LoraConfig(
        r=4, target_modules=["lin"], lora_bias=True, modules_to_save=["head"], bias="none"
    )
    base = save_base(tiny(), tmp_path / "base")
    model = trained(tiny(), config)
    model.save_pretrained(tmp_path / "adapter")
    entries = {e.name: e for e in checkpoint.scan(tmp_path / "adapter", Options(base=base))}
    others = {name: e.what for name, e in entries.items() if isinstance(e, Other)}
    assert len(others) == 2
    assert "bias of lora_B" in others["base_model.model.lin.lora_B.bias"]
    tuned = model.base_model.model.head.modules_to_save["default"]
    norms = {x: (getattr(tuned, x) - getattr(tiny().head, x)).norm() for x in ("weight", "bias")}
    assert others["base_model.model.head.bias"].endswith(f"change of norm {norms['bias']:.3g}")
    # A matrix of the base that has changed is not passed over: ΔW is more than the factors.
    reason = entries["head"].reason
    assert f"change of norm {norms['weight']:.3g}; not analysed" in reason
    assert main([str(tmp_path / "adapter"), "--base", str(base)]) == 1
    assert main([str(tmp_path / "adapter")]) == 0  # negative control: unknown without the base


def test_trained_biases_are_listed_with_their_change(tmp_path):
    from peft import LoraConfig

    base = save_base(tiny(), tmp_path / "base")
    model = trained(tiny(), LoraConfig(r=4, target_modules=["lin"], bias="all"))
    model.save_pretrained(tmp_path / "adapter")
    scan = checkpoint.scan(tmp_path / "adapter", Options(base=base))
    others = {e.name: e.what for e in scan if isinstance(e, Other)}
    assert len(others) == 9  # all but the embedding's
    assert all(what.startswith("bias, change of norm ") for what in others.values())


def test_several_adapters_of_one_model_are_runs(tmp_path):
    from peft import LoraConfig

    model = trained(tiny(), LoraConfig(r=4, target_modules=["lin"]))
    model.add_adapter("style", LoraConfig(r=2, target_modules=["conv2"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "both")
    found = checkpoint.runs([tmp_path / "both"])
    assert [run.name for run in found] == ["both", "style"]
    for run, adapter in zip(found, ("default", "style"), strict=True):
        for (name, _), update in updates(run.path).items():
            layer = layers(model)[name]
            close(update, matrix(layer.get_delta_weight(adapter), layer))


def test_trained_tokens_are_listed(tmp_path):
    from peft import LoraConfig

    config = LoraConfig(r=4, target_modules=["lin"], trainable_token_indices={"emb": [1, 5]})
    trained(tiny(), config).save_pretrained(tmp_path)
    others = [e for e in checkpoint.scan(tmp_path) if isinstance(e, Other)]
    assert len(others) == 1
    assert "trained rows of an embedding" in others[0].what


def test_replicated_layers_have_no_weight_of_their_own(write_adapter, lora_tensors, tmp_path):
    path = write_adapter(lora_tensors("q"), use_dora=True, layer_replication=[[0, 1], [0, 1]])
    with pytest.raises(CheckpointError, match="layer_replication is set"):
        updates(path, base=tmp_path)
    assert len(updates(write_adapter(lora_tensors("q"), layer_replication=[[0, 1]]))) == 1


# Adapters that others trained: an independent reading of the same bytes


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


def _assert_factors_are_those_of_the_file(path, modules, other):
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


@pytest.mark.parametrize(
    ("dtype", "r", "alpha", "others"),
    [
        ("f4", 4, 16, ("classifier.dense.weight", "classifier.dense.bias")),
        ("f2", 1, 1, ()),
        ("f4", 8, 8, ("roberta.layer.0.query.base_layer.bias", "roberta.norm.bias")),
    ],
)
def test_made_up_adapters_are_scale_times_b_times_a(write_adapter, rng, dtype, r, alpha, others):
    """A made-up twin of the real adapters: the factors are those of the file, bit for bit."""
    modules = [f"roberta.layer.{i}.attention.{leaf}" for i in (0, 10) for leaf in "qv"]
    tensors = {f"base_model.model.{name}": np.ones((2, 2), dtype) for name in others}
    for module in modules:
        for factor, shape in (("A", (r, 5)), ("B", (7, r))):
            key = f"base_model.model.{module}.lora_{factor}.weight"
            tensors[key] = rng.standard_normal(shape).astype(dtype)
    path = write_adapter(tensors, r=r, lora_alpha=alpha)
    _assert_factors_are_those_of_the_file(path, len(modules), len(others))


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
    _assert_factors_are_those_of_the_file(real_adapter(name), modules, other)


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


def test_layers_of_other_kinds_in_a_bin(tmp_path):
    """A made-up twin of the real adapters: an embedding, and convolutions of one and two axes."""
    shapes = {
        "emb.lora_embedding_A": (2, 30),
        "emb.lora_embedding_B": (5, 2),
        "conv1d.lora_A.weight": (2, 5, 1),
        "conv1d.lora_B.weight": (4, 2, 1),
        "conv2d.lora_A.weight": (2, 5, 3, 3),
        "conv2d.lora_B.weight": (10, 2, 1, 1),
    }
    torch.manual_seed(0)
    raw = {name: torch.randn(shape) for name, shape in shapes.items()}
    state = {f"base_model.model.{name}": x for name, x in raw.items()}
    torch.save(state, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 6}')
    entries = scan(tmp_path)
    assert {module: entry.shape for module, entry in entries.items()} == {
        "emb": (5, 30),
        "conv1d": (4, 5),
        "conv2d": (10, 45),
    }
    for module, update in entries.items():
        A, B = (
            next(x for k, x in raw.items() if k.startswith(module) and f"_{f}" in k).double()
            for f in "AB"
        )
        want = 3.0 * B.reshape(len(B), -1) @ A.reshape(len(A), -1)
        np.testing.assert_allclose(update.dense(), want.numpy(), rtol=0, atol=1e-14)


# Bad adapters


def lora_key(module, factor):
    return f"base_model.model.{module}.lora_{factor}.weight"


def nested(depth):
    return [nested(depth - 1)] if depth else []


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
        ({"base_model.model.v.lora_embedding_A": (4, 9)}, "is not read next to lora_embedding_B"),
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
        ({"rank_pattern": {"(": 3}}, r"rank_pattern: '\(': missing"),
        ({"alpha_pattern": {"q": "x"}}, "q is 'x'; expected a number"),
        ({"use_dora": True}, "use_dora is set: DoRA.*--base DIR, .* --direction-only"),
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
    with pytest.raises(CheckpointError, match="are the same tensor of one module"):
        scan(write_adapter(tensors))


def test_weights_that_are_missing_are_named(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("q"))
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"no weights; expected adapter_model\.safetensors or"
    ):
        scan(path)


# Names


class Tower(nn.Module):
    """A model with components whose names begin with lora_, which PEFT can adapt."""

    def __init__(self):
        super().__init__()
        self.lora_tower = nn.ModuleDict({"lora_A": nn.Linear(5, 6), "q_proj": nn.Linear(5, 6)})
        self.lora_head = nn.Linear(6, 2)

    def forward(self, x):
        return self.lora_head(self.lora_tower["q_proj"](x) + self.lora_tower["lora_A"](x))


def test_modules_whose_names_begin_with_lora_are_read_as_peft_loads_them(tmp_path):
    from peft import LoraConfig, get_peft_model

    targets = ["lora_tower.lora_A", "lora_tower.q_proj"]
    config = LoraConfig(r=2, lora_alpha=6, target_modules=targets, modules_to_save=["lora_head"])
    model = get_peft_model(nn.ModuleDict({"vision": Tower()}), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    entries = scan(tmp_path)
    for target in targets:
        layer = model.get_submodule(f"base_model.model.vision.{target}")
        want = layer.get_delta_weight("default").detach().numpy()
        close(entries[f"vision.{target}"], want)
    others = {name for name, entry in entries.items() if isinstance(entry, Other)}
    assert others == {f"base_model.model.vision.lora_head.{leaf}" for leaf in ("weight", "bias")}
    assert len(entries) == 4


def test_a_part_of_an_adapter_that_is_not_known_is_told(write_adapter, lora_tensors):
    tensors = lora_tensors("q", "v")
    path = write_adapter(tensors | {"base_model.model.q.lora_C.weight": np.ones((2, 2), "f4")})
    assert "lora_C.weight is not read next to" in reasons(path)["q"]
    path = write_adapter(tensors | {"base_model.model.o.lora_C.weight": np.ones((2, 2), "f4")})
    entry = scan(path)["base_model.model.o.lora_C.weight"]
    assert entry.what == "saved weight, or a part of an adapter that is not read"


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "a.b."])
def test_what_is_in_front_of_pefts_root_is_no_part_of_a_name(write_adapter, lora_tensors, prefix):
    tensors = lora_tensors("q")
    path = write_adapter({prefix + name: x for name, x in tensors.items()})
    assert list(scan(path)) == ["q"]


def test_an_adapter_stored_for_x_a_b_is_read_if_told(write_adapter, rng):
    A, B = rng.standard_normal((8, 4)), rng.standard_normal((4, 8))
    path = write_adapter({lora_key("q", "A"): A, lora_key("q", "B"): B})
    assert "expected r = 4" in reasons(path)["q"]
    assert "pass --transposed if the layer computes x @ A @ B" in reasons(path)["q"]
    close(scan(path, transposed=True)["q"], 2.0 * (A @ B).T)
    path = write_adapter({lora_key("q", "A"): B, lora_key("q", "B"): A})
    assert "expected r = 4" in reasons(path, transposed=True)["q"]  # negative control
