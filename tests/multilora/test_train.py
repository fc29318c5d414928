import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers
from safetensors.torch import load_file
from task_files import write_json
from tiny_runs import METHODS, arguments_of, settings_of, weights, written

from analysis import checkpoint
from multilora import base, delta, train
from multilora.tasks import data, encoding, scoring
from multilora.tasks.builtin import suite
from multilora.training import identity

UPDATES = {"rlora": 4, "mtllora": 15}  # of each module: mean and heads, and one for each task


@pytest.fixture(scope="module")
def model_path(tiny_base):
    return str(tiny_base)


@pytest.fixture(scope="module")
def text_base(tmp_path_factory):
    """An untrained model that reads any text, byte by byte."""
    path = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    tokenizer = base.learn_tokenizer([], 0, 64)
    base.build_model(
        base.BaseSettings(width=32, layers=1, heads=2, mlp=48), tokenizer
    ).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


class Watch(transformers.TrainerCallback):
    """Keeps the model that was trained, and what was frozen of it at the start."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.first_step = state.global_step
        self.before = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.trained = {n for n, p in model.named_parameters() if p.requires_grad}

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.after = dict(model.named_parameters())


@pytest.fixture(scope="module")
def made(model_path, tmp_path_factory):
    """Method → (directory, watch) of a run of four steps; each is trained once."""
    root, kept = tmp_path_factory.mktemp("runs"), {}

    def run(method):
        if method not in kept:
            watch = Watch()
            arguments = arguments_of(root / method, save_strategy="no")
            kept[method] = train.run(settings_of(model_path, method), arguments, [watch]), watch
        return kept[method]

    return run


@pytest.fixture(scope="module")
def runs(made):
    """Method → directory of its run."""
    return lambda method: made(method)[0]


# A run.


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_writes_what_it_did(runs, model_path, method):
    out = runs(method)
    record = written(out)
    assert record["settings"]["method"] == method
    assert record["settings"] == vars(settings_of(model_path, method))
    assert record["step"] == 4
    assert record["seed"] == 42
    assert [entry["step"] for entry in record["losses"]] == [1, 2, 3, 4]
    assert all(0 < entry["loss"] < 100 for entry in record["losses"])
    assert record["arguments"]["learning_rate"] == 0.01
    assert not any("token" in key for key in record["arguments"])
    assert record["base"] == {"path": model_path, "sha256": delta.weight_files(model_path)}
    assert record["data"]["examples"] == 60
    assert len(record["data"]["sha256"]) == 64
    assert record["processes"] == 1
    assert list(record["weights"].values()) == [hashlib.sha256(weights(out)).hexdigest()]
    assert record["scores"].keys() == {"validation", "test"}
    for update in checkpoint.read(out):
        assert update.dense().any(), update.name
    assert len(list(checkpoint.read(out))) == 14 * UPDATES.get(method, 1)


@pytest.mark.parametrize("method", METHODS)
def test_the_scores_are_those_of_the_checkpoint(runs, model_path, method):
    model, tokenizer = delta.load_base(model_path)
    model = delta.load_tuned(model, runs(method))
    got = scoring.score(model, tokenizer, suite.load("test", 2))
    want = written(runs(method))["scores"]["test"]
    # ΔW is stored in float32, so that W0 + ΔW can differ in the last bit.
    losses, recorded = got.pop("nll")["tasks"], want.pop("nll")["tasks"]
    assert losses == pytest.approx(recorded, rel=1e-6)
    assert got == want


def test_budgets_are_equal_up_to_the_scales(runs):
    count = {method: written(runs(method))["parameters"] for method in METHODS}
    d_out = 2 * (4 * 32 + 2 * 48 + 32)  # of all linear layers together
    assert count["multilora"] == count["lora"] + 3 * d_out
    assert count["lora+"] == count["lora"]
    assert count["full"] == 2 * (4 * 32 * 32 + 3 * 32 * 48)


@pytest.mark.parametrize("method", METHODS)
def test_only_what_the_method_trains_changes(made, method):
    out, watch = made(method)
    changed = {n for n, p in watch.after.items() if not torch.equal(p, watch.before[n])}
    assert changed == watch.trained
    if method == "full":
        assert {n.split(".")[-2] for n in changed} == set(
            "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
        )
        frozen = json.loads((out / "delta_config.json").read_text())["frozen"]
        assert set(frozen) == watch.after.keys() - changed
    else:
        assert all("lora_" in n for n in changed)


def test_multilora_learns_more_than_its_scales(model_path, tmp_path):
    """From s = 0 the first step moves s alone; from then on A and B move with it."""
    for steps, moved in ((1, {"multilora_s"}), (2, {"multilora_A", "multilora_B", "multilora_s"})):
        watch = Watch()
        arguments = arguments_of(tmp_path / str(steps), max_steps=steps, save_strategy="no")
        train.run(settings_of(model_path), arguments, [watch])
        changed = [n for n, p in watch.after.items() if not torch.equal(p, watch.before[n])]
        assert {n.split(".")[-2] for n in changed} == moved


@pytest.mark.parametrize("method", ["multilora", "full", "rlora", "mtllora"])
def test_the_same_seed_gives_the_same_bits(runs, model_path, tmp_path, method):
    settings = settings_of(model_path, method)
    again = train.run(settings, arguments_of(tmp_path / "again", save_strategy="no"))
    assert weights(again) == weights(runs(method))
    other = train.run(settings, arguments_of(tmp_path / "other", save_strategy="no", seed=1))
    assert weights(other) != weights(runs(method))
    # The seed is that of the adapter's start and of the order; data_seed takes the order over.
    given = {"seed": 1, "data_seed": 42, "save_strategy": "no"}
    start = train.run(settings, arguments_of(tmp_path / "start", **given))
    assert (weights(start) == weights(runs(method))) == (method == "full")


class Interrupted(Exception):
    """As if the machine had gone down."""


class Interrupt(transformers.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Interrupted


@pytest.mark.parametrize("method", ["multilora", "full", "rlora", "mtllora"])
def test_an_interrupted_run_resumes_with_the_same_bits(model_path, tmp_path, method):
    settings = settings_of(model_path, method, dropout=0.0 if method == "full" else 0.1)
    given = {"max_steps": 7, "save_steps": 3, "gradient_accumulation_steps": 2}
    whole = train.run(settings, arguments_of(tmp_path / "whole", **given, save_strategy="no"))
    with pytest.raises(Interrupted):
        train.run(settings, arguments_of(tmp_path / "cut", **given), [Interrupt(5)])
    assert not (tmp_path / "cut" / "run.json").exists()
    watch = Watch()
    resumed = train.run(settings, arguments_of(tmp_path / "cut", **given), [watch])
    assert watch.first_step == 3
    assert weights(resumed) == weights(whole)
    assert written(resumed)["losses"] == written(whole)["losses"]
    assert written(resumed)["scores"] == written(whole)["scores"]


# The data.


def test_the_data_order_is_the_same_for_every_method(model_path, tmp_path, monkeypatch):
    collate, seen = encoding.collate, {}

    def spy(batch, pad):
        seen.setdefault(method, []).append(tuple(tuple(row.ids) for row in batch))
        return collate(batch, pad)

    monkeypatch.setattr(encoding, "collate", spy)
    for method in METHODS:
        given = {"per_device_train_batch_size": 15, "save_strategy": "no"}
        train.run(settings_of(model_path, method), arguments_of(tmp_path / method, **given))
    # Training comes first, then the scoring, which is the same for every method too.
    batches = seen["multilora"]
    assert all(order == batches for order in seen.values())
    tokenizer = delta.load_base(model_path)[1]
    encoded = encoding.encode_all(tokenizer, suite.load("train", 4), 64)
    trained = [row for batch in batches[:4] for row in batch]
    assert sorted(trained) == sorted(tuple(row.ids) for row in encoded)  # one epoch
    assert trained != [tuple(row.ids) for row in encoded]


def test_a_ratio_reaches_the_weights(model_path, tmp_path):
    """The first step of Adam moves every entry by its rate."""
    settings = settings_of(model_path, scale_lr_ratio=5.0)
    out = train.run(settings, arguments_of(tmp_path, max_steps=1, save_strategy="no"))
    assert written(out)["method"] == "multilora r=2 s×5"
    tensors = load_file(out / "adapter_model.safetensors")
    largest = max(float(t.abs().max()) for name, t in tensors.items() if name.endswith("_s"))
    assert largest == pytest.approx(0.05, rel=1e-3)


# How often the data are read.


@pytest.fixture
def alpaca(tmp_path):
    """A task of 60 made-up examples, as --tasks names it."""
    rows = [{"instruction": f"Count to {i}.", "input": "", "output": str(i)} for i in range(60)]
    return f"alpaca:{write_json(tmp_path / 'alpaca.json', rows)}"


@pytest.fixture
def splits(monkeypatch):
    """The splits that were built, in order."""
    built, split = [], data.Data.split

    def count(self, name, per_task=0):
        built.append(name)
        return split(self, name, per_task)

    monkeypatch.setattr(data.Data, "split", count)
    return built


@pytest.mark.parametrize("from_files", [False, True])
def test_a_run_builds_every_split_once(
    model_path, text_base, alpaca, tmp_path, splits, monkeypatch, from_files
):
    """Also when it replaces another result, which it compares itself with."""
    loads, load = [], data.load
    monkeypatch.setattr(data, "load", lambda spec="": loads.append(spec) or load(spec))
    base_path, tasks = (text_base, alpaca) if from_files else (model_path, "")
    settings = settings_of(base_path, tasks=tasks, token_cache=str(tmp_path / "tokens"))
    for steps in (1, 2):
        splits.clear()
        loads.clear()
        arguments = arguments_of(tmp_path / "run", max_steps=steps, save_strategy="no")
        train.run(settings, arguments)
        assert sorted(splits) == ["test", "train", "validation"]
        assert loads == [settings.tasks]
    assert written(tmp_path / "run")["notes"][-1].endswith("another run will be replaced")


# What ends a run early, or stands in its way.


def test_a_result_takes_the_place_of_a_broken_one(model_path, tmp_path, train_argv, capsys):
    """What another program or a run that was cut off left may not lose a finished training."""
    tmp_path.joinpath("experts.json").write_text("{")
    tmp_path.joinpath("run.json").write_text("[")
    tmp_path.joinpath("delta_config.json").write_text("")
    tmp_path.joinpath("adapter_model.safetensors").mkdir()
    tmp_path.joinpath("elsewhere").mkdir()
    tmp_path.joinpath("lora").symlink_to(tmp_path / "elsewhere")
    tmp_path.joinpath("elsewhere", "kept").touch()
    assert train.main(train_argv(tmp_path, max_steps=1)) == 0
    assert "will be replaced" in capsys.readouterr().err
    assert not tmp_path.joinpath("experts.json").exists()
    assert not tmp_path.joinpath("delta_config.json").exists()
    assert tmp_path.joinpath("elsewhere", "kept").exists()
    assert len(list(checkpoint.read(tmp_path))) == 14


def test_epochs_too_short_for_one_step_are_refused(train_argv, tmp_path, capsys):
    few = {"max_steps": -1, "num_train_epochs": 0.01}
    assert train.main(train_argv(tmp_path, **few)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("multilora.train: num_train_epochs 0.01 of 60 training examples makes 0")
    assert not list(tmp_path.iterdir())
    least = re.search(r"pass --num_train_epochs (\S+) or more, or --max_steps", said)[1]
    assert train.main(train_argv(tmp_path, **few | {"num_train_epochs": least})) == 0
    assert written(tmp_path)["step"] == 1


def test_ctrl_c_ends_with_one_line_and_status_130(train_argv, tmp_path, capsys, monkeypatch):
    step, calls = torch.optim.AdamW.step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    assert train.main(train_argv(tmp_path, save_strategy="steps", save_steps=1)) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "multilora.train: interrupted"
    assert "Traceback" not in err
    assert not (tmp_path / "run.json").exists()
    monkeypatch.undo()
    assert train.main(train_argv(tmp_path, save_strategy="steps", save_steps=1)) == 0
    assert f"resuming from {tmp_path}/checkpoint-1" in capsys.readouterr().err


@pytest.mark.slow
def test_sigint_ends_a_process_with_one_line_and_status_130(train_argv, tmp_path):
    argv = train_argv(tmp_path, max_steps=100_000, save_strategy="steps", save_steps=5)
    with subprocess.Popen(
        [sys.executable, "-m", "multilora.train", *argv],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A shell's background jobs ignore SIGINT, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (tmp_path / "checkpoint-10").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "multilora.train: interrupted"
    assert "Traceback" not in err


# Settings and the command.


def test_targets_that_are_nowhere_are_refused(model_path, tmp_path):
    for method in ("full", "multilora"):
        settings = settings_of(model_path, method, target_modules="no_proj,nor_this")
        with pytest.raises(ValueError, match="no_proj"):
            train.run(settings, arguments_of(tmp_path))


def test_the_record_of_an_older_run_goes_with_its_weights_and_not_before(model_path, tmp_path):
    settings, first = settings_of(model_path), arguments_of(tmp_path, save_strategy="no")
    train.run(settings, first)
    before = written(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        train.run(settings_of(str(tmp_path / "nowhere")), arguments_of(tmp_path))
    assert written(tmp_path) == before
    assert identity.is_done(settings, first)
    train.run(settings, arguments_of(tmp_path, save_strategy="no", seed=1))
    assert written(tmp_path)["seed"] == 1
    assert not identity.is_done(settings, first)


def test_the_command_prints_the_directory(model_path, tmp_path, capsys):
    given = {"model": model_path, "output_dir": tmp_path, "method": "lora", "r": 2}
    given |= {"per_task": 4, "per_task_scored": 2, "max_steps": 1, "save_strategy": "no"}
    train.main([f"--{name}={value}" for name, value in given.items()] + ["--use_cpu"])
    assert capsys.readouterr().out == f"{tmp_path}\n"
    assert written(tmp_path)["settings"]["r"] == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--method=sgd"], "method is 'sgd'; expected one of"),
        (["--no_such_setting=1"], "--no_such_setting"),
        (["--model=/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_usage_is_one_line_and_status_two(argv, words, capsys, tmp_path):
    assert train.main([*argv, f"--output_dir={tmp_path}", "--use_cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("multilora.train: ")
    assert words in last
    assert "Traceback" not in err


def test_a_run_by_example_has_short_rows_and_losses_beside_its_scores(model_path, tmp_path):
    changes = {"max_length": 12, "loss": "example", "mixture": "families", "decode": False}
    settings = settings_of(model_path, "lora", **changes)
    facts = written(train.run(settings, arguments_of(tmp_path, save_strategy="no")))
    assert any("cut on the left to fit 12 tokens" in note for note in facts["notes"])
    nll = facts["scores"]["test"]["nll"]
    assert set(nll["families"]) == {"instruction", "understanding", "knowledge"}
    assert all(value > 0 for value in nll["tasks"].values())
