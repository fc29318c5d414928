import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from killed import at_every_call
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from analysis import UserError, checkpoint
from analysis.files import exchange
from analysis.formats import experts as bank_format
from analysis.numerics.floor import noise_floor
from multilora import MtlLoraConfig, MultiLoraConfig, RLoraConfig, base, delta
from multilora.methods import experts
from multilora.methods.layers import AdapterLinear, MultiLoraLinear


def llama(tokenizer):
    return base.build_model(base.BaseSettings(width=32, layers=2, heads=2, mlp=48), tokenizer)


def gpt2(tokenizer):
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Name → directory of a base model: Linear layers, and Conv1D with a tied head."""
    root = tmp_path_factory.mktemp("bases")
    tokenizer = base.build_tokenizer(64)
    for build in (llama, gpt2):
        torch.manual_seed(0)
        build(tokenizer).save_pretrained(root / build.__name__)
        tokenizer.save_pretrained(root / build.__name__)
    return lambda name: str(root / name)


def load(path, dtype=torch.float32):
    return delta.load_base(path, dtype=dtype)[0].eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(36).reshape(3, 12)).logits


TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}


def multilora(path, name, dtype=torch.float32, **config):
    """The base with MultiLoRA whose every s has moved."""
    config = {"r": 2, "n": 3, "lora_alpha": 5, "target_modules": TARGETS[name]} | config
    torch.manual_seed(1)
    model = get_peft_model(load(path, dtype), MultiLoraConfig(**config)).eval()
    for key, p in model.named_parameters():
        if "multilora_s" in key:
            torch.nn.init.normal_(p)
    return model


def tuned(path, dtype=torch.float32, change=0.01):
    """A full fine-tune: every matrix but embedding and head has moved."""
    model = load(path, dtype)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for _, layer in delta.matrices(model):
        noise = change * torch.randn(layer.weight.shape, generator=generator)
        layer.weight.data += noise.to(dtype)
        layer.weight.requires_grad_(True)
    return model


# MultiLoRA and its export.


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_dropout": 0.3}])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_export_is_the_same_function_in_pefts_own_lora(
    bases, tmp_path, name, settings, dtype, rtol
):
    path = bases(name)
    model = multilora(path, name, dtype, **settings)
    delta.save(model, path, tmp_path)
    lora = PeftModel.from_pretrained(load(path, dtype), tmp_path / "lora").eval()
    assert lora.peft_config["default"].peft_type == "LORA"
    assert lora.peft_config["default"].r == 6
    stored = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert stored["fan_in_fan_out"] == (name == "gpt2")  # else PEFT corrects it with a warning
    assert stored["lora_dropout"] == settings.get("lora_dropout", 0)
    want, plain = logits(model), logits(load(path, dtype))
    scale = float(want.abs().max())
    torch.testing.assert_close(logits(lora), want, rtol=0, atol=rtol * scale)
    assert float((want - plain).abs().max()) > 0.1 * scale
    # Module by module: what PEFT adds to each weight is our ΔW.
    theirs = dict(lora.named_modules())
    for key, layer in model.named_modules():
        if isinstance(layer, MultiLoraLinear):
            ours = layer.get_delta_weight("default")
            bound = rtol * float(ours.detach().abs().max())
            torch.testing.assert_close(
                theirs[key].get_delta_weight("default"), ours, rtol=0, atol=bound
            )


def test_the_export_of_a_changed_adapter_differs(bases, tmp_path):
    """The check above sees a wrong scale, a missing module, a forgotten s."""
    path = bases("llama")
    model = multilora(path, "llama")
    delta.save(model, path, tmp_path)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[next(key for key in tensors if "lora_B" in key)] *= 1.01
    save_file(tensors, file)
    lora = PeftModel.from_pretrained(load(path), tmp_path / "lora").eval()
    want = logits(model)
    assert float((logits(lora) - want).abs().max()) > 1e-4 * float(want.abs().max())


def test_the_export_takes_the_saved_modules_with_it(bases, tmp_path):
    path = bases("llama")
    model = multilora(path, "llama", modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head.modules_to_save["default"].weight
    torch.nn.init.normal_(head)
    delta.save(model, path, tmp_path)
    lora = PeftModel.from_pretrained(load(path), tmp_path / "lora").eval()
    want = logits(model)
    bound = 1e-5 * float(want.abs().max())
    torch.testing.assert_close(logits(lora), want, rtol=0, atol=bound)
    saved = lora.base_model.model.lm_head.modules_to_save["default"].weight
    assert torch.equal(saved, head)


def test_the_adapters_checkpoint_comes_back_bit_for_bit(bases, tmp_path):
    path = bases("llama")
    model = multilora(path, "llama")
    delta.save(model, path, tmp_path)
    assert torch.equal(logits(delta.load_tuned(load(path), tmp_path).eval()), logits(model))


def test_only_a_multilora_adapter_is_exported(bases, tmp_path):
    path = bases("llama")
    lora = get_peft_model(load(path), LoraConfig(target_modules=["q_proj"]))
    delta.save(lora, path, tmp_path)
    assert not (tmp_path / "lora").exists()
    with pytest.raises(ValueError, match=r"adapter 'default' is .*LORA; expected MULTILORA"):
        delta.save_as_lora(lora, tmp_path / "lora")


def test_saving_again_replaces_what_was_there(bases, tmp_path):
    path = bases("llama")
    delta.save(multilora(path, "llama", r=1), path, tmp_path)
    (tmp_path / "run.json").write_text("{}")
    model = multilora(path, "llama", r=2)
    delta.save(model, path, tmp_path)
    assert torch.equal(logits(delta.load_tuned(load(path), tmp_path).eval()), logits(model))
    assert PeftModel.from_pretrained(load(path), tmp_path / "lora").peft_config["default"].r == 6
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "lora", "run.json",
    ]  # fmt: skip


def contents(directory):
    """{relative path: bytes} of every file below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def two_adapters(path, seed):
    """The base with two MultiLoRA adapters that have moved."""
    model = multilora(path, "llama", target_modules=["q_proj"])
    model.add_adapter("other", MultiLoraConfig(r=1, n=2, target_modules=["q_proj"]))
    torch.manual_seed(seed)
    for key, p in model.named_parameters():
        if "multilora_" in key:
            torch.nn.init.normal_(p)
    return model


