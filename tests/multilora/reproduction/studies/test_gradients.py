"""Cosines of gradients, against one backward pass per example in float64."""

import itertools

import numpy as np
import pytest
import torch
from task_files import ALPACA, QUESTIONS, write_csv, write_json

from multilora import delta
from multilora.reproduction.studies import gradients
from multilora.tasks import data, encoding


@pytest.fixture
def tasks(tmp_path):
    rows = [row | {"instruction": f"Do {word}."} for word in ("this", "that") for row in ALPACA[:2]]
    write_json(tmp_path / "a.json", rows)
    write_csv(tmp_path / "mmlu" / "dev" / "anatomy_dev.csv", QUESTIONS)
    return f"a=alpaca:{tmp_path}/a.json,m=mmlu:{tmp_path}/mmlu"


def by_hand(base, examples, context):
    """The gradient of every linear weight, summed over examples, in float64."""
    model, tokenizer = delta.load_base(str(base))
    model.double()
    weights = [layer.weight for _, layer in delta.matrices(model)]
    total = 0
    for row in encoding.encode_all(tokenizer, examples, context):
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
        wanted = torch.tensor(row.ids[-row.answer :])
        loss = torch.nn.functional.cross_entropy(logits[-row.answer :], wanted)
        grads = torch.autograd.grad(loss, weights)
        total = total + torch.cat([g.ravel() for g in grads])
    return total.numpy()


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_cosines_are_those_of_the_gradients_and_of_halves_on_the_diagonal(tasks, tiny_base):
    rows = gradients.table(tiny_base, tasks, per_task=4, context=48)
    examples = data.load(tasks).split("train", 4)
    own = {t: [e for e in examples if e.task == t] for t in ("a", "m")}
    assert min(map(len, own.values())) >= 2
    halves = {t: [by_hand(tiny_base, of[i::2], 48) for i in (0, 1)] for t, of in own.items()}
    pairs = list(itertools.combinations_with_replacement(("a", "m"), 2))
    assert [(row["task_a"], row["task_b"]) for row in rows] == pairs
    for row, (a, b) in zip(rows, pairs, strict=True):
        want = cosine(*halves[a]) if a == b else cosine(sum(halves[a]), sum(halves[b]))
        assert row["cosine"] == pytest.approx(want, abs=1e-4)


def test_a_gradient_of_zero_has_no_direction(tasks, tiny_base, monkeypatch):
    monkeypatch.setattr(gradients, "_gradient", lambda *given: torch.zeros(5))
    rows = gradients.table(tiny_base, tasks, per_task=2, context=48)
    assert [row["cosine"] for row in rows] == [None] * 3
