import os
import random
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas
import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from torch import nn

from analysis import results, spectrum, store
from analysis.numerics.floor import noise_floor
from analysis.update import DenseUpdate, LowRankUpdate, Skipped
from multilora import MultiLoraConfig, delta
from multilora.callback import SPECTRA, TABLE, SpectrumCallback, updates

EPS = np.finfo(np.float64).eps
TARGETS = ["q_proj", "down_proj"]


def llama():
    """A tiny base, always the same."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False},
    )
    return transformers.LlamaForCausalLM(config)


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


def adapted(config, base=None, **changes):
    """The base with an adapter at its start; the generator is set before."""
    base = base or llama()
    torch.manual_seed(1)
    return get_peft_model(base, config(target_modules=TARGETS, **changes))


def full():
    """The base with its linear layers trained and the rest frozen."""
    model = llama()
    model.requires_grad_(False)
    for _, layer in delta.matrices(model):
        layer.weight.requires_grad_(True)
    return model


MODELS = {
    "lora": lambda: adapted(LoraConfig, r=3, lora_dropout=0.1),
    "multilora": lambda: adapted(MultiLoraConfig, r=2, n=3, lora_dropout=0.1),
    "full": full,
}


def moved(model):
    """The model with every adapter off its start."""
    generator = torch.Generator().manual_seed(2)
    for name, p in model.named_parameters():
        if ".lora_" in name or ".multilora_" in name:
            p.data = torch.randn(p.shape, generator=generator).to(p.dtype)
    return model


class Reporter(transformers.TrainerCallback):
    """What a logger of `report_to` is given."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append((state.global_step, dict(logs)))


def trainer_of(model, out, callbacks=(), kind=transformers.Trainer, **changes):
    tokens = torch.randint(0, 64, (32, 8), generator=torch.Generator().manual_seed(3))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    usual = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.01}
    usual |= {"logging_steps": 2, "save_steps": 2, "report_to": "none", "use_cpu": True}
    usual |= {"disable_tqdm": True, "optim": "adamw_torch", "data_seed": 0, "seed": 0}
    arguments = transformers.TrainingArguments(output_dir=str(out), **(usual | changes))
    return kind(
        model, arguments, train_dataset=data, eval_dataset=data[:4], callbacks=list(callbacks)
    )


def watched(model, out, resume=None, every=2, reporters=(), options=None, **changes):
    """Train with the callback; the trainer."""
    trainer = trainer_of(model, out, reporters, **changes)
    trainer.add_callback(SpectrumCallback(trainer, every=every, **(options or {})))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def steps(out):
    """Step → its rows."""
    by_step = {}
    for row in store.rows(Path(out) / TABLE):
        by_step.setdefault(row["step"], []).append(row)
    return by_step


def assert_spectrum(row, W):
    """The row is that of W, by numpy's own SVD."""
    s = np.linalg.svd(W, compute_uv=False)
    p = s / s.sum()
    p = p[p > 1e-12]
    assert row["spectral_norm"] == pytest.approx(s[0], rel=1e-5)
    assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(s), rel=1e-5)
    assert row["top_share_1"] == pytest.approx(s[0] ** 2 / np.sum(s**2), rel=1e-5)
    assert row["effective_rank"] == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-3)


# Updates in memory, against ΔW multiplied out by PEFT.


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS),
        LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_rslora=True),
        LoraConfig(
            r=3,
            target_modules=TARGETS,
            rank_pattern={"layers.1.*q_proj": 5},
            alpha_pattern={"down_proj": 7},
        ),
        LoraConfig(r=20, target_modules=TARGETS),  # r above the layers' sizes
        MultiLoraConfig(r=2, n=3, lora_alpha=5, target_modules=TARGETS),
        MultiLoraConfig(r=2, n=3, target_modules=TARGETS, use_rslora=True),
        peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=TARGETS),
    ],
)
def test_factors_multiply_out_to_pefts_own_delta(config):
    model = moved(get_peft_model(llama(), config))
    found = list(updates(model, None))
    assert len(found) == 4
    for update in found:
        assert isinstance(update, LowRankUpdate)
        layer = model.get_submodule(f"base_model.model.{update.name}")
        want = layer.get_delta_weight("default").detach().double().numpy()
        np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-5 * np.abs(want).max())
        assert update.part == ""
    methods = {"LORA": "lora", "MULTILORA": "multilora", "ADALORA": "peft:ADALORA"}
    assert {u.method for u in found} == {methods[config.peft_type.value]}