def test_several_adapters_are_saved_again_in_the_place_of_the_earlier(bases, tmp_path):
    path = bases("llama")
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    delta.save(two_adapters(path, seed=1), path, out)
    first = contents(out)
    model = two_adapters(path, seed=2)
    delta.save(model, path, out)
    delta.save(model, path, fresh)
    assert contents(out) == contents(fresh)
    assert contents(out).keys() == first.keys()
    assert contents(out) != first
    back = delta.load_tuned(load(path), out)
    back.load_adapter(str(out / "other"), "other")
    for adapter, below in (("default", "lora"), ("other", "other/lora")):
        model.set_adapter(adapter)
        back.set_adapter(adapter)
        assert torch.equal(logits(back.eval()), logits(model))
        lora = PeftModel.from_pretrained(load(path), out / below).eval()
        want = logits(model)
        bound = 1e-5 * float(want.abs().max())
        torch.testing.assert_close(logits(lora), want, rtol=0, atol=bound)


def test_a_failed_save_keeps_the_earlier_checkpoint(bases, tmp_path, monkeypatch):
    path = bases("llama")
    delta.save(two_adapters(path, seed=1), path, tmp_path)
    before = contents(tmp_path)

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(delta, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        delta.save(two_adapters(path, seed=2), path, tmp_path)
    assert contents(tmp_path) == before


def test_killed_at_any_moment_a_save_leaves_the_old_checkpoint_or_the_new(
    bases, tmp_path, monkeypatch
):
    """Between the commit and the last move nothing can be taken for a checkpoint of either."""
    path, out = bases("llama"), tmp_path / "out"
    whole = {}
    for seed, name in enumerate(("old", "new")):
        delta.save(two_adapters(path, seed), path, tmp_path / name)
        whole[name] = contents(tmp_path / name)
    # PEFT starts threads when it saves, which a forked process does not have.
    monkeypatch.setattr(
        delta,
        "write",
        lambda model, base, new: shutil.copytree(tmp_path / "new", new, dirs_exist_ok=True),
    )
    shutil.copytree(tmp_path / "old", out)
    seen = set()
    for _ in at_every_call(lambda: delta.save(None, path, out), out):
        found = contents(out)
        own = {name: found.get(name) for name in ("adapter_config.json", delta.ADAPTER_WEIGHTS)}
        readable = None not in own.values()
        assert not readable or any(own.items() <= of.items() for of in whole.values())
        exchange.complete(out)
        seen |= {name for name, of in whole.items() if contents(out) == of}
        assert contents(out) in whole.values()
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "old", out)
    assert seen == {"old", "new"}


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "\0", '{"format": "multilora-experts", "version": 1, "tasks": ["gone"]}'],
)
def test_a_broken_list_of_experts_does_not_lose_a_training(bases, tmp_path, text):
    path = bases("llama")
    (tmp_path / "experts.json").write_text(text)
    model = multilora(path, "llama")
    with pytest.warns(UserWarning, match=r"experts\.json.*the file is replaced, and directories"):
        delta.save(model, path, tmp_path)
    assert not (tmp_path / "experts.json").exists()
    assert torch.equal(logits(delta.load_tuned(load(path), tmp_path).eval()), logits(model))


