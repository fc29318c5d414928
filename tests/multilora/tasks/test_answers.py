"""The loss per example, from logits at the answers only, against all logits and one example."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import llama, trained

from multilora.methods.config import MtlLoraConfig
from multilora.tasks import answers
from multilora.tasks.encoding import IGNORED, Encoded, collate

ROWS = [Encoded([1, 2, 3, 4, 5], 2), Encoded([6, 7, 8], 1), Encoded([9, 10, 11, 12], 3)]


def by_hand(model, row):
    """The mean loss of one example, from all its logits, without padding."""
    ids = torch.tensor([row.ids])
    logits = model(input_ids=ids).logits[0, :-1]
    return F.cross_entropy(logits[-row.answer :], ids[0, -row.answer :])


def test_the_sum_is_that_of_the_examples_alone_and_so_is_its_gradient():
    model, batch = llama(), collate(ROWS, pad=0)
    labels = batch.pop("labels")
    with answers.only(model.lm_head, answers.predicted(labels)):
        logits = model(**batch).logits
    assert logits.shape == (6, 32)
    got = answers.sum_of_means(logits, labels)
    (gradient,) = torch.autograd.grad(got, [model.model.embed_tokens.weight])
    want = sum(by_hand(model, row) for row in ROWS)
    (wanted,) = torch.autograd.grad(want, [model.model.embed_tokens.weight])
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient, wanted)


def test_an_example_without_an_answer_counts_nothing():
    labels = torch.tensor([[IGNORED, IGNORED, IGNORED], [IGNORED, 3, IGNORED]])
    assert answers.predicted(labels).tolist() == [[False] * 3, [True, False, False]]
    logits = torch.zeros(1, 8)
    assert answers.sum_of_means(logits, labels).item() == pytest.approx(2.0794, abs=1e-4)
    assert answers.count([{"labels": labels}, {"labels": labels[:1]}]) == 3


def test_the_head_sees_everything_again_afterwards_also_after_an_error():
    model, ids = llama(), torch.tensor([[1, 2, 3]])
    positions = torch.tensor([[False, True, False]])
    with pytest.raises(KeyError), answers.only(model.lm_head, positions):
        raise KeyError
    assert model(input_ids=ids).logits.shape == (1, 3, 32)


def test_it_works_through_an_adapter_that_takes_task_ids():
    config = MtlLoraConfig(
        r=2, n=2, tasks=["a", "b"], target_modules=["q_proj"], task_type="CAUSAL_LM"
    )
    model = trained(llama(), config)
    rows = [row._replace(task=i % 2) for i, row in enumerate(ROWS)]
    batch = collate(rows, pad=0)
    labels = batch.pop("labels")
    whole = model(**batch).logits[answers.predicted(labels)]
    with answers.only(model.get_output_embeddings(), answers.predicted(labels)):
        torch.testing.assert_close(model(**batch).logits, whole)