@pytest.mark.parametrize("config", [LoraConfig, MultiLoraConfig])
def test_conv1d_lies_as_everywhere(config):
    model = moved(get_peft_model(gpt2(), config(r=2, target_modules=["c_attn"])))
    for update in updates(model, None):
        assert update.shape == (48, 16)
        want = model.get_submodule(f"base_model.model.{update.name}").get_delta_weight("default")
        want = want.detach().T.double().numpy()
        np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_embeddings_and_convolutions_are_matrices():
    base = nn.ModuleDict({"conv": nn.Conv2d(4, 6, 3), "embedding": nn.Embedding(9, 5)})
    config = LoraConfig(r=2, target_modules=["conv", "embedding"])
    model = moved(get_peft_model(base, config))
    conv, embedding = updates(model, None)
    want = model.base_model.model["conv"].get_delta_weight("default").detach().numpy()
    np.testing.assert_allclose(conv.dense(), want.reshape(6, 36), rtol=0, atol=1e-4)
    want = model.base_model.model["embedding"].get_delta_weight("default").detach().numpy()
    np.testing.assert_allclose(embedding.dense(), want.T, rtol=0, atol=1e-4)


def test_bfloat16_factors_are_taken_as_they_are():
    model = moved(adapted(LoraConfig, r=3)).to(torch.bfloat16)
    for update in updates(model, None):
        layer = model.get_submodule(f"base_model.model.{update.name}")
        B, A = (getattr(layer, f"lora_{f}")["default"].weight.detach().double() for f in "BA")
        want = layer.scaling["default"] * (B @ A).numpy()
        np.testing.assert_allclose(update.dense(), want, rtol=0, atol=10 * EPS * np.abs(want).max())


def test_several_adapters_are_parts():
    model = adapted(LoraConfig, r=3)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    found = [(u.kind if isinstance(u, Skipped) else u.part, u.capacity) for u in updates(model, {})]
    assert sorted(found) == [("default", 3)] * 4 + [("other", 2)] * 2


def test_the_transformers_integration_is_read_too():
    model = llama()
    model.add_adapter(LoraConfig(r=2, target_modules=TARGETS))
    assert {u.name for u in updates(model, None)} == {
        f"model.layers.{i}.{m}" for i in (0, 1) for m in ("self_attn.q_proj", "mlp.down_proj")
    }


def test_a_layer_may_have_several_updates():
    """The protocol of methods whose ΔW depends on the task or the input."""
    model = moved(adapted(MultiLoraConfig, r=2, n=2))
    layers = [m for m in model.modules() if hasattr(m, "multilora_A")]
    for layer in layers:
        left, right = layer.factors("default")
        layer.parts = lambda adapter, pair=(left, right): {"a": pair, "b": (2 * pair[0], pair[1])}
    found = list(updates(model, None))
    assert [u.part for u in found] == ["a", "b"] * 4
    for a, b in zip(found[::2], found[1::2], strict=True):
        np.testing.assert_allclose(b.dense(), 2 * a.dense(), rtol=1e-6)


def test_a_layer_may_have_no_update_to_give():
    model = moved(adapted(MultiLoraConfig, r=2, n=2))
    layer = next(m for m in model.modules() if hasattr(m, "multilora_A"))

    def parts(adapter):
        raise ValueError(f"{adapter} has no task")

    layer.parts = parts
    first, *rest = updates(model, None)
    assert (type(first), first.reason) == (Skipped, "default has no task")
    assert all(isinstance(update, LowRankUpdate) for update in rest)


