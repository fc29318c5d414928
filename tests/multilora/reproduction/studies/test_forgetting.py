"""Losses on all tasks and on text, against scoring the base and the tuned model by themselves."""

import pytest
from finished import run_of
from task_files import ALPACA, QUESTIONS, write_csv, write_json

from multilora import cuts, delta
from multilora.reproduction.studies import forgetting
from multilora.reproduction.studies.forgetting import HeldOut
from multilora.tasks import data, scoring

TEXT = "the dog sees the cat and the cat sees the dog"


@pytest.fixture
def tasks(tmp_path):
    """The specification of two families, and that of the first of them alone."""
    write_json(tmp_path / "test.json", ALPACA)
    write_csv(tmp_path / "mmlu" / "test" / "anatomy_test.csv", QUESTIONS)
    alone = f"alpaca:{tmp_path}/test.json"
    return f"{alone},mmlu:{tmp_path}/mmlu", alone


@pytest.fixture
def lora(write_adapter, lora_tensors, tiny_base):
    """A run of one family on the small base, whose ΔW is not zero."""
    name = "model.layers.0.self_attn.q_proj"
    weight = delta.load_base(str(tiny_base))[0].get_submodule(name).weight
    tensors = lora_tensors(name, d_out=weight.shape[0], d_in=weight.shape[1], r=4)
    return write_adapter({key: 3 * t for key, t in tensors.items()}, r=4)


def test_base_and_run_are_measured_on_all_tasks(tasks, lora, tiny_base):
    both, alone = tasks
    run = run_of(lora, "lora", 3, tasks=alone)
    base, tuned = forgetting.table([None, run], tiny_base, HeldOut(both, 2, TEXT))
    assert (base["method"], base["seed"], base["trained_on"]) == ("base", None, "")
    assert (tuned["method"], tuned["seed"], tuned["trained_on"]) == ("lora", 3, "instruction")
    items = data.load(both).split("test", 2)
    for row in (base, tuned):
        model, tokenizer = delta.load_base(str(tiny_base))
        model = delta.load_tuned(model, lora) if row is tuned else model
        losses = scoring.score(model, tokenizer, items, decode=False)["nll"]
        assert row["nll"] == losses["mean"]
        assert row["nll_knowledge"] == losses["families"]["knowledge"]
        assert row["nll_understanding"] is None
        ids = tokenizer(TEXT, add_special_tokens=False).input_ids
        assert row["text"] == cuts.of_text(model, ids, forgetting.WINDOW)["text"]
    assert tuned["nll_knowledge"] != pytest.approx(base["nll_knowledge"], rel=1e-3)
    assert tuned["text"] != pytest.approx(base["text"], rel=1e-3)


def test_without_a_text_its_loss_is_undefined(tasks, tiny_base):
    (base,) = forgetting.table([None], tiny_base, HeldOut(tasks[0], 1))
    assert base["text"] is None
