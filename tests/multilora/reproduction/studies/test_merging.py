"""Merges of a bank of experts: what is put into the model, and what the table says of it."""

import csv

import numpy as np
import pytest
import torch
from made_updates import from_spectrum, low_rank, orthonormal

from analysis import UserError, checkpoint
from analysis.numerics import decompose
from multilora import delta, merging, train
from multilora.reproduction.studies import merging as study
from multilora.reproduction.trained import trained
from multilora.tasks.example import FAMILIES

PER_TASK = 1
WEIGHTS = (0.5, 1.0)
WANTED = ("sum", "iso", "sum^2")  # scoring takes a second, merging almost nothing


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_base):
    """Method → directory of a short run, made when asked for."""
    root = tmp_path_factory.mktemp("merging")

    def run(method):
        out = root / method
        if not out.is_dir():
            given = {"model": tiny_base, "method": method, "max_steps": 4, "learning_rate": 0.05}
            given |= {"per_task": 4, "per_task_scored": PER_TASK, "save_strategy": "no", "r": 2}
            given |= {"per_device_train_batch_size": 8, "output_dir": out, "disable_tqdm": True}
            assert train.main([f"--{k}={v}" for k, v in (given | {"use_cpu": True}).items()]) == 0
        return out

    return run


@pytest.fixture(scope="module")
def rows(runs, tiny_base):
    return study.table(trained(runs("expert")), tiny_base, PER_TASK, WEIGHTS, WANTED)


def test_the_table_has_a_row_for_each_merge(rows):
    names = [(row["merge"], row["rank"]) for row in rows]
    merges = [("sum", None), ("iso", None), ("sum", 8), ("iso", 8), ("sum^2", None)]
    assert names == [("base", None), ("apart", None), *merges]
    for row in rows:
        assert tuple(row) == study.COLUMNS
        assert row["seed"] == 42
        families = [row[f"nll_{family}"] for family in FAMILIES]
        assert row["nll"] == pytest.approx(np.mean(families))
        assert 0 <= row["score"] <= 1
    by_name = dict(zip(names, rows, strict=True))
    assert by_name["base", None]["weight"] is None
    assert by_name["sum", None]["weight"] in WEIGHTS
    # Flatter: a larger effective rank and a smaller share of the first direction.
    spread = [by_name[name, None]["effective_rank"] for name in ("sum^2", "sum", "iso")]
    assert spread == sorted(spread)
    top = [by_name[name, None]["top_share_1"] for name in ("iso", "sum", "sum^2")]
    assert top == sorted(top)
    assert by_name["sum", 8]["effective_rank"] <= 8 + 1e-9


def test_every_method_merges_the_experts(runs):
    experts = study._experts(trained(runs("expert")))
    wanted = (*study.METHODS, *(f"sum^{power:g}" for power in study.POWERS))
    found = dict(study.merges(experts, wanted))
    published = [(method, rank) for rank in study.RANKS for method in study.METHODS]
    assert [*found] == [*published, *((f"sum^{power:g}", None) for power in study.POWERS)]
    modules = [*next(iter(experts.values()))]
    for (name, rank), merged in found.items():
        assert [update.name for update in merged] == modules
        assert all(update.r <= (rank or 32) for update in merged)
        assert study.shape(merged)["frobenius_norm"] > 0, name
    flat = study.shape(found["sum^0", None])["effective_rank"]
    assert study.shape(found["iso", None])["effective_rank"] == pytest.approx(flat)


def test_the_numbers_are_those_of_the_model_with_the_merge(rows, runs, tiny_base):
    """The obvious way: the sum of all experts' ΔW in the weights of the base."""
    run = trained(runs("expert"))
    row = next(row for row in rows if (row["merge"], row["rank"]) == ("sum", None))
    model, tokenizer = delta.load_base(str(tiny_base))
    with torch.no_grad():
        for update in checkpoint.read(run.path):
            weight = model.get_submodule(update.name).weight
            weight += row["weight"] * torch.from_numpy(update.dense()).float()
    found = study.score(model, tokenizer, run.held_out("test", PER_TASK), run.decodes)
    assert row["nll"] == pytest.approx(found["nll"]["mean"], rel=1e-4)
    assert row["score"] == found["mean"]


def test_apart_every_expert_is_scored_on_its_own_task(rows, runs, tiny_base):
    run = trained(runs("expert"))
    apart = next(row for row in rows if row["merge"] == "apart")
    tuned = delta.load_tuned(delta.load_base(str(tiny_base))[0], run.path)
    _, tokenizer = delta.load_base(str(tiny_base))
    found = study.score(tuned, tokenizer, run.held_out("test", PER_TASK), run.decodes)
    assert apart["nll"] == pytest.approx(found["nll"]["mean"], rel=1e-4)
    base = next(row for row in rows if row["merge"] == "base")
    assert abs(apart["nll"] - base["nll"]) > 0.01  # it could have failed


def test_the_weights_of_the_model_come_back(tiny_base, rng):
    model, _ = delta.load_base(str(tiny_base))
    name, layer = next(iter(delta.matrices(model)))
    before = layer.weight.detach().clone()
    d_out, d_in = before.shape
    update = low_rank(rng.standard_normal((d_out, 2)), rng.standard_normal((2, d_in)), name=name)
    with study.added(model, [update, update]):
        dW = (layer.weight - before).detach().double().numpy()
    np.testing.assert_allclose(dW, 2 * update.dense(), atol=1e-5)
    assert torch.equal(layer.weight, before)
    elsewhere = low_rank(update.B, update.A, name="no.such.module")
    with pytest.raises(AttributeError), study.added(model, [update, elsewhere]):
        pass
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_a_power_keeps_norm_and_directions(rng, power):
    U, V, s = orthonormal(rng, 20, 3), orthonormal(rng, 15, 3), np.array([4.0, 2.0, 1.0])
    update = from_spectrum(U, s, V)
    powered = study.to_power(update, power)
    want = s**power * np.linalg.norm(s) / np.linalg.norm(s**power)
    np.testing.assert_allclose(powered.dense(), U * want @ V.T, atol=1e-12)
    zero = low_rank(0 * U, V.T)
    assert study.to_power(zero, power) is zero
    deficient = low_rank(np.hstack([U, U]), np.vstack([V.T, V.T]))
    assert decompose.decomposition(study.to_power(deficient, 0.0)).rank == 3


def test_only_a_bank_of_experts_has_merges(runs, tiny_base):
    with pytest.raises(UserError, match="expected a run of --method expert, on two tasks"):
        study.table(trained(runs("lora")), tiny_base, PER_TASK, WEIGHTS)


def test_the_command_prints_and_writes_the_table(runs, tmp_path, run_main, monkeypatch):
    made = study.table

    def fewer(run, base, per_task):
        return made(run, base, per_task, (1.0,), ("sum^2",))

    monkeypatch.setattr(study, "table", fewer)
    out = tmp_path / "out"
    status, printed, _ = run_main(merging.main, runs("expert"), "--per_task=1", "--out", out)
    assert status == 0
    assert sorted(line.split()[0] for line in printed.splitlines()) == sorted(
        ["merge", "base", "apart", "sum^2"]
    )
    with (out / "merging.csv").open(encoding="utf-8") as file:
        assert [row["merge"] for row in csv.DictReader(file)] == ["base", "apart", "sum^2"]
    assert (out / "record.json").is_file()
    status, _, err = run_main(merging.main, runs("expert"), "--per_task=0")
    assert (status, "per_task is 0" in err[-1]) == (2, True)
