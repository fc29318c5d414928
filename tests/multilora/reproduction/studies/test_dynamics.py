"""One row per step of a run, against the measures of each checkpoint and the loss with it."""

import numpy as np
import pytest
import torch
from finished import run_of
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint
from analysis.numerics import decompose, metrics
from analysis.update import DenseUpdate
from multilora import base as bases
from multilora import delta
from multilora.reproduction.studies import dynamics
from multilora.tasks.builtin import suite

Q, V = (f"model.layers.0.self_attn.{kind}_proj" for kind in "qv")
D = 16


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The model that the adapters belong to: random, of one layer."""
    path = tmp_path_factory.mktemp("base")
    tokenizer = bases.build_tokenizer(64)
    torch.manual_seed(0)
    sizes = {"width": D, "layers": 1, "heads": 2, "mlp": 24}
    bases.build_model(bases.BaseSettings(**sizes), tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def run(write_adapter, lora_tensors):
    """A LoRA run of three steps, the first at ΔW = 0, and the finished adapter above them."""

    def write(name, r=4, seed=0):
        for step in (0, 5, 10):
            tensors = lora_tensors(Q, V, d_out=D, d_in=D, r=r)
            if step == 0:
                for key in tensors:
                    if "lora_B" in key:
                        tensors[key][:] = 0
            write_adapter(tensors, name=f"{name}/checkpoint-{step}", r=r)
        path = write_adapter(lora_tensors(Q, V, d_out=D, d_in=D, r=r), name=name, r=r)
        return run_of(path, name, seed)

    return write


def nll(model, tokenizer, example):
    """−log of the likelihood of the right answer per token, token by token."""
    prompt = tokenizer(f"{bases.BOS} {example.prompt}", add_special_tokens=False).input_ids
    end = "" if example.options else f" {bases.EOS}"
    answer = tokenizer(example.answer + end, add_special_tokens=False).input_ids
    ids = (prompt + answer)[-64:]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    log_p = torch.log_softmax(logits, -1)
    places = range(len(ids) - len(answer), len(ids))
    return -np.mean([float(log_p[place - 1, ids[place]]) for place in places])


def slow_loss(model, tokenizer, examples):
    """Mean over families of the means over tasks, one example at a time."""
    by_task = {}
    for example in examples:
        nats = nll(model, tokenizer, example)
        by_task.setdefault((example.family, example.task), []).append(nats)
    by_family = {}
    for (family, _), of_task in by_task.items():
        by_family.setdefault(family, []).append(np.mean(of_task))
    return np.mean([np.mean(of_family) for of_family in by_family.values()])


def table(runs, base, k=4):
    return dynamics.table(runs, base, k, per_task=2)


def test_a_row_a_step_that_moved(run, base):
    lora = run("lora")
    rows = table([lora], base)
    assert [(row["method"], row["step"], row["modules"]) for row in rows] == [
        ("lora", 5, 2),
        ("lora", 10, 2),
    ]
    for row in rows:
        assert tuple(row) == dynamics.COLUMNS
        updates = checkpoint.read(lora.path / f"checkpoint-{row['step']}")
        spectra = [decompose.singular_values(update) for update in updates]
        want = np.mean([metrics.effective_rank(s) for s in spectra])
        assert row["effective_rank_k"] == pytest.approx(want)
        assert row["frobenius_norm"] == pytest.approx(np.mean([np.linalg.norm(s) for s in spectra]))


def test_the_loss_of_a_step_is_that_of_the_base_with_its_update(run, base):
    lora = run("lora")
    examples = suite.load("validation", 2)
    rows = table([lora], base)
    for row in rows:
        model, tokenizer = delta.load_base(str(base))
        for update in checkpoint.read(lora.path / f"checkpoint-{row['step']}"):
            weight = model.get_submodule(update.name).weight
            weight.data += torch.from_numpy(update.dense()).to(weight.dtype)
        want = slow_loss(model, tokenizer, examples)
        assert row["validation_loss"] == pytest.approx(want, rel=1e-5)
    assert rows[0]["validation_loss"] != pytest.approx(rows[1]["validation_loss"], rel=1e-3)


def test_weights_are_as_before_however_it_ends(base, rng):
    model, _ = delta.load_base(str(base))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    dW = rng.standard_normal((D, D))
    update = DenseUpdate(Q, dW.shape, lambda: dW)

    def moved():
        state = model.state_dict()
        return [name for name in before if not torch.equal(before[name], state[name])]

    with dynamics._tuned(model, [update]):
        assert moved() == [f"{Q}.weight"]
        weight = model.get_submodule(Q).weight
        want = before[f"{Q}.weight"].double() + torch.from_numpy(dW)
        assert torch.equal(weight, want.to(weight.dtype))
    assert moved() == []
    with pytest.raises(RuntimeError, match="interrupted"), dynamics._tuned(model, [update]):
        raise RuntimeError("interrupted")
    assert moved() == []
    # An update that fails to be read leaves none of those before it behind.
    broken = DenseUpdate(V, dW.shape, lambda: pytest.fail("cannot be read"))
    with pytest.raises(pytest.fail.Exception), dynamics._tuned(model, [update, broken]):
        pass
    assert moved() == []


def test_methods_are_compared_within_the_smaller_capacity(run, base):
    rows = table([run("a", r=4), run("b", r=2)], base, k=2)
    assert {row["k"] for row in rows} == {2}
    assert all(row["effective_rank_k"] <= 2 for row in rows)


def test_full_fine_tuning_is_the_difference_from_the_base(base, tmp_path, rng):
    dW = rng.standard_normal((D, D)).astype("f4")
    W0 = load_file(base / "model.safetensors")
    for step in (2, 4):
        path = tmp_path / "full" / f"checkpoint-{step}"
        path.mkdir(parents=True)
        moved = W0 | {f"{Q}.weight": W0[f"{Q}.weight"] + step * dW}
        save_file(moved, path / "model.safetensors")
    rows = table([run_of(tmp_path / "full", "full", 0)], base)
    assert [(row["step"], row["modules"]) for row in rows] == [(2, 1), (4, 1)]
    sizes = [row["frobenius_norm"] for row in rows]
    np.testing.assert_allclose(sizes, np.linalg.norm(dW) * np.array([2, 4]), rtol=1e-5)
    model, tokenizer = delta.load_base(str(base))
    model.get_submodule(Q).weight.data += 4 * torch.from_numpy(dW)
    want = slow_loss(model, tokenizer, suite.load("validation", 2))
    assert rows[1]["validation_loss"] == pytest.approx(want, rel=1e-5)


def test_a_run_without_steps_has_no_row(write_adapter, lora_tensors, base):
    without_steps = run_of(write_adapter(lora_tensors(Q, d_out=D, d_in=D)), "lora", 0)
    assert table([without_steps], base) == []
    assert table([], base) == []


def test_a_broken_step_is_an_error(run, base):
    lora = run("lora")
    (lora.path / "checkpoint-5" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="checkpoint-5"):
        table([lora], base)
