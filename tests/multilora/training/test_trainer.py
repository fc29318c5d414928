"""The Trainer's learning rates, and which arguments count as changed."""

import pytest
import torch
from tiny_runs import arguments_of, settings_of

from analysis import UserError
from multilora import delta
from multilora.training import prepare
from multilora.training import trainer as trainer_of


@pytest.fixture(scope="module")
def model_path(tiny_base):
    return str(tiny_base)


# Rates.


def groups_of(model_path, tmp_path, method, weight_decay=0.0, **changes):
    """(trainer, {name of a parameter: its rate at the start})."""
    settings = settings_of(model_path, method, **changes)
    torch.manual_seed(0)
    model = prepare.prepare(delta.load_base(model_path)[0], settings)
    ratios = {"lora_B": settings.b_lr_ratio, "multilora_s": settings.scale_lr_ratio}
    trainer = trainer_of.AdapterTrainer(
        model, arguments_of(tmp_path, weight_decay=weight_decay), lr_ratios=ratios
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    name_of = {p: n for n, p in model.named_parameters()}
    groups = trainer.optimizer.param_groups
    rates = {name_of[p]: g["initial_lr"] for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(rates)  # none stands twice
    assert rates.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert {g["weight_decay"] for g in groups} == {weight_decay}
    return trainer, rates


@pytest.mark.parametrize("method", ["lora", "multilora", "full"])
def test_without_ratios_every_parameter_has_the_one_rate(model_path, tmp_path, method):
    _, rates = groups_of(model_path, tmp_path, method)
    assert set(rates.values()) == {0.01}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("method", "part", "changes"),
    [("lora+", "lora_B", {}), ("multilora", "multilora_s", {"scale_lr_ratio": 4.0})],
)
def test_ratios_are_groups_of_their_own(model_path, tmp_path, method, part, changes, weight_decay):
    trainer, rates = groups_of(model_path, tmp_path, method, weight_decay, **changes)
    assert {rate for name, rate in rates.items() if part in name} == {0.04}
    assert {rate for name, rate in rates.items() if part not in name} == {0.01}
    for group in trainer.optimizer.param_groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    assert sorted(set(trainer.lr_scheduler.get_last_lr())) == pytest.approx([0.0075, 0.03])


# Arguments.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_steps": 0}, "max_steps is 0; expected at least 1"),
        (
            {"max_steps": -1, "num_train_epochs": 0},
            "num_train_epochs is 0; expected a number above",
        ),
        ({"max_steps": -1, "num_train_epochs": -1.0}, "num_train_epochs is -1.0"),
        ({"max_steps": -1, "num_train_epochs": float("nan")}, "num_train_epochs is nan"),
        ({"max_steps": -1, "num_train_epochs": float("inf")}, "num_train_epochs is inf"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
    ],
)
def test_numbers_that_train_nothing_are_refused(tmp_path, changes, words):
    given = trainer_of.TrainArguments(output_dir=str(tmp_path), use_cpu=True)
    trainer_of.check(given)
    for name, value in changes.items():
        setattr(given, name, value)
    with pytest.raises(UserError, match=words):
        trainer_of.check(given)


def test_a_batch_counts_the_rows_of_all_accumulation_steps(tmp_path):
    given = arguments_of(tmp_path, gradient_accumulation_steps=3)
    assert trainer_of.batch_of(given) == 12


def test_arguments_that_differ_from_a_default_are_listed_without_secrets(tmp_path):
    given = trainer_of.TrainArguments(
        output_dir=str(tmp_path), use_cpu=True, hub_token="secret", adam_beta2=0.98, seed=3
    )
    changed = trainer_of.changed(given)
    assert changed["adam_beta2"] == 0.98
    assert changed["max_steps"] == 1500  # our default, which is not transformers'
    assert "weight_decay" not in changed
    assert not any("token" in name for name in changed)


def test_arguments_without_effect_on_the_result_do_not_differ(tmp_path):
    usual = {"output_dir": str(tmp_path), "seed": 5, "save_strategy": "steps", "save_steps": 7}
    given = trainer_of.TrainArguments(**usual, disable_tqdm=True)
    assert trainer_of.differing(given) == {}
    given = trainer_of.TrainArguments(**usual, max_steps=10, warmup_steps=0, bf16=False)
    assert trainer_of.differing(given) == {"max_steps": 10, "warmup_steps": 0}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_loss_by_example_does_not_depend_on_how_a_step_is_cut(tmp_path, accumulated):
    """Four examples in one batch or in two give the mean of the four; tokens would be weighted."""
    from tiny_models import llama

    from multilora.tasks import answers
    from multilora.tasks.encoding import Encoded, collate

    rows = [Encoded([1, 2, 3, 4, 5], n) for n in (1, 2, 3, 4)]
    arguments = trainer_of.TrainArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4 // accumulated, max_steps=1,
        gradient_accumulation_steps=accumulated, use_cpu=True, logging_steps=1, disable_tqdm=True,
        learning_rate=1e-3, save_strategy="no",
    )  # fmt: skip
    model = llama()
    batch = collate(rows, 0)
    with torch.no_grad(), answers.only(model.lm_head, answers.predicted(batch["labels"])):
        logits = model(input_ids=batch["input_ids"]).logits
    want = answers.sum_of_means(logits, batch["labels"]).item() / 4
    fitted = trainer_of.AdapterTrainer(
        model, arguments, train_dataset=rows, data_collator=lambda b: collate(b, 0),
        lr_ratios={}, by_example=True,
    )  # fmt: skip
    fitted.train()
    assert fitted.state.log_history[0]["loss"] == pytest.approx(want, rel=1e-5)
