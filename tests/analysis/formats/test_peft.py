"""Every form of PEFT adapter, made by PEFT on tiny models, against PEFT's own ΔW."""

import json
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import Options
from analysis.update import DenseUpdate, LowRankUpdate, Other, Skipped

torch = pytest.importorskip("torch")
warnings.filterwarnings("ignore", module="peft")
nn = torch.nn


class Tiny(nn.Module):
    """A layer of every kind that LoRA goes into."""

    def __init__(self):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.emb = nn.Embedding(30, 6)
        self.lin = nn.Linear(6, 9)
        self.square = Conv1D(6, 6)
        self.turned = Conv1D(7, 6)  # (6, 7), acts as its transpose
        self.conv1 = nn.Conv1d(4, 8, 3)
        self.conv2 = nn.Conv2d(3, 8, (3, 2))
        self.point = nn.Conv2d(3, 8, 1)
        self.conv3 = nn.Conv3d(2, 8, 2)
        self.groups = nn.Conv2d(4, 8, 3, groups=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.square(self.emb(x)))


def tiny():
    torch.manual_seed(0)
    return Tiny()


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **sizes))


def trained(model, config, std=0.1):
    """The model with an adapter whose every parameter is off its start."""
    from peft import get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(std * torch.randn_like(parameter))
    return model


def layers(model):
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }


def matrix(W, layer):
    """(d_out, d_in·kernel), as y = W x."""
    turned = type(layer.get_base_layer()).__name__ in ("Conv1D", "Embedding")
    W = W.detach().double().numpy()
    return W.T if turned else W.reshape(len(W), -1)


def updates(path, **options):
    return {(u.name, u.part): u for u in checkpoint.read(path, options=Options(**options))}


def save_base(model, path):
    path.mkdir(exist_ok=True)
    weights = {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}
    save_file(weights, path / "model.safetensors")
    return path


def close(update, want):
    np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-6 * np.abs(want).max())


# Factored: get_delta_weight

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
    assert len(others) == 3
    assert "bias of lora_B" in others["base_model.model.lin.lora_B.bias"]
    tuned = model.base_model.model.head.modules_to_save["default"]
    for leaf in ("weight", "bias"):
        norm = (getattr(tuned, leaf) - getattr(tiny().head, leaf)).norm()
        assert others[f"base_model.model.head.{leaf}"].endswith(f"change of norm {norm:.3g}")


def test_trained_biases_are_listed_with_their_change(tmp_path):
    from peft import LoraConfig

    base = save_base(tiny(), tmp_path / "base")
    model = trained(tiny(), LoraConfig(r=4, target_modules=["lin"], bias="all"))
    model.save_pretrained(tmp_path / "adapter")
    scan = checkpoint.scan(tmp_path / "adapter", Options(base=base))
    others = {e.name: e.what for e in scan if isinstance(e, Other)}
    assert len(others) == 9  # all but the embedding's
    assert all(what.startswith("bias, change of norm ") for what in others.values())


@pytest.mark.parametrize("pruned", [False, True])
def test_adalora_has_its_own_scale(tmp_path, pruned):
    from peft import AdaLoraConfig

    config = AdaLoraConfig(
        init_r=5, target_r=2, lora_alpha=3, total_step=10, target_modules=["lin", "turned"]
    )
    model = trained(tiny(), config)
    if pruned:
        keep = {"lin": [True, False, True, False, False], "turned": [False] * 5}
        pattern = {f"{name}.lora_E.default": mask for name, mask in keep.items()}
        model.peft_config["default"].rank_pattern = pattern
        for name, mask in keep.items():
            layers(model)[name].lora_E["default"].data[~torch.tensor(mask)] = 0
    want = {n: matrix(x.get_delta_weight("default"), x) for n, x in layers(model).items()}
    model.save_pretrained(tmp_path)
    found = updates(tmp_path)
    assert {name for name, _ in found} == want.keys()
    for (name, _), update in found.items():
        assert update.method == "peft:ADALORA"
        close(update, want[name])
    assert found["lin", ""].B.shape[1] == (2 if pruned else 5)