def test_a_start_that_moved_the_base_is_subtracted():
    base = llama()
    model = adapted(LoraConfig, r=3, base=base, init_lora_weights="pissa")
    start = {
        (u.name, u.part): LowRankUpdate(u.name, u.B.copy(), u.A.copy(), u.scale)
        for u in updates(model, None, starting=True)
    }
    assert len(start) == 4
    for update in updates(model, start):
        assert np.abs(update.dense()).max() < 1e-6
    moved(model)
    for update in updates(model, start):
        layer = model.get_submodule(f"base_model.model.{update.name}")
        B0A0 = start[update.name, ""].dense()
        want = layer.get_delta_weight("default").detach().double().numpy() - B0A0
        np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-5 * np.abs(want).max())
    for skip in updates(model, None):
        assert isinstance(skip, Skipped)
        assert "initialisation changed the base weights" in skip.reason
    plain = adapted(LoraConfig, r=3, init_lora_weights="gaussian")
    assert not list(updates(plain, None, starting=True))


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "Vera", "VBLoRA", "RandLora", "FourierFT"])
def test_other_methods_are_given_as_matrices_on_demand(kind):
    """ΔW is what merging adds to the weight, by definition."""
    config = getattr(peft, f"{kind}Config")
    sizes = {"VBLoRA": {"num_vectors": 8, "vector_length": 8, "topk": 1}, "Vera": {"r": 3}}
    sizes["FourierFT"] = {"n_frequency": 20}
    torch.manual_seed(1)
    targets = {"target_modules": ["q_proj"]}
    model = get_peft_model(llama(), config(**targets, **sizes.get(kind, {"r": 3}))).eval()
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn(p.shape, generator=generator)
    assert all("pass full=True to SpectrumCallback" in skip.reason for skip in updates(model, None))
    found = list(updates(model, None, {}))
    assert [type(u) for u in found] == [DenseUpdate] * 2
    dense = {u.name: u.dense() for u in found}
    before = dict(llama().named_parameters())
    merged = dict(model.merge_and_unload().named_parameters())
    for name, W in dense.items():
        want = (merged[f"{name}.weight"] - before[f"{name}.weight"]).detach().numpy()
        assert np.abs(want).max() > 1e-3
        np.testing.assert_allclose(W, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LoraConfig(target_modules=TARGETS, use_dora=True), "ΔW of DoraLinear is not scale · B A"),
        (
            peft.OFTConfig(target_modules=["q_proj"], r=2, oft_block_size=0),
            "factors of the ΔW of OFT are not known",
        ),
        (
            peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
            "the ΔW of IA3 are not",
        ),
    ],
)
def test_what_has_no_update_of_its_own_is_named(config, words):
    found = list(updates(get_peft_model(llama(), config), None))
    assert len(found) >= 2
    assert all(isinstance(skip, Skipped) and words in skip.reason for skip in found)


def test_what_this_process_does_not_have_is_named():
    model = moved(adapted(LoraConfig, r=3))
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.Linear)]
    layers[0].lora_A.to(torch.device("meta"))
    layers[1].lora_B["default"].weight = nn.Parameter(torch.empty(0))
    layers[2].lora_B["default"].weight = nn.Parameter(
        torch.ones(16, 3, dtype=torch.int8), requires_grad=False
    )
    found = list(updates(model, None))
    reasons = [entry.reason for entry in found if isinstance(entry, Skipped)]
    assert len(reasons) == 3
    assert all("sharded or not loaded" in reason for reason in reasons[:2])
    assert "quantised (torch.int8)" in reasons[2]


# In training.