def test_a_list_of_experts_cannot_name_what_is_not_an_expert(bases, tmp_path):
    """Its names are directories to be replaced: none outside, and none without an adapter."""
    path, out = bases("llama"), tmp_path / "out"
    kept = [tmp_path / "kept", out / "notes"]
    for directory in kept:
        directory.mkdir(parents=True)
        (directory / "adapter_config.json").write_text("{}")
    (out / "notes" / "adapter_config.json").unlink()
    for name in ("../kept", "notes", "..", "."):
        listed = {"format": "multilora-experts", "version": 1, "tasks": [name]}
        (out / "experts.json").write_text(json.dumps(listed))
        with pytest.warns(UserWarning, match="remain"):
            delta.save(multilora(path, "llama"), path, out)
        assert all(directory.is_dir() for directory in kept)


def test_the_writer_and_the_reader_of_a_bank_agree_on_its_format():
    """The methods import nothing of the analysis, so the constants are given in both."""
    names = ("CONFIG", "FORMAT", "VERSION")
    ours = [getattr(experts, name) for name in names]
    assert ours == [getattr(bank_format, name) for name in names]


# R-LoRA, MTL-LoRA and their exports.

TASKS = ["sort", "MNLI (matched)", "QA"]
IDS = torch.tensor([2, 0, 1])


def relative(path, config, dtype=torch.float64, **settings):
    """The base with an adapter that has moved everywhere."""
    name = Path(path).name
    given = {"r": 2, "n": 3, "lora_alpha": 5, "target_modules": TARGETS[name]} | settings
    torch.manual_seed(1)
    model = get_peft_model(load(path, dtype), config(task_type="CAUSAL_LM", **given)).eval()
    for key, p in model.named_parameters():
        if p.requires_grad and "modules_to_save" not in key:
            p.data += 0.3 * torch.randn_like(p)
    return model


def rlora(path, **settings):
    return relative(path, RLoraConfig, **settings)


def mtllora(path, **settings):
    return relative(path, MtlLoraConfig, tasks=TASKS, **settings)


def assert_near(got, want, rtol=1e-6):
    """Equal to the rounding of float32, in which adapters are kept."""
    scale = float(want.detach().abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=rtol * scale, check_dtype=False)