def test_adalora_without_its_diagonal_is_skipped(write_adapter):
    tensors = {
        "base_model.model.q.lora_A": np.ones((3, 4)),
        "base_model.model.q.lora_B": np.ones((5, 3)),
    }
    path = write_adapter(tensors, peft_type="ADALORA", init_r=3, lora_alpha=1)
    (entry,) = checkpoint.scan(path)
    assert isinstance(entry, Skipped)
    assert "q: has lora_A, lora_B; expected lora_A, lora_B, lora_E" in entry.reason


@pytest.mark.parametrize("enabled", [[True, False, True], [True, True, True], [False, True]])
def test_merged_linear_is_a_grouped_convolution(write_adapter, rng, enabled):
    """PEFT 0.2's own rule, layer.py of that version, written out."""
    m, n, r, rows, d_in = sum(enabled), len(enabled), 2, 5, 7
    A = rng.standard_normal((m * r, d_in)).astype("f4")
    B = rng.standard_normal((m * rows, r, 1)).astype("f4")
    key = "base_model.model.h.0.query_key_value.lora_{}.weight"
    tensors = {key.format("A"): A, key.format("B"): B}
    path = write_adapter(tensors, r=r, lora_alpha=6, enable_lora=enabled, fan_in_fan_out=True)
    after = nn.functional.conv1d(torch.from_numpy(A)[None], torch.from_numpy(B), groups=m)[0]
    want = np.zeros((n, rows, d_in))
    want[enabled] = 3.0 * after.numpy().reshape(m, rows, d_in)
    found = {u.part: u for u in checkpoint.read(path)}
    assert list(found) == [f"slice{i}" for i in range(n) if enabled[i]]
    for part, update in found.items():
        close(update, want[int(part.removeprefix("slice"))])


@pytest.mark.parametrize(
    ("enabled", "words"),
    [("yes", "no list of"), ([True] * 5, "5 of 5"), ([True] * 3, "3 of 3"), ([False], "0 of 1")],
)
def test_merged_linear_that_does_not_fit_is_skipped(write_adapter, enabled, words):
    key = "base_model.model.q.lora_{}.weight"
    tensors = {key.format("A"): np.ones((4, 7)), key.format("B"): np.ones((10, 2, 1))}
    (entry,) = checkpoint.scan(write_adapter(tensors, r=2, enable_lora=enabled))
    assert words in entry.reason


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


# Shards


