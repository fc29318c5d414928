from contextlib import contextmanager, nullcontext

import pytest
import torch
import transformers
from torch import nn

from multilora.methods.task_ids import KEY, TaskIds, checkpointed, recomputed


@pytest.mark.parametrize("ids", [[0, 2, 1], (0, 2, 1), torch.tensor([0, 2, 1], dtype=torch.uint8)])
def test_whole_numbers_are_taken_one_per_row(ids):
    checked = TaskIds.of(ids)
    assert checked.ids.dtype == torch.int64
    assert checked.largest == 2
    assert checked.for_rows(3, tasks=3).tolist() == [0, 2, 1]
    assert checked.for_rows(3, tasks=9).tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([0.0, 1.0], rf"{KEY} is \(2,\), torch.float32; expected a LongTensor \(batch,\)"),
        (torch.tensor([1j]), r"is \(1,\), torch.complex64"),
        ([True, False], r"is \(2,\), torch.bool"),
        ([[0, 1]], r"is \(1, 2\), torch.int64"),
        (3, r"is \(\), torch.int64"),
        ([], r"is \(0,\), torch.float32"),
        (torch.empty(0, dtype=torch.long), r"is \(0,\), torch.int64; expected .* one whole number"),
        ([0, -1], "holds -1; expected indices of tasks, from 0"),
    ],
)
def test_what_cannot_be_indices_is_refused(ids, words):
    with pytest.raises(ValueError, match=words):
        TaskIds.of(ids)


@pytest.mark.parametrize(
    ("rows", "tasks", "words"),
    [
        (2, 2, f"{KEY} holds 2; expected 0 to 1, indices of 2 tasks"),
        (1, 3, "has 2 entries for 1 rows; expected one per row"),
        (3, 3, "has 2 entries for 3 rows"),
        (4, 3, "has 2 entries for 4 rows.*such as OPT"),
        (0, 3, "has 2 entries for 0 rows"),
    ],
)
def test_ids_that_do_not_fit_the_rows_are_refused(rows, tasks, words):
    with pytest.raises(ValueError, match=words):
        TaskIds.of([2, 0]).for_rows(rows, tasks=tasks)


def test_ids_repeat_for_consecutive_rows():
    ids = TaskIds.of([2, 0], repeat=True)
    assert ids.for_rows(2, tasks=3).tolist() == [2, 0]
    assert ids.for_rows(6, tasks=3).tolist() == [2, 2, 2, 0, 0, 0]
    with pytest.raises(ValueError, match="has 2 entries for 5 rows"):
        ids.for_rows(5, tasks=3)


def llama(reentrant):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_layers_run_again_inside_the_context_of_their_forward_pass(reentrant):
    """The name of the function is private to transformers: this fails when it changes."""
    model, inside, seen = llama(reentrant), [], []

    @contextmanager
    def context(name):
        inside.append(name)
        try:
            yield
        finally:
            inside.pop()

    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: seen.append(tuple(inside)))
    layers = checkpointed(model)
    assert {type(layer).__name__ for layer in model.model.layers} <= {
        type(layer).__name__ for layer in layers
    }
    originals = [layer._gradient_checkpointing_func for layer in layers]
    ids = torch.arange(6)[None]
    losses = []
    for name in ("first", "second"):
        with recomputed(layers, lambda name=name: context(name)):
            losses.append(model(input_ids=ids, labels=ids).loss)
        assert [layer._gradient_checkpointing_func for layer in layers] == originals
    assert seen == [("first",)] * 2 + [("second",)] * 2  # checkpointing itself runs them inside
    seen.clear()
    sum(losses).backward()
    assert sorted(seen) == [("first",)] * 2 + [("second",)] * 2
    assert inside == []


def test_the_functions_are_restored_after_an_error():
    model = llama(reentrant=False)
    layers = checkpointed(model)
    originals = [layer._gradient_checkpointing_func for layer in layers]

    def stop():
        with recomputed(layers, nullcontext):
            assert [layer._gradient_checkpointing_func for layer in layers] != originals
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert [layer._gradient_checkpointing_func for layer in layers] == originals


def test_a_model_without_checkpointing_has_no_such_modules():
    assert checkpointed(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == []
