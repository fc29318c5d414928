"""Second moments of a model's inputs: against whole activations, on every kind of layer."""

import csv
import json

import numpy as np
import pytest
import torch
from tiny_models import gpt2, llama
from torch import nn

from analysis import UserError, spectrum
from analysis.base.moments import open_moments
from analysis.update import LowRankUpdate
from multilora import activations
from multilora.activations import ActivationSettings, moments

EPS = np.finfo(float).eps
ROWS = [[1, 5, 9, 2, 7, 3], [4, 4, 8], [6]]
WORDS = "list gold iron tin again gold iron tin list one two again one two " * 8


def whole(model, name, rows):
    """All inputs of a module at once, (tokens, d_in), taken by a hook of its own."""
    taken = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda layer, args, output: taken.append(args[0].reshape(-1, args[0].shape[-1]).double())
    )
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row]))
    handle.remove()
    return torch.cat(taken).numpy()


@pytest.mark.parametrize("make", [llama, gpt2])
def test_streamed_moments_are_those_of_all_inputs_together(make):
    model = make().eval()
    found = moments(model, ROWS)
    names = {n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    assert found.shares.keys() == found.tokens.keys() == names
    assert "lm_head" in names
    for name in names:
        X = whole(model, name, ROWS)
        C = found.C[found.shares[name]].numpy()
        size = np.sqrt(np.outer(*2 * [np.mean(X**2, axis=0)]))
        assert np.all(np.abs(C - X.T @ X / len(X)) <= 10 * len(X) * EPS * size)
        np.testing.assert_array_equal(C, C.T)
        assert np.linalg.eigvalsh(C).min() >= -10 * len(C) * EPS * np.trace(C)
        assert found.tokens[name] == 10


def test_modules_that_share_an_input_share_a_matrix():
    shares = moments(llama(), ROWS).shares
    layer = "model.layers.1"
    for name, first in (
        ("self_attn.q_proj", "self_attn.q_proj"), ("self_attn.k_proj", "self_attn.q_proj"),
        ("self_attn.v_proj", "self_attn.q_proj"), ("self_attn.o_proj", "self_attn.o_proj"),
        ("mlp.gate_proj", "mlp.gate_proj"), ("mlp.up_proj", "mlp.gate_proj"),
        ("mlp.down_proj", "mlp.down_proj"),
    ):  # fmt: skip
        assert shares[f"{layer}.{name}"] == f"{layer}.{first}"
    some = moments(llama(), ROWS, "up_proj").shares
    names = [f"model.layers.{i}.mlp.up_proj" for i in (0, 1)]
    assert some == dict(zip(names, names, strict=True))


class Switching(nn.Module):
    """Two layers that have one input, unless a token 9 comes; the third is never called."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.a, self.b, self.idle = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, input_ids, use_cache):
        x = self.embed(input_ids)
        other = x + 1 if (input_ids == 9).any() else x
        return self.a(x) + self.b(other)


def test_inputs_that_are_shared_only_at_first_are_refused_and_idle_layers_left_out():
    found = moments(Switching(), [[1, 2], [3]])
    assert found.shares == {"a": "a", "b": "a"}
    assert list(found.C) == ["a"]
    with pytest.raises(UserError, match=r"b and a have one input at the start and .* in text 2;"):
        moments(Switching(), [[1, 2], [9, 3]])
    assert moments(Switching(), [[1, 2], [9, 3]], "b").tokens == {"b": 4}


def test_an_input_that_is_changed_in_place_is_not_shared():
    class InPlace(Switching):
        def forward(self, input_ids, use_cache):
            x = self.embed(input_ids)
            y = self.a(x)
            return y + self.b(x.add_(1))

    model = InPlace()
    found = moments(model, [[1, 2], [3]])
    assert found.shares == {"a": "a", "b": "b"}
    X = model.embed.weight.detach().double().numpy()[[1, 2, 3]]
    np.testing.assert_allclose(found.C["a"], X.T @ X / 3, rtol=1e-6)


def test_bad_inputs_are_named():
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[:] = np.nan
    with pytest.raises(UserError, match=r"layers.1.mlp.down_proj: its inputs in text 1 hold NaN"):
        moments(model, ROWS)
    with pytest.raises(UserError, match="--modules 'conv': no linear layer of the model has such"):
        moments(model, ROWS, "conv")


# The command


@pytest.fixture
def text(tmp_path):
    (tmp_path / "words.txt").write_text(WORDS)
    return tmp_path / "words.txt"


@pytest.fixture
def given(tiny_base, text, tmp_path):
    return {"model": str(tiny_base), "text": str(text), "out": str(tmp_path / "m"), "window": 16}


def test_what_is_written_is_what_the_reader_and_a_loaded_model_give(given, tmp_path, capfd):
    from multilora import delta

    arguments = [f"--{name}={value}" for name, value in given.items()]
    assert activations.main(arguments) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[0].split()[:5] == "kind modules inputs d_in tokens".split()
    assert "second moments of 9 inputs of 15 modules: " in err
    model, tokenizer = delta.load_base(given["model"])
    ids = tokenizer(WORDS, add_special_tokens=False).input_ids
    rows = [ids[i : i + 16] for i in range(0, len(ids), 16)]
    opened = open_moments(tmp_path / "m")
    name = "model.layers.1.self_attn.k_proj"
    X = whole(model, name, rows)
    update = LowRankUpdate(name, np.ones((32, 1)), np.ones((1, 32)))
    np.testing.assert_allclose(
        opened.of(update, opened.aligned([name])), X.T @ X / len(X), rtol=1e-9, atol=1e-12
    )
    assert opened.sha256 == delta.weight_files(given["model"])
    with (tmp_path / "m" / "moments.csv").open() as file:
        table = {row["module"]: row for row in csv.DictReader(file)}
    assert float(table[name]["mean_square"]) == pytest.approx(np.mean(X**2))
    values = np.linalg.svd(X, compute_uv=False) ** 2
    want = values.sum() ** 2 / (values**2).sum()
    assert float(table[name]["participation_ratio"]) == pytest.approx(want)
    assert int(table[name]["tokens"]) == len(ids)


def test_a_second_run_reuses_and_another_model_text_or_setting_does_not(
    given, tmp_path, capfd, monkeypatch
):
    first = activations.measure(ActivationSettings(**given))
    ran = []
    real = activations._run
    monkeypatch.setattr(activations, "_run", lambda *a: ran.append(1) or real(*a))
    assert activations.measure(ActivationSettings(**given)) == first
    assert (ran, "has these moments already" in capfd.readouterr().err) == ([], True)
    (tmp_path / "m" / "moments.csv").write_text("edited")
    assert activations.measure(ActivationSettings(**given)) == first
    assert ran
    (tmp_path / "words.txt").write_text(WORDS[:200])
    for changes in ({}, {"window": 8}, {"limit": 20}, {"modules": "q_proj"}):
        ran.clear()
        activations.measure(ActivationSettings(**given | changes))
        assert ran, changes
    assert open_moments(tmp_path / "m").tensors.keys() == {
        f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)
    }


def test_a_limit_cuts_the_last_text_and_says_so(given, capfd):
    rows = activations.measure(ActivationSettings(**given | {"limit": 20}))
    assert {row["tokens"] for row in rows} == {20}
    assert "the first 20 of" in capfd.readouterr().err


def test_examples_of_tasks_are_cut_after_the_window(given, tmp_path, capfd):
    records = [{"instruction": f"list {i}", "input": "", "output": "one two"} for i in range(40)]
    (tmp_path / "alpaca.json").write_text(json.dumps(records))
    tasks = {"text": "", "tasks": f"alpaca:{tmp_path / 'alpaca.json'}", "per_task": 5, "window": 4}
    rows = activations.measure(ActivationSettings(**given | tasks))
    assert {row["tokens"] for row in rows} == {20}
    with pytest.raises(UserError, match="split is 'tuning'; expected one of"):
        activations.measure(ActivationSettings(**given | tasks | {"split": "tuning"}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": "alpaca:x"}, "expected one of --text FILE and --tasks"),
        ({"text": ""}, "expected one of --text FILE and --tasks"),
        ({"out": ""}, "--out is missing; expected --model MODEL and --out DIR"),
        ({"model": ""}, "--model is missing"),
        ({"window": 0}, "window is 0; expected at least 1"),
        ({"limit": -1}, "limit is -1; expected at least 0"),
        ({"modules": "("}, "is not a regular expression"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, changes, words):
    with pytest.raises(UserError, match=words):
        ActivationSettings(**given | changes)


def test_too_little_memory_is_one_line(given, monkeypatch):
    def full(*sizes, **kwargs):
        raise MemoryError

    monkeypatch.setattr(activations.np, "zeros", full)
    with pytest.raises(UserError, match=r"out of memory: .* try some of the modules at a time"):
        activations.measure(ActivationSettings(**given))


def test_a_failed_write_leaves_the_earlier_moments(given, tmp_path, monkeypatch):
    activations.measure(ActivationSettings(**given))
    before = (tmp_path / "m" / "moments.safetensors").read_bytes()

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(activations.store, "csv_text", fail)
    with pytest.raises(OSError, match="m: the result cannot be written: No space left"):
        activations.measure(ActivationSettings(**given | {"limit": 20}))
    assert (tmp_path / "m" / "moments.safetensors").read_bytes() == before
    open_moments(tmp_path / "m")


# With the analysis


def test_the_energy_in_function_space_is_what_an_adapter_adds(tmp_path, write_adapter, rng):
    """E‖ΔW x‖² and the shares, from the activations themselves, of real tiny models."""
    for make, name, d_out, d_in in (
        (llama, "model.layers.1.mlp.down_proj", 16, 24),
        (gpt2, "transformer.h.1.mlp.c_proj", 16, 64),
    ):
        model = make().eval()
        found = moments(model, ROWS)
        out = tmp_path / f"m-{make.__name__}"
        facts = {"command": "multilora.activations", "base": {"sha256": {}}}
        facts["modules"] = {n: {"tensor": first} for n, first in found.shares.items()}
        activations.write(out, found, activations.as_rows(found), facts)
        A, B = rng.standard_normal((4, d_in)).astype("f4"), rng.standard_normal((d_out, 4))
        tensors = {f"base_model.model.{name}.lora_A.weight": A}
        tensors[f"base_model.model.{name}.lora_B.weight"] = B.astype("f4")
        path = write_adapter(tensors, make.__name__ + "-adapter")
        (row,) = spectrum.analyse(path, activations=out).rows
        Y = whole(model, name, ROWS) @ (2 * B.astype("f4").astype(float) @ A).T
        assert row["function_norm"] == pytest.approx(np.sqrt(np.mean(np.sum(Y**2, axis=1))))
        s = np.linalg.svd(Y, compute_uv=False)
        assert row["function_top_share_1"] == pytest.approx(s[0] ** 2 / np.sum(s**2))