def shard(path, stem="adapter_model", suffix="safetensors", names=None):
    """Split the one file of a directory into two with an index."""
    tensors = load_file(path / f"{stem}.safetensors")
    (path / f"{stem}.safetensors").unlink()
    halves = [sorted(tensors)[::2], sorted(tensors)[1::2]]
    names = names or [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    for half, file in zip(halves, names, strict=True):
        part = {name: tensors[name] for name in half}
        if suffix == "safetensors":
            save_file(part, path / file)
        else:
            torch.save({k: torch.from_numpy(v) for k, v in part.items()}, path / file)
    index = {name: file for half, file in zip(halves, names, strict=True) for name in half}
    (path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
    return path / f"{stem}.{suffix}.index.json"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_sharded_adapter_is_the_whole_one(write_adapter, lora_tensors, suffix):
    tensors = lora_tensors("q", "layers.2.v", "layers.10.v")
    whole = updates(write_adapter(tensors, "whole"))
    path = write_adapter(tensors, "sharded")
    shard(path, suffix=suffix)
    found = updates(path)
    assert list(found) == list(whole)
    for key, update in found.items():
        np.testing.assert_array_equal(update.dense(), whole[key].dense())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside.safetensors", "expected a plain file name"),
        ("/etc/passwd", "expected a plain file name"),
        ("sub/shard.safetensors", "expected a plain file name"),
        ("", "expected a plain file name"),
        (7, "expected a plain file name"),
        ("nul\0.safetensors", "no such file"),
        ("missing.safetensors", "no such file"),
        ("link.safetensors", "a link out of the directory"),
        ("loop.safetensors", "no such file"),
        ("adapter_model-00001-of-00002.safetensors", "where the index puts it"),
    ],
)
def test_a_shard_index_cannot_lead_astray(write_adapter, lora_tensors, name, words):
    path = write_adapter(lora_tensors("q", "v"))
    index = shard(path)
    save_file({"x": np.ones(3)}, path.parent / "outside.safetensors")
    (path / "link.safetensors").symlink_to(path.parent / "outside.safetensors")
    (path / "loop.safetensors").symlink_to(path / "loop.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map[max(weight_map)] = name
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=words):
        list(checkpoint.scan(path))


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", "{"])
def test_a_broken_index_is_refused(write_adapter, lora_tensors, content):
    path = write_adapter(lora_tensors("q", "v"))
    shard(path).write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        list(checkpoint.scan(path))


def test_links_inside_the_hubs_cache_are_followed(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("q", "v"), "models--x/snapshots/abc")
    shard(path)
    blobs = path.parent.parent / "blobs"
    blobs.mkdir()
    for file in path.glob("*.safetensors"):
        file.rename(blobs / file.name)
        file.symlink_to(blobs / file.name)
    assert len(updates(path)) == 2


# What needs the base


@pytest.mark.parametrize(
    "targets", [["lin"], ["emb"], ["conv1", "conv2", "conv3"], ["square", "turned"]]
)
def test_dora_with_the_base_is_merged_minus_base(tmp_path, targets):
    from peft import LoraConfig

    config = LoraConfig(
        r=4, lora_alpha=7, use_dora=True, target_modules=targets, fan_in_fan_out="square" in targets
    )
    base = save_base(tiny(), tmp_path / "base")
    model = trained(tiny(), config)
    model.save_pretrained(tmp_path / "adapter")
    before = {n: layer.get_base_layer().weight.double() for n, layer in layers(model).items()}
    with pytest.raises(CheckpointError, match="use_dora is set: DoRA"):
        updates(tmp_path / "adapter")
    found = updates(tmp_path / "adapter", base=base)
    directions = updates(tmp_path / "adapter", direction_only=True)
    assert {name for name, _ in found} == set(targets)
    for (name, part), update in found.items():
        layer = layers(model)[name]
        close(directions[name, part], matrix(layer.get_delta_weight("default"), layer))
        assert isinstance(update, DenseUpdate)
        # PEFT's merge in float64, or its own rounding would be what is compared.
        double = layer.double()
        double.merge()
        close(update, matrix(double.get_base_layer().weight - before[name], layer))


def test_dora_without_its_weight_in_the_base_is_skipped(tmp_path):
    from peft import LoraConfig

    trained(tiny(), LoraConfig(r=4, use_dora=True, target_modules=["lin"])).save_pretrained(
        tmp_path
    )
    (tmp_path / "base").mkdir()
    save_file({"other.weight": np.ones((2, 2))}, tmp_path / "base" / "model.safetensors")
    (entry,) = checkpoint.scan(tmp_path, Options(base=tmp_path / "base"))
    assert "lin: its weight is not in the base" in entry.reason


def test_dora_on_a_scaled_weight_is_skipped(write_adapter, lora_tensors, tmp_path):
    tensors = lora_tensors("q") | {"base_model.model.q.lora_magnitude_vector": np.ones(12, "f4")}
    path = write_adapter(tensors, use_dora=True)
    (tmp_path / "base").mkdir()
    W = {"q.weight": np.ones((12, 10), "f4"), "q.weight_scale": np.ones((1, 1), "f4")}
    save_file(W, tmp_path / "base" / "model.safetensors")
    (entry,) = checkpoint.scan(path, Options(base=tmp_path / "base"))
    assert "q: its weight in the base is scaled by a tensor of its own" in entry.reason


def test_dora_on_a_square_weight_among_both_kinds_is_skipped(tmp_path):
    """PEFT keeps fan_in_fan_out of the last layer only: Conv1D and Linear cannot be told apart."""
    from peft import LoraConfig

    config = LoraConfig(r=4, use_dora=True, target_modules=["lin", "square", "turned"])
    base = save_base(tiny(), tmp_path / "base")
    trained(tiny(), config).save_pretrained(tmp_path / "adapter")
    entries = {e.name: e for e in checkpoint.scan(tmp_path / "adapter", Options(base=base))}
    assert "cannot tell Conv1D from Linear: W0 is square" in entries["square"].reason
    assert isinstance(entries["lin"], DenseUpdate)
    assert isinstance(entries["turned"], DenseUpdate)


def test_dora_on_gpt2_and_a_head_knows_which_weights_are_turned(tmp_path):
    from peft import LoraConfig
    from transformers import GPT2Config, GPT2LMHeadModel

    def gpt2():
        torch.manual_seed(0)
        sizes = {"n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
        return GPT2LMHeadModel(GPT2Config(vocab_size=16, tie_word_embeddings=False, **sizes))

    gpt2().save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, use_dora=True, target_modules=["c_attn", "attn.c_proj", "lm_head"])
    model = trained(gpt2(), config)
    model.save_pretrained(tmp_path / "adapter")
    before = {n: layer.get_base_layer().weight.double() for n, layer in layers(model).items()}
    found = updates(tmp_path / "adapter", base=tmp_path / "base")
    assert len(found) == 3
    for (name, _), update in found.items():
        layer = layers(model)[name].double()
        layer.merge()
        close(update, matrix(layer.get_base_layer().weight - before[name], layer))


def test_replicated_layers_have_no_weight_of_their_own(write_adapter, lora_tensors, tmp_path):
    path = write_adapter(lora_tensors("q"), use_dora=True, layer_replication=[[0, 1], [0, 1]])
    with pytest.raises(CheckpointError, match="layer_replication is set"):
        updates(path, base=tmp_path)
    assert len(updates(write_adapter(lora_tensors("q"), layer_replication=[[0, 1]]))) == 1


def since_the_start(model, start, tmp_path):
    """The updates of a trained adapter, read with the one it started from; refused without."""
    model.save_pretrained(tmp_path / "initial")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(CheckpointError, match=f"init_lora_weights is '{start}'.*--initial DIR"):
        updates(tmp_path / "tuned")
    return updates(tmp_path / "tuned", initial=tmp_path / "initial")


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_2"])
def test_starts_that_change_the_base_are_exact_with_the_initial_adapter(tmp_path, start):
    from peft import LoraConfig, get_peft_model

    W0 = {n: p.detach().clone() for n, p in tiny().named_parameters()}
    config = LoraConfig(
        r=4,
        lora_alpha=7,
        target_modules=["lin", "head"],
        init_lora_weights=start,
        rank_pattern={"head": 2},
    )
    torch.manual_seed(1)
    model = get_peft_model(tiny(), config)
    found = since_the_start(model, start, tmp_path)
    for (name, _), update in found.items():
        layer = layers(model)[name]
        assert isinstance(update, LowRankUpdate)
        after = layer.get_base_layer().weight.double() + layer.get_delta_weight("default").double()
        want = matrix(after - W0[f"{name}.weight"].double(), layer)
        # The base that PEFT kept is rounded to float32.
        np.testing.assert_allclose(update.dense(), want, rtol=0, atol=3e-6)


def calibrated(start, model):
    """The config of a start that looks at data first; PEFT's own preprocessing of the model."""
    from peft import LoraConfig, LoraGAConfig
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.lora.loraga import preprocess_loraga

    common = {"r": 4, "lora_alpha": 7, "target_modules": ["0", "2"], "init_lora_weights": start}
    x = torch.randn(64, 12)
    if start == "corda":
        config = LoraConfig(corda_config=CordaConfig(corda_method="kpm"), **common)
        preprocess_corda(model, config, run_model=lambda: model(x))
    else:
        config = LoraConfig(lora_ga_config=LoraGAConfig(), **common)
        preprocess_loraga(model, config, lambda: model(x).square().sum().backward())
    return config


@pytest.mark.parametrize("start", ["corda", "lora_ga"])
def test_starts_that_look_at_data_are_exact_with_the_initial_adapter(tmp_path, start):
    from peft import get_peft_model

    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))
    W0 = {n: p.detach().clone() for n, p in base.named_parameters()}
    model = get_peft_model(base, calibrated(start, base))
    found = since_the_start(model, start, tmp_path)
    assert {name for name, _ in found} == {"0", "2"}
    for (name, _), update in found.items():
        layer = layers(model)[name]
        kept = layer.get_base_layer().weight.double()
        assert not torch.equal(kept, W0[f"{name}.weight"].double())  # the start changed it
        want = kept + layer.get_delta_weight("default").double() - W0[f"{name}.weight"].double()
        # The base that PEFT kept is rounded to float32.
        np.testing.assert_allclose(update.dense(), want.detach(), rtol=0, atol=3e-6)


def test_an_initial_adapter_of_other_modules_is_refused(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("q", "v"), "tuned", init_lora_weights="pissa")
    initial = write_adapter(lora_tensors("q"), "initial")
    entries = {e.name: e for e in checkpoint.scan(path, Options(initial=initial))}
    assert "v: is not in the initial adapter" in entries["v"].reason
    assert entries["q"].capacity == 8
    (initial.parent / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no adapter here"):
        list(checkpoint.scan(path, Options(initial=initial.parent / "empty")))


def test_the_initial_adapter_is_subtracted_from_adalora_too(tmp_path):
    from peft import AdaLoraConfig

    config = AdaLoraConfig(init_r=3, total_step=10, target_modules=["lin"])
    for name, std in (("initial", 0.1), ("tuned", 0.3)):
        trained(tiny(), config, std).save_pretrained(tmp_path / name)
    before, after = (updates(tmp_path / name)["lin", ""] for name in ("initial", "tuned"))
    found = updates(tmp_path / "tuned", initial=tmp_path / "initial")["lin", ""]
    close(found, after.dense() - before.dense())
    assert found.capacity == 6


def other_types():
    import peft

    return {
        "LOHA": peft.LoHaConfig(r=2, target_modules=["q_proj"]),
        "LOKR": peft.LoKrConfig(r=2, target_modules=["q_proj", "down_proj"]),
        "VERA": peft.VeraConfig(r=2, target_modules=["q_proj"]),
        "IA3": peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "OFT": peft.OFTConfig(
            r=0, oft_block_size=4, target_modules=["q_proj"], use_cayley_neumann=False
        ),
        "BOFT": peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
        "HRA": peft.HRAConfig(r=2, target_modules=["q_proj"]),
        "FOURIERFT": peft.FourierFTConfig(n_frequency=5, target_modules=["q_proj"]),
        "RANDLORA": peft.RandLoraConfig(r=2, target_modules=["q_proj"]),
        "VBLORA": peft.VBLoRAConfig(
            r=2, topk=2, num_vectors=8, vector_length=4, target_modules=["q_proj"]
        ),
    }


@pytest.mark.parametrize(
    "peft_type",
    ["LOHA", "LOKR", "VERA", "IA3", "OFT", "BOFT", "HRA", "FOURIERFT", "RANDLORA", "VBLORA"],
)
def test_every_other_type_is_merged_minus_base(tmp_path, peft_type):
    from peft import PeftModel

    base = tmp_path / "base"
    llama().save_pretrained(base)
    config = other_types()[peft_type]
    config.task_type = "CAUSAL_LM"
    model = trained(llama(), config)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=f"peft_type is '{peft_type}'.*--base DIR"):
        updates(tmp_path / "adapter")
    found = updates(tmp_path / "adapter", base=base)
    # The oracle: the whole model in float64, merged and taken apart again.
    whole = PeftModel.from_pretrained(llama(), tmp_path / "adapter").double()
    names = {name for name, _ in found}
    assert names == layers(whole).keys()
    merged = dict(whole.merge_and_unload().named_parameters())
    for name, W0 in llama().double().named_parameters():
        module = name.removesuffix(".weight")
        if module in names:
            want = (merged[name] - W0).detach().numpy()
            assert found[module, ""].method == f"peft:{peft_type}"
            close(found[module, ""], want)
        else:
            torch.testing.assert_close(merged[name], W0, rtol=0, atol=0)