@pytest.mark.parametrize("method", MODELS)
def test_rows_are_the_spectra_of_the_model_as_it_was(tmp_path, method):
    """Each step's rows against the dense SVD of W_tuned − W0 of that moment."""
    model, out, seen = MODELS[method](), tmp_path / "run", {}
    W0 = {name: p.detach().clone() for name, p in model.named_parameters()}

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            layers = dict(model.named_modules())
            seen[state.global_step] = {
                name.removeprefix("base_model.model."): (
                    layer.weight.detach().double() - W0[f"{name}.weight"].double()
                    if method == "full"
                    else layer.get_delta_weight("default").detach().double()
                ).numpy()
                for name, layer in layers.items()
                if (method == "full" and f"{name}.weight" in W0 and W0[f"{name}.weight"].ndim == 2)
                or hasattr(layer, "get_delta_weight")
            }

    options = {"full": method == "full", "singular_values": True}
    watched(model, out, reporters=[Look()], options=options, max_steps=5)
    by_step = steps(out)
    assert list(by_step) == [0, 2, 4, 5]  # the start, every second, the last
    count = 14 if method == "full" else 4
    for step, rows in by_step.items():
        assert len(rows) == count
        values = load_file(out / SPECTRA / f"step-{step}.safetensors")
        assert values.keys() == {row["key"] for row in rows}
        for row in rows:
            assert list(row) == list(results.COLUMNS)
            assert (row["run"], row["method"]) == ("run", method)
            assert row["key"] == f"run@{step}/{row['module']}"
            s = values[row["key"]]
            assert len(s) == row["capacity"]
            if step == 0:
                assert (row["spectral_norm"], row["rank"]) == (0, 0)
                assert row["effective_rank"] is None
                assert not s.any()
            else:
                W = seen[step][row["module"]]
                assert_spectrum(row, W)
                want = np.linalg.svd(W, compute_uv=False)[: len(s)]
                np.testing.assert_allclose(s, want, rtol=0, atol=1e-5 * want[0])
    if method == "full":
        q = model.model.layers[0].self_attn.q_proj
        row = next(r for r in by_step[5] if r["module"] == "model.layers.0.self_attn.q_proj")
        assert row["floor"] == noise_floor(q.weight.detach().numpy())


@pytest.mark.parametrize("method", ["lora", "multilora"])
def test_rows_are_those_of_the_saved_checkpoint(tmp_path, method):
    out = tmp_path / "run"
    watched(MODELS[method](), out)
    saved = spectrum.analyse(out / "checkpoint-4")
    assert not saved.skipped
    want = {row["key"]: row for row in saved.rows}
    found = {row["key"]: row for row in steps(out)[4]}
    assert found.keys() == want.keys()
    for key, row in found.items():
        for column in results.COLUMNS:
            if column in ("algorithm", "error_bound"):
                continue
            value = want[key][column]
            expected = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert row[column] == expected


@pytest.mark.parametrize("method", MODELS)
def test_training_is_the_same_to_the_bit(tmp_path, method):
    """Weights, optimiser, generators: with the callback and without."""
    states = []
    for watching in (False, True):
        model, out = MODELS[method](), tmp_path / str(watching)
        if watching:
            options = {"full": method == "full", "singular_values": True}
            trainer = watched(model, out, every=1, options=options)
            assert len(steps(out)) == 7
        else:
            trainer = trainer_of(model, out)
            trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        generators = torch.get_rng_state().tolist(), random.getstate()
        optimiser = trainer.optimizer.state_dict()["state"]
        states.append((model.state_dict(), optimiser, generators, losses))
    (before, optimiser, generators, losses), (after, optimiser_after, *others) = states
    assert all(torch.equal(before[name], after[name]) for name in before)
    for i, moments in optimiser.items():
        assert all(torch.equal(moments[name], optimiser_after[i][name]) for name in moments)
    generators_after, losses_after = others
    assert generators == generators_after
    assert losses == losses_after
    assert len(losses) == 3  # the trainer's own logging was not put off
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())


# The table.