def adapter_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, AdapterLinear)}


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"diagonal": True}, {"lora_dropout": 0.3}]
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_task_is_the_same_function_in_pefts_own_lora(bases, tmp_path, name, settings):
    path = bases(name)
    model = mtllora(path, **settings)
    delta.save(model, path, tmp_path)
    with torch.no_grad():
        x = torch.arange(36).reshape(3, 12)
        mixed = model(input_ids=x, multilora_task_ids=IDS).logits
    assert sorted(p.name for p in (tmp_path / "lora").iterdir()) == sorted(TASKS)
    for t, task in enumerate(TASKS):
        lora = PeftModel.from_pretrained(load(path, torch.float64), tmp_path / "lora" / task).eval()
        assert (lora.peft_config["default"].peft_type, lora.peft_config["default"].r) == ("LORA", 2)
        model.set_task(task)
        want = logits(model)
        assert_near(logits(lora), want)
        row = IDS.tolist().index(t)
        assert_near(logits(lora)[row], mixed[row])
        assert float((want - logits(load(path, torch.float64))).abs().max()) > 0.01
        theirs = dict(lora.named_modules())
        for key, layer in adapter_layers(model).items():
            ours = layer.get_delta_weight("default", task=task)
            assert_near(theirs[key].get_delta_weight("default"), ours)
    exported = [
        json.loads((tmp_path / "lora" / t / "adapter_config.json").read_text()) for t in TASKS
    ]
    assert {c["lora_dropout"] for c in exported} == {settings.get("lora_dropout", 0)}
    files = [tmp_path / "lora" / task / "adapter_model.safetensors" for task in TASKS]
    first, second = load_file(files[0]), load_file(files[1])
    key = next(key for key in first if "lora_B" in key)
    assert not torch.allclose(first[key], second[key], atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rlora_exports_the_mean_of_its_heads_and_says_so(bases, tmp_path, name):
    path = bases(name)
    model = rlora(path, lora_dropout=0.3)
    delta.save(model, path, tmp_path)
    assert not (tmp_path / "lora").exists()
    with pytest.warns(UserWarning, match=r"this LoRA approximates R-LoRA.*mean_router_error"):
        delta.save_as_lora(model, tmp_path / "mean")
    lora = PeftModel.from_pretrained(load(path, torch.float64), tmp_path / "mean").eval()
    assert lora.peft_config["default"].r == 4
    assert lora.peft_config["default"].lora_dropout == 0  # LoRA's would fall elsewhere
    routed = logits(model)
    assert not torch.allclose(logits(lora), routed, atol=1e-3)
    model.fix_router()
    assert_near(logits(lora), logits(model))
    theirs = dict(lora.named_modules())
    for key, layer in adapter_layers(model).items():
        assert_near(theirs[key].get_delta_weight("default"), layer.get_delta_weight("default"))


def test_the_error_of_the_mean_is_measured_on_data(bases):
    path = bases("llama")
    model = rlora(path).train()
    tokens = [torch.arange(36).reshape(3, 12), torch.arange(20)[None]]
    batches = [{"input_ids": ids} for ids in tokens]
    found = delta.mean_router_error(model, batches)
    assert model.training
    names = {name.removeprefix("base_model.model."): m for name, m in adapter_layers(model).items()}
    assert found.keys() == names.keys()
    # The slow way: every layer on the inputs that it has in the routed model.
    seen = {name: [] for name in names}
    hooks = [
        layer.register_forward_hook(lambda m, x, y, name=name: seen[name].append((x[0], y)))
        for name, layer in names.items()
    ]
    with torch.no_grad():
        for batch in batches:
            model.eval()(**batch)
    for hook in hooks:
        hook.remove()
    model.fix_router()
    for name, layer in names.items():
        with torch.no_grad():
            routed = torch.cat([y.flatten(0, -2) for _, y in seen[name]])
            fixed = torch.cat([layer(x).flatten(0, -2) for x, _ in seen[name]])
            plain = torch.cat([layer.base_layer(x).flatten(0, -2) for x, _ in seen[name]])
        change = float((fixed - routed).norm())
        assert found[name]["output"] == pytest.approx(change / float(routed.norm()), rel=1e-4)
        assert found[name]["update"] == pytest.approx(
            change / float((routed - plain).norm()), rel=1e-4
        )
        assert found[name]["update"] > 1e-3
    with pytest.raises(ValueError, match="expected R-LoRA whose router is not fixed"):
        delta.mean_router_error(model, batches)
    model.fix_router(False)
    with pytest.raises(ValueError, match="no batch gave the layers an output"):
        delta.mean_router_error(model, [])
    model.add_adapter("other", model.peft_config["default"])
    with pytest.raises(ValueError, match="'other' is not the active one"):
        delta.mean_router_error(model, batches, adapter="other")


def test_a_zero_router_has_no_error(bases):
    model = rlora(bases("llama"))
    for layer in adapter_layers(model).values():
        torch.nn.init.zeros_(layer.rlora_R["default"])
    errors = delta.mean_router_error(model, [{"input_ids": torch.arange(12)[None]}])
    assert len(errors) == 4
    assert all(error["update"] < 1e-6 for error in errors.values())


def test_a_task_is_asked_for_where_there_are_several(bases, tmp_path):
    with pytest.raises(ValueError, match="MTLLORA and task is None; expected a task for MTLLORA"):
        delta.save_as_lora(mtllora(bases("llama")), tmp_path)
    with pytest.raises(
        ValueError, match=r"RLORA and task is 'sort'; expected .* no task for other types"
    ):
        delta.save_as_lora(rlora(bases("llama")), tmp_path, task="sort")
    with pytest.raises(ValueError, match="unknown task 'no such'; expected one of"):
        delta.save_as_lora(mtllora(bases("llama")), tmp_path, task="no such")


@pytest.mark.parametrize("build", [rlora, mtllora])
def test_the_relatives_come_back_bit_for_bit(bases, tmp_path, build):
    path = bases("llama")
    model = build(path, modules_to_save=["lm_head"])
    torch.nn.init.normal_(model.base_model.model.lm_head.modules_to_save["default"].weight)
    delta.save(model, path, tmp_path)
    back = delta.load_tuned(load(path, torch.float64), tmp_path).eval()
    if build is mtllora:
        model.set_task("QA")
        back.set_task("QA")
        lora = PeftModel.from_pretrained(load(path, torch.float64), tmp_path / "lora" / "QA").eval()
        assert_near(logits(lora), logits(model))
    assert torch.equal(logits(back), logits(model))
    delta.save(tuned(path), path, tmp_path)
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_analysis_reads_the_relatives(bases, tmp_path, name):
    """Layer, file and analysis agree on the same weights, for each task, head and mean."""
    path = bases(name)
    for build in (rlora, mtllora):
        model = build(path)
        delta.save(model, path, tmp_path / build.__name__)
        updates = {(u.name, u.part): u for u in checkpoint.read(tmp_path / build.__name__)}
        layers = adapter_layers(model)
        assert len(updates) == len(layers) * (4 if build is rlora else 3)
        for key, layer in layers.items():
            module = key.removeprefix("base_model.model.")
            tasks = {"mean": {}} if build is rlora else {task: {"task": task} for task in TASKS}
            for part, which in tasks.items():
                want = layer.get_delta_weight("default", **which).detach()
                want = want.T if name == "gpt2" else want
                assert_near(torch.from_numpy(updates[module, part].dense()), want)
            if build is rlora:
                heads = sum(updates[module, f"head{i}"].dense() for i in (1, 2, 3))
                assert_near(torch.from_numpy(heads / 3), want)


# Full fine-tuning.


def test_a_checkpoint_of_another_kind_is_not_left_beside_the_new_one(bases, tmp_path):
    out, path = tmp_path / "run", bases("llama")
    delta.save(multilora(path, "llama"), path, out)
    assert (out / "lora").is_dir()
    delta.save(tuned(path), path, out)
    assert {path.name for path in out.iterdir()} >= {"delta.safetensors", "delta_config.json"}
    assert not (out / "lora").exists()
    assert not list(out.glob("adapter_*"))
    assert next(checkpoint.read(out)).method == "full"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_fine_tuning_is_the_difference_of_the_weights(bases, tmp_path, name, dtype):
    path = bases(name)
    model = tuned(path, dtype)
    delta.save(model, path, tmp_path)
    before = dict(delta.matrices(load(path, dtype)))
    stored = load_file(tmp_path / "delta.safetensors")
    assert stored.keys() == before.keys()
    for key, layer in delta.matrices(model):
        want = (layer.weight.double() - before[key].weight.double()).float()
        want = want.T if name == "gpt2" else want  # stored (d_out, d_in), whatever the layer
        assert torch.equal(stored[key], want)
        assert want.any()


def test_the_config_of_a_difference_says_what_it_was_taken_from(bases, tmp_path):
    path = bases("llama")
    model = tuned(path)
    model.model.norm.weight.requires_grad_(True)
    model.model.norm.weight.data += 0.5
    delta.save(model, path, tmp_path)
    config = json.loads((tmp_path / "delta_config.json").read_text())
    modules, vectors = config.pop("modules"), config.pop("vectors")
    digest = hashlib.sha256((Path(path) / "model.safetensors").read_bytes()).hexdigest()
    untouched = [n for n, p in load(path).named_parameters() if "proj" not in n]
    assert config == {
        "format": "multilora-delta",
        "version": 1,
        "method": "full",
        "base": path,
        "base_sha256": {"model.safetensors": digest},
        "dtype": "float32",
        "tied": [],
        "frozen": [name for name in untouched if name != "model.norm.weight"],
    }
    assert len(modules) == 14
    norm = 0.5 * 32**0.5
    assert vectors == {"model.norm.weight": {"frobenius_norm": pytest.approx(norm, rel=1e-6)}}
    before = dict(delta.matrices(load(path)))
    for key, layer in delta.matrices(model):
        W0 = before[key].weight.detach().double().numpy()
        assert modules[key] == {
            "floor": noise_floor(layer.weight.detach().numpy()),
            "W0_frobenius": pytest.approx(np.linalg.norm(W0), rel=1e-12),
            "W0_rms": pytest.approx(np.sqrt(np.mean(W0**2)), rel=1e-12),
        }


def test_the_floor_is_that_of_the_stored_dtype(bases, tmp_path):
    floors = []
    for dtype in (torch.float32, torch.bfloat16):
        delta.save(tuned(bases("llama"), dtype), bases("llama"), tmp_path)
        config = json.loads((tmp_path / "delta_config.json").read_text())
        assert config["dtype"] == str(dtype).removeprefix("torch.")
        floors.append(config["modules"]["model.layers.0.self_attn.q_proj"]["floor"])
    # bfloat16 stores 16 bits less of each number.
    assert floors[1] / floors[0] == pytest.approx(2**16, rel=0.05)


def test_tied_weights_are_named(bases, tmp_path):
    delta.save(tuned(bases("gpt2")), bases("gpt2"), tmp_path)
    config = json.loads((tmp_path / "delta_config.json").read_text())
    assert config["tied"] == ["lm_head.weight"]
    assert "lm_head" not in config["modules"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_and_difference_are_the_tuned_model(bases, tmp_path, name, dtype):
    path = bases(name)
    model = tuned(path, dtype)
    delta.save(model, path, tmp_path)
    back = delta.load_tuned(load(path, dtype), tmp_path)
    want = logits(model)
    # The difference is stored to 24 bits: in bfloat16 nothing is lost, in float32 a last bit.
    bound = 0 if dtype == torch.bfloat16 else 1e-5 * float(want.abs().max())
    torch.testing.assert_close(logits(back), want, rtol=0, atol=bound)
    assert not torch.equal(want, logits(load(path, dtype)))


def test_an_untrained_model_has_a_difference_of_zero(bases, tmp_path):
    delta.save(tuned(bases("llama"), change=0), bases("llama"), tmp_path)
    assert not any(d.any() for d in load_file(tmp_path / "delta.safetensors").values())


def test_the_matrices_are_all_linear_layers_but_the_head(bases):
    names = {name.split(".")[-1] for name, _ in delta.matrices(load(bases("llama")))}
    assert names == set("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())
    lora = get_peft_model(load(bases("llama")), LoraConfig(target_modules="all-linear"))
    theirs = {n for n, m in lora.named_modules() if isinstance(m, peft.tuners.lora.Linear)}
    ours = {f"base_model.model.{name}" for name, _ in delta.matrices(load(bases("llama")))}
    assert ours == theirs


# What cannot be loaded.


def test_a_directory_without_a_checkpoint_is_refused(bases, tmp_path):
    words = f"{tmp_path}: neither adapter_config.json nor delta_config.json is there"
    with pytest.raises(FileNotFoundError, match=re.escape(words)):
        delta.load_tuned(load(bases("llama")), tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: neither"):
        delta.load_tuned(load(bases("llama")), tmp_path / "nowhere")


def test_the_difference_of_another_model_is_refused(bases, tmp_path):
    delta.save(tuned(bases("gpt2")), bases("gpt2"), tmp_path)
    with pytest.raises(ValueError, match=r"h\.0\.attn\.c_attn is not a module of the model"):
        delta.load_tuned(load(bases("llama")), tmp_path)


def test_a_difference_of_another_shape_is_refused(bases, tmp_path):
    path = bases("llama")
    delta.save(tuned(path), path, tmp_path)
    tensors = load_file(tmp_path / "delta.safetensors")
    name = "model.layers.1.mlp.up_proj"
    tensors[name] = tensors[name][:, :7].contiguous()
    save_file(tensors, tmp_path / "delta.safetensors")
    model = load(path)
    with pytest.raises(ValueError, match=rf"{name} is \(48, 7\); the model's weight is \(48, 32\)"):
        delta.load_tuned(model, tmp_path)


CONFIG = {"format": "multilora-delta", "version": 1}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "format None, version None; expected 'multilora-delta', version 1"),
        ({"format": "other", "version": 1}, "format 'other'"),
        (CONFIG, "modules is a NoneType; expected an object"),
        *((CONFIG | {"modules": value}, "modules is a") for value in ([], [1], 3, "x", True)),
        (CONFIG | {"modules": {"lost": {}}}, "lost is not a module of the model"),
        (CONFIG | {"modules": {"": {}}}, " is not a module of the model"),
        (CONFIG | {"modules": {"model.norm": {}}}, r"delta\.safetensors: .*model\.norm"),
        (CONFIG | {"modules": {"lm_head": {}}}, r"delta\.safetensors: .*lm_head"),
    ],
)
def test_a_config_of_another_kind_is_refused(bases, tmp_path, config, words):
    path = bases("llama")
    delta.save(tuned(path), path, tmp_path)
    (tmp_path / "delta_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words):
        delta.load_tuned(load(path), tmp_path)


def test_damaged_weights_are_refused(bases, tmp_path):
    path = bases("llama")
    delta.save(tuned(path), path, tmp_path)
    (tmp_path / "delta.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match=r"delta\.safetensors: "):
        delta.load_tuned(load(path), tmp_path)


# The analysis reads what is written here.


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_analysis_reads_the_adapter_and_its_export(bases, tmp_path, name, use_rslora):
    path = bases(name)
    model = multilora(path, name, use_rslora=use_rslora)
    delta.save(model, path, tmp_path)
    layers = {
        key.removeprefix("base_model.model."): layer
        for key, layer in model.named_modules()
        if isinstance(layer, MultiLoraLinear)
    }
    for directory, method in ((tmp_path, "multilora"), (tmp_path / "lora", "lora")):
        updates = {update.name: update for update in checkpoint.read(directory)}
        assert updates.keys() == layers.keys()
        for key, update in updates.items():
            assert (update.method, update.capacity) == (method, 6)
            want = layers[key].get_delta_weight("default").detach().double().numpy()
            want = want.T if name == "gpt2" else want
            error = np.linalg.norm(update.dense() - want) / np.linalg.norm(want)
            assert error < 1e-6


def test_the_analysis_reads_pefts_lora(bases, tmp_path):
    path = bases("llama")
    config = LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(load(path), config)
    delta.save(model, path, tmp_path)
    updates = list(checkpoint.read(tmp_path))
    assert len(updates) == 2
    for update in updates:
        layer = model.get_submodule(f"base_model.model.{update.name}")
        want = layer.get_delta_weight("default").detach().double().numpy()
        assert np.linalg.norm(update.dense() - want) < 1e-6 * np.linalg.norm(want)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_analysis_reads_the_difference(bases, tmp_path, name):
    path = bases(name)
    model = tuned(path)
    delta.save(model, path, tmp_path)
    before, after = dict(delta.matrices(load(path))), dict(delta.matrices(model))
    updates = {update.name: update for update in checkpoint.read(tmp_path)}
    assert updates.keys() == after.keys()
    for key, update in updates.items():
        want = (after[key].weight.double() - before[key].weight.double()).detach().numpy()
        want = want.T if name == "gpt2" else want
        assert update.shape == want.shape
        assert np.linalg.norm(update.dense() - want) < 1e-6 * np.linalg.norm(want)
        assert update.floor == noise_floor(after[key].weight.detach().numpy())