def test_a_type_that_changes_no_weight_is_refused(tmp_path):
    import peft

    base = tmp_path / "base"
    llama().save_pretrained(base)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="changes no weight of the model"):
        updates(tmp_path / "adapter", base=base)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "XLORA"}, "XLORA mixes adapters anew for every input"),
        ({"peft_type": 7}, "peft_type is 7; expected a name"),
        ({"peft_type": "NOSUCH"}, "PEFT cannot put it into the base"),
        ({"peft_type": "LOHA", "megatron_config": {"x": 1}}, "megatron_config is set"),
    ],
)
def test_what_peft_must_not_load_is_refused(write_adapter, lora_tensors, tmp_path, config, words):
    llama().save_pretrained(tmp_path / "base")
    path = write_adapter(lora_tensors("q"), **config)
    with pytest.raises(CheckpointError, match=words):
        updates(path, base=tmp_path / "base")


def test_a_hostile_expression_is_stopped(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("a" * 60), rank_pattern={"(a+)+b": 3})
    with pytest.raises(CheckpointError, match="its expressions take over 2 s to match"):
        updates(path)
    path = write_adapter(
        lora_tensors("q", "layers.1.v"), rank_pattern={r"(q|layers\.\d+\.v)": 4}, r=9
    )
    assert len(updates(path)) == 2


