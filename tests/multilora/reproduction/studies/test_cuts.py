"""Cut updates, against the obvious way: the trained checkpoint, and a truncated SVD put in."""

import functools
import json
import statistics

import numpy as np
import pytest
import scipy.linalg
import torch
from transformers.pytorch_utils import Conv1D

from analysis import checkpoint
from analysis.update import LowRankUpdate
from multilora import delta, train
from multilora.reproduction.studies import cuts
from multilora.reproduction.trained import trained
from multilora.tasks.builtin import suite
from multilora.tasks.encoding import index_of, tasks_of
from multilora.tasks.example import FAMILIES

PER_TASK = 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_base):
    """Method → directory of a short run at a rate that moves every task, made when asked for."""
    root = tmp_path_factory.mktemp("cuts")

    def run(method):
        out = root / method
        if not out.is_dir():
            given = {"model": tiny_base, "method": method, "max_steps": 5, "learning_rate": 0.05}
            given |= {"per_task": 4, "per_task_scored": PER_TASK, "save_strategy": "no"}
            given |= {"per_device_train_batch_size": 4, "output_dir": out, "disable_tqdm": True}
            assert train.main([f"--{k}={v}" for k, v in (given | {"use_cpu": True}).items()]) == 0
        return out

    return run


@pytest.fixture
def base(tiny_base):
    return delta.load_base(str(tiny_base))


@pytest.fixture
def examples():
    return suite.load("test", PER_TASK)


@pytest.fixture
def fine(monkeypatch):
    """Instead of right answers a number that the smallest change moves: of each task the loss."""

    def losses(model, tokenizer, examples, decode=True):
        losses_of = {}
        for example in examples:
            ids = tokenizer(example.prompt, return_tensors="pt", add_special_tokens=False).input_ids
            with torch.no_grad():
                losses_of[example.task] = float(model(input_ids=ids, labels=ids).loss.double())
        return {"tasks": losses_of, "nll": {"tasks": losses_of}}

    monkeypatch.setattr(cuts, "score", losses)
    return losses


def by_place(rows):
    return {(row["kind"], row["k"]): row for row in rows}


def numbers(tasks):
    """Means by family and over families, of a mean by task."""
    families = {}
    for task, value in tasks.items():
        families.setdefault(f"score_{suite.FAMILY_OF[task]}", []).append(value)
    means = {name: statistics.fmean(values) for name, values in families.items()}
    return means | {"score": statistics.fmean(means.values())}


def of(row):
    return {name: value for name, value in row.items() if name.startswith("score")}


@pytest.mark.parametrize("method", ["lora", "multilora", "full", "mtllora", "expert"])
def test_the_ends_are_the_base_and_the_run(runs, base, examples, fine, method):
    model, tokenizer = base
    start = numbers(fine(model, tokenizer, examples)["tasks"])
    rows = by_place(cuts.curve(checkpoint.read(runs(method)), model, tokenizer, examples))
    capacity = max(k for _, k in rows)
    assert of(rows["keep", 0]) == of(rows["remove", capacity]) == start
    tuned = delta.load_tuned(delta.load_base(model.name_or_path)[0], runs(method))
    want = numbers(of_tasks(tuned, tokenizer, examples, fine))
    for end in (rows["keep", capacity], rows["remove", 0]):
        assert of(end) == pytest.approx(want, rel=1e-5)
        assert of(end) != pytest.approx(start, rel=1e-3)
    assert numbers(fine(model, tokenizer, examples)["tasks"]) == start  # its weights are its own


def of_tasks(tuned, tokenizer, examples, fine):
    """The numbers of a loaded checkpoint, which is told the tasks where it has an update each."""
    names = tasks_of(tuned)
    losses_of = {}
    for example in examples:
        ids = {"multilora_task_ids": torch.tensor([index_of(example.task, names)])} if names else {}
        losses_of |= fine(functools.partial(tuned, **ids), tokenizer, [example])["tasks"]
    return losses_of


@pytest.mark.parametrize("method", ["multilora", "full"])
def test_between_the_ends_it_is_the_truncated_svd(runs, base, examples, fine, method):
    model, tokenizer = base
    updates = list(checkpoint.read(runs(method)))
    rows = by_place(cuts.curve(updates, model, tokenizer, examples, counts=(3,)))
    for kind, chosen in (("keep", slice(0, 3)), ("remove", slice(3, None))):
        other, _ = delta.load_base(model.name_or_path)
        for update in updates:
            U, s, Vh = scipy.linalg.svd(update.dense(), full_matrices=False)
            dW = U[:, chosen] @ np.diag(s[chosen]) @ Vh[chosen]
            weight = other.get_submodule(update.name).weight
            weight.data = (weight.data.double() + torch.from_numpy(dW)).float()
        want = numbers(fine(other, tokenizer, examples)["tasks"])
        assert of(rows[kind, 3]) == pytest.approx(want, rel=1e-5)
    assert of(rows["keep", 3]) != pytest.approx(of(rows["remove", 3]), rel=1e-3)