@pytest.mark.parametrize("method", MODELS)
def test_a_resumed_run_has_the_table_of_an_uninterrupted_one(tmp_path, method):
    options = {"full": method == "full", "singular_values": True}
    whole, out = tmp_path / "whole" / "run", tmp_path / "cut" / "run"
    watched(MODELS[method](), whole, options=options)
    watched(MODELS[method](), out, options=options)
    written = (out / TABLE).read_bytes()
    assert written == (whole / TABLE).read_bytes()
    watched(MODELS[method](), out, resume=str(out / "checkpoint-2"), options=options)
    assert (out / TABLE).read_bytes() == written
    for file in (whole / SPECTRA).iterdir():
        assert (out / SPECTRA / file.name).read_bytes() == file.read_bytes()


def test_resuming_with_another_interval_leaves_no_step_beyond(tmp_path):
    options = {"singular_values": True}
    watched(MODELS["lora"](), tmp_path, every=1, options=options)
    checkpoint = str(tmp_path / "checkpoint-2")
    watched(MODELS["lora"](), tmp_path, every=4, resume=checkpoint, options=options)
    assert list(steps(tmp_path)) == [0, 1, 2, 4, 6]
    assert len(list((tmp_path / SPECTRA).iterdir())) == 5


def test_a_step_that_the_table_lost_is_measured_on_resuming(tmp_path):
    watched(MODELS["lora"](), tmp_path)
    want = steps(tmp_path)
    (tmp_path / TABLE).unlink()
    watched(MODELS["lora"](), tmp_path, resume=str(tmp_path / "checkpoint-2"))
    found = steps(tmp_path)
    assert list(found) == [2, 4, 6]
    assert all(found[step] == want[step] for step in found)


def test_training_anew_starts_the_table_anew(tmp_path):
    watched(MODELS["lora"](), tmp_path, options={"singular_values": True})
    watched(MODELS["multilora"](), tmp_path, max_steps=2)
    by_step = steps(tmp_path)
    assert list(by_step) == [0, 2]
    assert {row["method"] for rows in by_step.values() for row in rows} == {"multilora"}
    assert not list((tmp_path / SPECTRA).iterdir())


def test_a_foreign_file_is_refused_on_resuming(tmp_path):
    watched(MODELS["lora"](), tmp_path)
    (tmp_path / TABLE).write_text("a,b\n1,2\n")
    words = re.escape(f"{tmp_path / TABLE}: not a table of this callback")
    with pytest.raises(ValueError, match=words):
        watched(MODELS["lora"](), tmp_path, resume=str(tmp_path / "checkpoint-2"))
    assert (tmp_path / TABLE).read_text() == "a,b\n1,2\n"


def test_pandas_reads_the_table(tmp_path):
    watched(MODELS["lora"](), tmp_path)
    table = pandas.read_csv(tmp_path / TABLE)
    assert list(table.columns) == list(results.COLUMNS)
    assert list(table.groupby("step").size()) == [4] * 4
    assert table["effective_rank"].isna().sum() == 4
    assert not list(tmp_path.glob(".*"))  # nothing temporary is left


def test_nobody_sees_half_a_table(tmp_path, monkeypatch):
    """Whatever is written, is written under another name."""
    sizes, replace = [], store.replace

    def look(path, write):
        def looking(temporary):
            write(temporary)
            sizes.append(path.read_bytes().count(b"\n") if path.exists() else 0)

        replace(path, looking)

    monkeypatch.setattr(store, "replace", look)
    watched(MODELS["lora"](), tmp_path)
    assert sizes == [0, 5, 9, 13]