def test_expressions_without_end_are_refused(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("q"), rank_pattern={"a" * 100_001: 4})
    with pytest.raises(CheckpointError, match="is 100001 letters long; expected at most 100000"):
        updates(path)


def test_many_expressions_for_many_names_are_tried_apart(monkeypatch):
    from analysis.formats import rule

    tried = []
    monkeypatch.setattr(rule, "_apart", lambda keys, names, _: tried.append(1) or [[]] * len(keys))
    names = [f"layers.{i}.q" for i in range(2000)]
    rule.first_matches([f"layers.{i}" for i in range(500)], names, "here")
    assert tried == []
    rule.first_matches([f"layers.{i}" for i in range(501)], names, "here")
    assert tried == [1]


def test_weights_that_are_missing_are_not_looked_for_on_the_hub(write_adapter, tmp_path):
    path = write_adapter({}, peft_type="LOHA")
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights; expected adapter_model\.safetens"):
        updates(path, base=tmp_path)


def test_a_start_is_plain_in_capital_letters_too(write_adapter, lora_tensors):
    assert len(updates(write_adapter(lora_tensors("q"), init_lora_weights="MiCA"))) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "pairs"),
    [
        (["model.layers.0.q.weight"], ["layers.0.q.weight"], 1),
        (["layers.0.q.weight"], ["model.layers.0.q.weight", "model.norm.weight"], 1),
        (["base_model.model.model.h.0.q.weight"], ["transformer.h.0.q.weight"], 1),
        # Another layer, another module: no match, however alike the rest is.
        (["model.layers.7.q.weight"], ["model.layers.0.q.weight"], 0),
        (["lin.weight"], ["other.weight"], 0),
    ],
)
def test_names_meet_after_one_prefix_of_either_side(ours, theirs, pairs):
    from analysis.formats.base import align

    assert len(align(ours, theirs)) == pairs


def variant(tmp_path, **config):
    from peft import LoraConfig

    llama().save_pretrained(tmp_path / "base")
    model = trained(llama(), LoraConfig(r=4, task_type="CAUSAL_LM", **config))
    model.save_pretrained(tmp_path / "adapter")
    return model


def test_lora_on_parameters_is_read_with_the_base(tmp_path):
    model = variant(tmp_path, target_modules=[], target_parameters=["q_proj.weight"])
    with pytest.raises(CheckpointError, match="target_parameters is set"):
        updates(tmp_path / "adapter")
    found = updates(tmp_path / "adapter", base=tmp_path / "base")
    assert len(found) == 2
    for (name, _), update in found.items():
        close(update, matrix(layers(model)[name].get_delta_weight("default"), layers(model)[name]))


def test_an_adapter_that_moves_the_base_as_it_loads_is_skipped(tmp_path):
    """KaSA truncates W0: merged minus what is then the base would leave that out."""
    from peft.tuners.lora.config import KasaConfig

    variant(tmp_path, target_modules=["q_proj"], kasa_config=KasaConfig())
    entries = list(checkpoint.scan(tmp_path / "adapter", Options(base=tmp_path / "base")))
    assert len(entries) == 2
    assert all("PEFT changes the base weight" in entry.reason for entry in entries)


def test_the_command_through_peft_is_quiet(tmp_path, capfd):
    import peft

    from analysis.spectrum import main

    llama().save_pretrained(tmp_path / "base")
    config = peft.LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trained(llama(), config).save_pretrained(tmp_path / "adapter")
    capfd.readouterr()
    assert main([str(tmp_path / "adapter"), "--base", str(tmp_path / "base")]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "adapter  (peft:LOHA)" in out
    # A base of other sizes: one line, and nothing analysed.
    (tmp_path / "base" / "config.json").write_text("{}")
    assert main([str(tmp_path / "adapter"), "--base", str(tmp_path / "base")]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "PEFT cannot put it into the base" in err


def test_trained_tokens_are_listed(tmp_path):
    from peft import LoraConfig

    config = LoraConfig(r=4, target_modules=["lin"], trainable_token_indices={"emb": [1, 5]})
    trained(tiny(), config).save_pretrained(tmp_path)
    others = [e for e in checkpoint.scan(tmp_path) if isinstance(e, Other)]
    assert len(others) == 1
    assert "trained rows of an embedding" in others[0].what