def test_the_scores_of_the_whole_update_are_those_of_the_run(runs, tiny_base):
    """With right answers counted, as it is used: a table of two runs."""
    paths = [runs("lora"), runs("full")]
    rows = cuts.table([trained(path) for path in paths], tiny_base, per_task=PER_TASK)
    names = [f"{by}{of}" for by in ("score", "nll") for of in (*map("_{}".format, FAMILIES), "")]
    assert {tuple(row) for row in rows} == {("method", "seed", "kind", "k", *names)}
    for path in paths:
        facts = json.loads((path / "run.json").read_text())
        of_run = [row for row in rows if row["method"] == facts["method"]]
        assert {row["seed"] for row in of_run} == {facts["seed"]}
        ends = by_place(of_run)
        want = facts["scores"]["test"]
        got = ends["remove", 0]
        assert got["score"] == pytest.approx(want["mean"])
        assert got["score_knowledge"] == pytest.approx(want["families"]["knowledge"])
        assert got["nll"] == pytest.approx(want["nll"]["mean"], rel=1e-5)
        assert got["nll_instruction"] == pytest.approx(want["nll"]["families"]["instruction"])
        assert of(got) != of(ends["keep", 0])  # else nothing was put in, or nothing learned


def test_counts_end_at_the_capacity(runs, base, examples, fine):
    model, tokenizer = base
    rows = cuts.curve(
        checkpoint.read(runs("lora")), model, tokenizer, examples, counts=(0, 2, 5, 999)
    )
    capacity = next(checkpoint.read(runs("lora"))).capacity
    assert [row["k"] for row in rows if row["kind"] == "keep"] == [0, 2, 5, capacity]


def test_rlora_is_taken_at_the_mean_of_its_heads(runs, base, examples, fine):
    model, tokenizer = base
    updates = list(checkpoint.read(runs("rlora")))
    assert len({update.part for update in updates}) > 1
    means = [update for update in updates if update.part == "mean"]
    a, b = (cuts.curve(u, model, tokenizer, examples, counts=(4,)) for u in (updates, means))
    assert a == b


def test_a_weight_that_is_stored_turned_gets_its_update_turned(monkeypatch, examples, rng):
    model = torch.nn.ModuleDict({"c": Conv1D(6, 4)})
    W0 = model["c"].weight.data.clone()
    B, A = rng.standard_normal((6, 2)), rng.standard_normal((2, 4))
    seen = []

    def record(model, tokenizer, examples, decode):
        seen.append(model["c"].weight.data.clone())
        zeros = {example.task: 0.0 for example in examples}
        return {"tasks": zeros, "nll": {"tasks": zeros}}

    monkeypatch.setattr(cuts, "score", record)
    cuts.curve([LowRankUpdate("c", B, A)], model, None, examples, counts=())
    want = W0.double() + torch.from_numpy((B @ A).T)
    torch.testing.assert_close(seen[0].double(), want, rtol=0, atol=1e-6)
    assert torch.equal(model["c"].weight.data, W0)


def test_parts_that_are_no_tasks_are_refused(runs, base, examples):
    model, tokenizer = base
    heads = [u for u in checkpoint.read(runs("rlora")) if u.part != "mean"]
    with pytest.raises(ValueError, match=r"parts 'head1'.* or one for each task, as 'reverse'"):
        cuts.curve(heads, model, tokenizer, examples)


def test_an_update_of_another_model_is_refused(base, examples, write_adapter, lora_tensors):
    for module, why in (("model.layers.9.q", "not a module"), ("model.layers.0.mlp.up_proj", "is")):
        path = write_adapter(lora_tensors(module), name=module)
        with pytest.raises(ValueError, match=f"{module} is.*{why}"):
            cuts.curve(checkpoint.read(path), *base, examples)


def test_the_model_has_its_weights_again_after_an_error(runs, base, examples, monkeypatch):
    model, tokenizer = base
    before = {name: p.clone() for name, p in model.named_parameters()}

    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cuts, "score", fails)
    with pytest.raises(KeyboardInterrupt):
        cuts.curve(checkpoint.read(runs("lora")), model, tokenizer, examples)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
