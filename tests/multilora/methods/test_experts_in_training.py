"""Task experts through Trainer and the commands."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from banks import TASKS, batch, bits, close, lora, make_bank, move, same
from safetensors.torch import load_file

from analysis import checkpoint
from multilora import ExpertBank, delta, evaluate, reproduce, train
from multilora.methods import experts
from multilora.reproduction import blocks, report, running, tables
from multilora.tasks import encoding, scoring
from multilora.tasks.builtin import suite
from multilora.training import identity, prepare, trainer
from multilora.training.settings import DEFAULTS, TrainSettings

# Trainer.


class Rows(torch.utils.data.Dataset):
    """The rows of some batches, those of one task told apart by `seed`."""

    def __init__(self, seed=0):
        self.rows = []
        for step in range(8):
            one, other = batch(seed=step), batch(seed=step + seed)
            for i in range(7):
                source = other if one["multilora_task_ids"][i] == 1 else one
                self.rows.append({k: v[i] for k, v in source.items()})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def by_trainer(kind, out, seed=0, **changes):
    bank = make_bank()
    usual = {"per_device_train_batch_size": 7, "max_steps": 6, "learning_rate": 0.01}
    usual |= {"weight_decay": 0.1, "max_grad_norm": 0.5, "logging_steps": 1, "use_cpu": True}
    usual |= {"save_strategy": "no", "disable_tqdm": True, "warmup_steps": 0}
    arguments = trainer.TrainArguments(output_dir=str(out), **usual | changes)
    ratios = {"lr_ratios": {}} if kind is trainer.AdapterTrainer else {}
    built = kind(bank, arguments, train_dataset=Rows(seed), **ratios)
    built.train()
    return bank, [entry["loss"] for entry in built.state.log_history if "loss" in entry]


@pytest.mark.parametrize("steps", [1, 2])
def test_other_tasks_rows_do_not_change_an_experts_bits(tmp_path, steps):
    given = {"gradient_accumulation_steps": steps, "max_steps": 4}
    a, losses = by_trainer(trainer.AdapterTrainer, tmp_path, **given)
    b, _ = by_trainer(trainer.AdapterTrainer, tmp_path, seed=50, **given)
    for task in ("law", "code"):
        assert same(bits(a, task), bits(b, task))
        assert not same(bits(a, task), bits(make_bank(), task))
    assert not same(bits(a, "law_hard"), bits(b, "law_hard"))
    assert all(1 < loss < 10 for loss in losses)


def test_trainers_own_clipping_couples_the_experts(tmp_path):
    """Why AdapterTrainer clips by expert; without clipping any Trainer keeps them apart."""
    for norm, apart in ((0.5, False), (0.0, True)):
        a, _ = by_trainer(transformers.Trainer, tmp_path, max_grad_norm=norm)
        b, _ = by_trainer(transformers.Trainer, tmp_path, seed=50, max_grad_norm=norm)
        assert same(bits(a, "law"), bits(b, "law")) == apart


def test_accumulation_is_the_larger_batch(tmp_path):
    # Five rows at a time: the parts differ in how many tokens of a task they have.
    whole, _ = by_trainer(
        trainer.AdapterTrainer, tmp_path, per_device_train_batch_size=10, max_steps=4
    )
    given = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "max_steps": 4}
    parts, _ = by_trainer(trainer.AdapterTrainer, tmp_path, **given)
    for task in TASKS:
        for a, b in zip(parts.parameters_of(task), whole.parameters_of(task), strict=True):
            close(a.detach(), b.detach(), 1e-4)


# The commands.


FEW = {"target_modules": "q_proj,down_proj", "per_task_scored": 1}  # each of 15 tasks has its own


@pytest.fixture
def model_path(tiny_base):
    """A base of a few steps."""
    return str(tiny_base)


def run(model_path, out, steps=6, method="expert", settings=FEW, **changes):
    settings = TrainSettings(method=method, model=model_path, per_task=4, **settings)
    usual = {"max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 0.01}
    usual |= {"logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    arguments = trainer.TrainArguments(output_dir=str(out), **usual | changes)
    return train.run(settings, arguments), settings, arguments


def weights(out):
    return {task: (out / task / "adapter_model.safetensors").read_bytes() for task in suite.TASKS}


def test_the_command_trains_and_scores_an_expert_a_task(model_path, tmp_path, capsys):
    out, settings, arguments = run(
        model_path, tmp_path / "expert-s42", steps=15, settings={"per_task_scored": 2}
    )
    assert identity.is_done(settings, arguments)
    facts = json.loads((out / "run.json").read_text())
    updates = list(checkpoint.read(out))
    assert {u.part for u in updates} == set(suite.TASKS)
    assert len(updates) == 15 * 14
    assert all(u.dense().any() for u in updates)  # an epoch: every task has had its turn
    assert facts["parameters"] == sum(u.B.size + u.A.size for u in updates)
    assert all(0 < entry["loss"] < 100 for entry in facts["losses"])
    model, tokenizer = delta.load_base(model_path)
    bank = delta.load_tuned(model, out)
    assert scoring.score(bank, tokenizer, suite.load("test", 2)) == facts["scores"]["test"]
    capsys.readouterr()
    assert evaluate.main([str(out), "--per_task", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    accuracies = {row["name"]: row["accuracy"] for row in rows if row["level"] == "task"}
    assert accuracies == facts["scores"]["test"]["tasks"]


def test_each_row_is_scored_by_its_own_expert(model_path):
    model, tokenizer = delta.load_base(model_path)
    bank = ExpertBank(model, lora(), list(suite.TASKS))
    move(bank)
    examples = suite.load("test", 4)
    want = []
    for task in suite.TASKS:
        single = copy.deepcopy(bank)
        single.merge(task)
        plain = single.base_model.model
        want += scoring.predict(plain, tokenizer, [e for e in examples if e.task == task])
    got = scoring.predict(bank, tokenizer, examples)
    assert [p.answer for p in got] == [p.answer for p in want]
    for one, other in zip(got, want, strict=True):
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, rel=1e-5)
    bank.remove("sums")
    with pytest.raises(ValueError, match="task 'sums' is not one of the adapter's tasks"):
        scoring.predict(bank, tokenizer, examples)


def test_the_collator_tells_the_task_of_each_row(model_path):
    tokenizer = delta.load_base(model_path)[1]
    examples = suite.load("train", 1)
    rows = encoding.encode_all(tokenizer, examples, 64, list(suite.TASKS))
    ids = encoding.collate(rows[::-1], 0)["multilora_task_ids"]
    assert ids.dtype == torch.int64
    assert ids.tolist() == list(range(15))[::-1]
    rows = encoding.encode_all(tokenizer, examples, 64)
    assert encoding.collate(rows, 0).keys() == {"input_ids", "labels"}


def test_a_resumed_run_has_the_same_bits(model_path, tmp_path):
    given = {"save_strategy": "steps", "save_steps": 3}
    whole = run(model_path, tmp_path / "whole", **given)[0]
    at = whole / "checkpoint-3"
    assert experts.saved_tasks(at) == list(suite.TASKS)
    resumed = run(model_path, tmp_path / "resumed", resume_from_checkpoint=str(at))[0]
    assert weights(resumed) == weights(whole)
    other = run(model_path, tmp_path / "other", seed=1)[0]
    assert weights(other) != weights(whole)
    file = at / "sums/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is broken"):
        run(model_path, tmp_path / "fresh", resume_from_checkpoint=str(at))


def test_the_record_has_the_hashes_of_every_expert(model_path, tmp_path):
    out = run(model_path, tmp_path)[0]
    recorded = json.loads((out / "run.json").read_text())["weights"]
    assert recorded.keys() == {f"{task}/adapter_model.safetensors" for task in suite.TASKS}
    assert recorded == delta.hashes(out)
    file = out / "sums/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert recorded != delta.hashes(out)


def test_another_checkpoint_takes_the_place_of_a_bank(model_path, tmp_path):
    out = run(model_path, tmp_path, steps=1)[0]
    run(model_path, tmp_path, steps=1)
    assert (out / "sums").is_dir()
    run(model_path, tmp_path, steps=1, method="lora")
    assert not (out / "experts.json").exists()
    assert not (out / "sums").exists()
    assert next(checkpoint.read(out)).method == "lora"


@pytest.mark.slow
def test_two_processes_train_as_one_does(model_path, tmp_path):
    """DDP over gloo: an expert's loss is the mean over its tokens in both processes."""
    given = {"method": "expert", "model": model_path, "per_task": 4, "per_task_scored": 1}
    given |= {"max_steps": 6, "learning_rate": 0.01, "max_grad_norm": 0.5, "save_strategy": "no"}
    module = ["-m", "multilora.train", "--use_cpu", *(f"--{k}={v}" for k, v in given.items())]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for launcher, rows in (([], 4), (two, 2)):
        out = tmp_path / str(rows)
        more = [f"--per_device_train_batch_size={rows}", f"--output_dir={out}"]
        subprocess.run(
            [sys.executable, *launcher, *module, *more],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
        )
    for task in suite.TASKS:
        one, other = (
            load_file(tmp_path / rows / task / "adapter_model.safetensors") for rows in ("4", "2")
        )
        for name, want in one.items():
            close(other[name], want, 1e-4)