def test_early_stopping_measures_the_last_step(tmp_path):
    class Stop(transformers.TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    trainer = trainer_of(MODELS["lora"](), tmp_path, [Stop()], eval_strategy="steps", eval_steps=1)
    trainer.add_callback(SpectrumCallback(trainer, every=2))
    trainer.train()
    assert list(steps(tmp_path)) == [0, 2, 3]


# What is logged.


def test_medians_reach_the_loggers_and_the_history(tmp_path):
    reporter = Reporter()
    trainer = watched(
        MODELS["lora"](), tmp_path, reporters=[reporter], max_steps=3, logging_steps=1
    )
    logged = {step: logs for step, logs in reporter.logs if "spectrum/spectral_norm" in logs}
    assert list(logged) == [0, 2, 3]
    for step, rows in steps(tmp_path).items():
        for column in ("spectral_norm", "effective_rank", "top_share_1"):
            values = [row[column] for row in rows if row[column] is not None]
            if values:
                assert logged[step][f"spectrum/{column}"] == pytest.approx(np.median(values))
            else:
                assert f"spectrum/{column}" not in logged[step]  # ΔW = 0: undefined, not NaN
    history = [e for e in trainer.state.log_history if "spectrum/spectral_norm" in e]
    assert [entry["step"] for entry in history] == [0, 2, 3]
    assert [s for s, logs in reporter.logs if "loss" in logs] == [1, 2, 3]


def test_a_subclass_log_of_running_means_is_left_alone(tmp_path):
    class Means(transformers.Trainer):
        calls = 0

        def log(self, logs, start_time=None):
            type(self).calls += 1
            super().log(logs, start_time)

    trainer = trainer_of(MODELS["lora"](), tmp_path, kind=Means)
    trainer.add_callback(SpectrumCallback(trainer, every=1))
    trainer.train()
    assert Means.calls == 4  # three losses and the summary


def test_without_a_trainer_the_table_is_the_same_and_nothing_is_logged(tmp_path):
    watched(MODELS["full"](), tmp_path / "a" / "run", options={"full": True})
    reporter = Reporter()
    callbacks = [reporter, SpectrumCallback(every=2, full=True)]
    trainer_of(MODELS["full"](), tmp_path / "b" / "run", callbacks).train()
    tables = [(tmp_path / name / "run" / TABLE).read_bytes() for name in "ab"]
    assert tables[0] == tables[1]
    assert not any("spectrum/" in key for _, logs in reporter.logs for key in logs)


# What cannot be measured.


def test_nan_is_named_once_and_training_goes_on(tmp_path):
    model = MODELS["lora"]()
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    trainer = trainer_of(model, tmp_path)
    trainer.add_callback(SpectrumCallback(trainer, every=1))

    class Break(transformers.TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            layer.lora_A["default"].weight.data[0, 0] = float("nan")

    trainer.callback_handler.callbacks.insert(0, Break())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    ours = [str(w.message) for w in caught if "no spectra of" in str(w.message)]
    assert trainer.state.global_step == 6
    # First the one, at step 0; then all that its NaN has reached.
    first = (
        "no spectra of model.layers.1.mlp.down_proj: A holds NaN or Inf; expected finite numbers"
    )
    assert ours[0] == first
    assert len(ours) <= 3
    assert not any("layers.1.mlp.down_proj" in text for text in ours[1:])
    assert len(steps(tmp_path)[0]) == 3


def test_many_modules_make_one_warning():
    callback = SpectrumCallback()
    skipped = [{"run": "r", "module": f"m{i}", "reason": "why"} for i in range(20)]
    with pytest.warns(UserWarning, match=r"^no spectra of m0, .*, m7 and 12 more: why$") as caught:
        callback._warn(skipped)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback._warn(skipped)


def warned(model, out, **options):
    """The warnings about spectra of three steps."""
    trainer = trainer_of(model, out, max_steps=3)
    trainer.add_callback(SpectrumCallback(trainer, every=1, **options))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    return [str(one.message) for one in caught if "no spectra" in str(one.message)]


def test_full_fine_tuning_without_full_is_one_warning(tmp_path):
    (text,) = warned(full(), tmp_path)
    assert re.match(r"no spectra of model\.layers\.0\.self_attn\.q_proj, .* and 6 more: ", text)
    assert text.endswith("adapter; pass full=True to SpectrumCallback to measure it")
    assert steps(tmp_path) == {}
    assert warned(full(), tmp_path, full=True) == []


def test_a_model_of_which_nothing_can_be_measured_is_one_warning(tmp_path):
    """Only vectors are trained, as by BitFit or of weights that are sharded."""
    model = llama()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    for options in ({}, {"full": True}):
        assert warned(model, tmp_path, **options) == [
            "no spectra: the model has no adapter layer and no trained matrix in this process"
        ]
    # Negative control: of an adapter nothing is left out.
    assert warned(adapted(LoraConfig, r=3), tmp_path) == []


def test_saved_modules_of_an_adapter_are_trained_matrices(tmp_path):
    model = adapted(LoraConfig, r=3, modules_to_save=["lm_head"])
    watched(model, tmp_path, options={"full": True}, max_steps=2)
    rows = {row["module"]: row for row in steps(tmp_path)[2]}
    assert rows["lm_head"]["method"] == "full"
    assert rows["lm_head"]["spectral_norm"] > 0
    assert len(rows) == 5
    watched(adapted(LoraConfig, r=3, modules_to_save=["lm_head"]), tmp_path, max_steps=2)
    assert len(steps(tmp_path)[2]) == 4  # not unless asked for


def test_full_needs_the_weights_before_training(tmp_path):
    watched(MODELS["full"](), tmp_path, options={"full": True})
    trainer = trainer_of(MODELS["full"](), tmp_path)
    trainer.add_callback(SpectrumCallback(full=True))
    with pytest.raises(ValueError, match="weights before training were gone; pass it the trainer"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("every", [0, -1, 2.5])
def test_an_interval_that_is_none_is_refused(every):
    with pytest.raises(ValueError, match=f"every is {every}; expected a whole number"):
        SpectrumCallback(every=every)


TWO_PROCESSES = """
import os
model = t.MODELS["lora"]()
trainer = t.watched(model, out, ddp_backend="gloo")
assert trainer.args.world_size == 2
logged = sum("spectrum/spectral_norm" in entry for entry in trainer.state.log_history)
# In one write: the other process prints to the same pipe.
os.write(1, f"{trainer.args.process_index} logged {logged}\\n".encode())
"""
KILLED = """
import os, signal
from analysis import store
replace = store.replace

def deadly(path, write):
    def writing(temporary):
        write(temporary)
        if path.exists() and path.read_text().count("@2/") == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    replace(path, writing)

store.replace = deadly
t.watched(t.MODELS["lora"](), out)
"""


def run_script(tmp_path, text, *launcher):
    """Run `text` in a process of its own, with this file as t and the output directory as out."""
    script, out = tmp_path / "script.py", str(tmp_path / "cut" / "run")
    here = Path(__file__).resolve().parent
    first = f"import sys\nsys.path.insert(0, {str(here)!r})\nimport test_callback as t\n"
    script.write_text(f"{first}out = {out!r}\n{text}")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parents[1])}
    command = [sys.executable, *launcher, str(script)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_killed_while_writing_and_resumed_the_table_is_whole(tmp_path):
    done = run_script(tmp_path, KILLED)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    out = tmp_path / "cut" / "run"
    assert list(steps(out)) == [0, 2]
    watched(MODELS["lora"](), out, resume=str(out / "checkpoint-2"))
    watched(MODELS["lora"](), tmp_path / "run")
    assert (out / TABLE).read_bytes() == (tmp_path / "run" / TABLE).read_bytes()


@pytest.mark.slow
def test_the_first_of_two_processes_writes(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = run_script(tmp_path, TWO_PROCESSES, *launcher)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "0 logged 4" in done.stdout
    assert "1 logged 0" in done.stdout
    by_step = steps(tmp_path / "cut" / "run")
    assert [(step, len(rows)) for step, rows in by_step.items()] == [(0, 4), (2, 4), (4, 4), (6, 4)]
    model = PeftModel.from_pretrained(llama(), tmp_path / "cut" / "run" / "checkpoint-6")
    for row, update in zip(by_step[6], updates(model, None), strict=True):
        assert_spectrum(row, update.dense())