@pytest.mark.slow
def test_reproduce_compares_experts_with_the_others(model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "_model", lambda settings, seed: Path(model_path))
    settings = reproduce.ReproduceSettings(
        runs=str(tmp_path / "runs"), figures=str(tmp_path / "figures"), methods="lora,expert",
        seeds="0", steps=4, processes=1,
    )  # fmt: skip
    (block,) = reproduce.planned(settings)
    runs = block.runs
    assert [run.out.name for run in runs] == ["lora-s0", "expert-s0"]
    assert runs[1].arguments().learning_rate == DEFAULTS["expert"]["learning_rate"]
    for one in runs:
        object.__setattr__(one.settings, "per_task", 4)
        object.__setattr__(one.settings, "per_task_scored", 2)
    running.train_all(runs, 1)
    blocks.write(block, vars(settings), tmp_path / "figures" / tables.BLOCKS)
    text = report.report(vars(settings))
    assert "expert" in text
    assert (tmp_path / "figures" / "spectra_by_method.png").exists()


def test_the_budget_is_near_loras(model_path):
    count = {}
    for method in ("lora", "expert"):
        model, _ = delta.load_base(model_path)
        model = prepare.prepare(model, TrainSettings(method=method))
        count[method] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count["expert"] == 1.25 * count["lora"]
