import json
from contextlib import nullcontext

import pytest
import torch
from banks import (
    TASKS,
    alone,
    base_model,
    batch,
    bits,
    close,
    gpt2,
    llama,
    lora,
    make_bank,
    move,
    of_task,
    same,
    trained,
)
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from analysis import checkpoint
from multilora import ExpertBank
from multilora.methods import experts

# Forward.


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_the_start_the_output_is_the_bases_to_the_last_bit(build, dtype):
    inputs = batch()
    want = base_model(build, dtype).eval()(input_ids=inputs["input_ids"]).logits
    bank = make_bank(build, dtype, moved=False)
    ids = inputs["multilora_task_ids"]
    assert torch.equal(bank.eval()(inputs["input_ids"], multilora_task_ids=ids).logits, want)
    for task in TASKS:
        bank.choose(task)
        assert torch.equal(bank(inputs["input_ids"]).logits, want)
    move(bank)
    assert not torch.equal(bank(inputs["input_ids"]).logits, want)


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("training", [False, True])
def test_a_mixed_batch_is_each_row_by_its_own_expert(build, training):
    bank = make_bank(build, torch.float64).train(training)
    inputs = batch()
    ids = inputs.pop("multilora_task_ids")
    got = bank(**inputs, multilora_task_ids=ids).logits
    outputs = {}
    for i, task in enumerate(TASKS):
        bank.choose(task)
        outputs[i] = bank(**inputs).logits
    want = torch.stack([outputs[int(i)][row] for row, i in enumerate(ids)])
    close(got, want, 1e-12)
    other = bank(**inputs, multilora_task_ids=(ids + 1) % 3).logits.detach()
    assert float((other - want.detach()).abs().amax((1, 2)).min()) > 0.01


def test_the_batchs_ids_come_before_the_chosen_expert():
    bank = make_bank().eval()
    inputs = batch()
    got = bank(**inputs).logits
    bank.choose("code")
    assert torch.equal(bank(**inputs).logits, got)


def test_with_adapters_disabled_the_base_answers():
    bank = make_bank().eval()
    inputs = batch()
    want = base_model().eval()(input_ids=inputs["input_ids"]).logits
    with bank.disable_adapter():
        assert torch.equal(bank(inputs["input_ids"]).logits, want)
        assert torch.equal(bank(**inputs).logits, want)
    assert not torch.equal(bank(**inputs).logits, want)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (None, r"has no multilora_task_ids, and no expert is chosen; .* \['law', 'law_hard'"),
        (torch.tensor([0, 1, 3]), r"holds 3; expected 0 to 2"),
        (torch.tensor([0, -1, 2]), r"holds -1; expected indices of tasks, from 0"),
        (torch.tensor([0, 1]), r"has 2 entries for 3 rows; expected one per row"),
        (torch.tensor([[0], [1], [2]]), r"is \(3, 1\)"),
        (torch.tensor([0.0, 1.0, 2.0]), r"is \(3,\), torch.float32; expected a LongTensor"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_ids_that_are_missing_or_wrong_are_refused(ids, words, training):
    bank = make_bank().train(training)
    inputs = batch(3)["input_ids"]
    with pytest.raises(ValueError, match=words):
        bank(inputs, multilora_task_ids=ids)
    with pytest.raises(ValueError, match=words):
        bank.generate(inputs, multilora_task_ids=ids, max_new_tokens=1)


# Training.


@pytest.mark.parametrize("build", [llama, gpt2])
def test_each_expert_gets_the_gradient_of_its_own_rows_alone(tmp_path, build):
    bank = make_bank(build).train()
    inputs = batch()
    bank(**inputs).loss.backward()
    for i, task in enumerate(TASKS):
        model = alone(bank, task, tmp_path, build)
        model(**of_task(inputs, i)).loss.backward()
        got, want = list(bank.parameters_of(task)), trained(model)
        assert len(got) == len(want) > 10
        assert all(torch.equal(a.detach(), b.detach()) for a, b in zip(got, want, strict=True))
        for a, b in zip(got, want, strict=True):
            close(a.grad, b.grad, 1e-6)
    # The control: the gradient of the mean over all rows is another.
    model = alone(bank, "law", tmp_path, build)
    (model(**of_task(inputs, 0)).loss * 0.9).backward()
    with pytest.raises(AssertionError):
        close(next(bank.parameters_of("law")).grad, trained(model)[0].grad, 1e-2)


def test_the_loss_is_the_models_own_over_the_batch():
    bank = make_bank(dtype=torch.float64)
    inputs = batch()
    want = bank.eval()(**inputs).loss
    got = bank.train()(**inputs)
    close(got.loss, want, 1e-6)  # the loss is taken in float32
    assert bank(inputs["input_ids"], multilora_task_ids=inputs["multilora_task_ids"]).loss is None
    with pytest.raises(ValueError, match="no token of the batch has a label"):
        bank(**inputs | {"labels": torch.full((7, 10), -100)})


def test_rows_without_labels_leave_their_expert_alone():
    bank = make_bank().train()
    inputs = batch()
    inputs["labels"][inputs["multilora_task_ids"] == 1] = -100
    loss = bank(**inputs).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None for p in bank.parameters_of("law_hard"))
    assert all(p.grad is not None for p in bank.parameters_of("law"))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_many_steps_are_those_of_each_alone(tmp_path, optimizer):
    """Momentum and decay too: an expert without rows in a batch keeps its bits."""

    def make(parameters):
        if optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)

    bank = make_bank().train()
    models = {task: alone(bank, task, tmp_path) for task in TASKS}
    together = make([p for p in bank.parameters() if p.requires_grad])
    apart = {task: make(trained(model)) for task, model in models.items()}
    for step in range(6):
        inputs = batch(seed=step)
        absent = step % 3
        kept = inputs["multilora_task_ids"] != absent
        inputs = {k: v[kept] for k, v in inputs.items()}
        before = {task: bits(bank, task) for task in TASKS}
        together.zero_grad()
        bank(**inputs).loss.backward()
        together.step()
        for i, task in enumerate(TASKS):
            assert same(bits(bank, task), before[task]) == (i == absent)
            if i != absent:
                apart[task].zero_grad()
                models[task](**of_task(inputs, i)).loss.backward()
                apart[task].step()
    for task, model in models.items():
        for a, b in zip(bank.parameters_of(task), trained(model), strict=True):
            close(a.detach(), b.detach(), 1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_gradient_checkpointing_computes_again_with_the_same_expert(build, reentrant, monkeypatch):
    inputs = batch()

    def gradients(checkpointing):
        bank = make_bank(build).train()
        if checkpointing:
            bank.enable_input_require_grads()
            bank.gradient_checkpointing_enable({"use_reentrant": reentrant})
        loss = bank(**inputs).loss
        bank.choose("code")  # backward must not look at what is chosen by then
        loss.backward()
        return [p.grad for task in TASKS for p in bank.parameters_of(task)]

    want = gradients(False)
    assert same(gradients(True), want)
    monkeypatch.setattr(experts, "recomputed", lambda *_: nullcontext())
    try:
        broken = gradients(True)
    except RuntimeError:
        return
    assert any(a is None or not torch.equal(a, b) for a, b in zip(broken, want, strict=True))


def test_a_chosen_expert_is_trained_by_batches_without_ids(tmp_path):
    bank = make_bank().train()
    bank.choose("law_hard")
    inputs = of_task(batch(), 1)
    bank(**inputs).loss.backward()
    model = alone(bank, "law_hard", tmp_path)
    model(**inputs).loss.backward()
    for a, b in zip(bank.parameters_of("law_hard"), trained(model), strict=True):
        close(a.grad, b.grad, 1e-6)
    assert all(p.grad is None for task in ("law", "code") for p in bank.parameters_of(task))


def test_accumulated_batches_are_one_with_all_the_rows():
    inputs = batch()
    parts = [{k: v[rows] for k, v in inputs.items()} for rows in (slice(0, 2), slice(2, 7))]
    whole, accumulated, plain = (make_bank(dtype=torch.float64).train() for _ in range(3))
    whole(**inputs).loss.backward()
    counts = experts.count_labels(parts, 3)
    labels = (inputs["labels"][:, 1:] != -100).sum(1)
    tasks = inputs["multilora_task_ids"]
    assert counts.tolist() == [int(labels[tasks == i].sum()) for i in range(3)]
    values = []
    for part in parts:
        given = {"multilora_label_counts": counts, "num_items_in_batch": counts.sum()}
        loss = accumulated(**part, **given).loss
        loss.backward()
        values.append(loss.detach())
        plain(**part).loss.backward()
    close(sum(values), whole(**inputs).loss.detach(), 1e-6)
    grads = [[p.grad for p in bank.parameters_of("law")] for bank in (whole, accumulated, plain)]
    for want, got in zip(*grads[:2], strict=True):
        close(got, want)
    assert not torch.allclose(grads[0][0], grads[2][0], rtol=1e-2)


def test_a_plain_trainers_accumulation_is_the_larger_batch():
    """Trainer says how many labels a step has in all; of one task the loss is their mean."""
    inputs = of_task(batch(), 0)
    inputs["labels"][2, :8] = -100
    sizes = [int((labels[1:] != -100).sum()) for labels in inputs["labels"]]
    assert len(set(sizes)) == len(sizes) == 3  # so that a mean of means would differ
    whole, accumulated, means = (make_bank(dtype=torch.float64).train() for _ in range(3))
    for bank in (whole, accumulated, means):
        bank.choose("law")
    whole(**inputs).loss.backward()
    values = []
    for row in range(3):
        part = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        output = accumulated(**part, num_items_in_batch=torch.tensor(sum(sizes)))
        output.loss.backward()
        values.append(output.loss.detach())
        (means(**part).loss / 3).backward()
    close(sum(values), whole(**inputs).loss.detach(), 1e-6)
    grads = [[p.grad for p in b.parameters_of("law")] for b in (whole, accumulated, means)]
    for want, got in zip(*grads[:2], strict=True):
        close(got, want)
    assert not all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(*grads[::2], strict=True))


def test_a_batch_of_several_tasks_has_its_share_of_a_plain_trainers_step():
    """Every expert's gradient is that of its own mean, times the batch's share of the labels."""
    inputs = batch()
    count = int((inputs["labels"][:, 1:] != -100).sum())
    alone, shared = (make_bank(dtype=torch.float64).train() for _ in range(2))
    of_each = experts.count_labels([inputs], len(TASKS))
    assert len(set(of_each.tolist())) == len(TASKS)
    alone(**inputs, multilora_label_counts=of_each).loss.backward()  # the mean over its own tokens
    shared(**inputs, num_items_in_batch=4 * count).loss.backward()
    for task in TASKS:
        for a, b in zip(alone.parameters_of(task), shared.parameters_of(task), strict=True):
            close(b.grad, a.grad / 4)


def test_the_norm_of_one_expert_does_not_clip_another():
    bank = make_bank().train()
    bank(**batch()).loss.backward()
    for p in bank.parameters_of("law"):
        p.grad *= 100
    grads = {task: [p.grad.clone() for p in bank.parameters_of(task)] for task in TASKS}
    norms = {task: torch.cat([g.flatten() for g in of]).norm() for task, of in grads.items()}
    limit = 2 * float(norms["code"])
    assert norms["law"] > limit
    total = bank.clip_grad_norm(limit)
    close(total, torch.stack(list(norms.values())).norm())
    assert same([p.grad for p in bank.parameters_of("code")], grads["code"])
    clipped = torch.cat([p.grad.flatten() for p in bank.parameters_of("law")]).norm()
    assert float(clipped) == pytest.approx(limit, rel=1e-4)


def test_saved_modules_belong_to_one_expert_each():
    bank = make_bank(modules_to_save=["lm_head"]).train()
    heads = bank.base_model.model.lm_head.modules_to_save
    with torch.no_grad():
        heads["code"].weight += 0.1
    inputs = batch(3)  # law, law_hard, law
    bank(**inputs).loss.backward()
    assert heads["law"].weight.grad is not None
    assert heads["code"].weight.grad is None
    assert any(p is heads["law"].weight for p in bank.parameters_of("law"))
    rows, ids = inputs["input_ids"], torch.tensor([0, 1, 2])
    got = bank.eval()(rows, multilora_task_ids=ids).logits
    bank.merge("code")
    close(bank(rows).logits[2], got[2])


# Generation.


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_generating_for_a_mixed_batch_is_one_task_at_a_time(build, beams):
    bank = make_bank(build).eval()
    rows = batch()["input_ids"][:, :4]
    ids = batch()["multilora_task_ids"]
    given = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    given |= {"attention_mask": torch.ones_like(rows), "pad_token_id": 0}
    got = bank.generate(rows, multilora_task_ids=ids, **given)
    assert torch.equal(bank.generate(input_ids=rows, multilora_task_ids=ids, **given), got)
    outputs = []
    for task in TASKS:
        bank.choose(task)
        outputs.append(bank.generate(rows, **given))
    assert torch.equal(got, torch.stack([outputs[i][row] for row, i in enumerate(ids)]))
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


# Switching, merging.


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_merged_expert_comes_out_again_to_the_last_bit(build, dtype):
    bank = make_bank(build, dtype).eval()
    before = {name: p.detach().clone() for name, p in bank.named_parameters()}
    rows = batch()["input_ids"]
    for task in TASKS:
        bank.choose(task)
        want = bank(rows).logits
        bank.merge(task)
        assert bank.merged == bank.chosen == task
        if dtype == torch.float64:  # in bfloat16 a sum of weights rounds as no sum of outputs does
            close(bank(rows).logits, want, 1e-12)
        changed = {n for n, p in bank.named_parameters() if not torch.equal(p, before[n])}
        assert changed
        assert all(name.endswith("base_layer.weight") for name in changed)
    bank.unmerge()
    assert all(torch.equal(p, before[name]) for name, p in bank.named_parameters())
    assert torch.equal(bank(rows).logits, want)
    assert bank.merged is None
    bank.unmerge()  # nothing to do


def test_subtracting_again_would_not_give_the_same_bits():
    """The control of the test above: what PEFT's own merge and unmerge leave."""
    bank = make_bank(dtype=torch.bfloat16).eval()
    before = [p.detach().clone() for p in bank.parameters()]
    bank.base_model.merge_adapter(["law"])
    bank.base_model.unmerge_adapter()
    assert not same([p.detach() for p in bank.parameters()], before)


def test_a_merged_layer_is_a_plain_layer():
    bank = make_bank().eval()
    bank.merge("law")
    calls = []
    for layer in bank.modules():
        if isinstance(layer, LoraLayer):
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                part.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(3, 32)
    layer = bank.base_model.model.model.layers[0].self_attn.q_proj
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.get_base_layer().weight))
    plain = base_model().eval()
    for name, target in plain.named_modules():
        if isinstance(target, torch.nn.Linear) and name != "lm_head":
            target.weight = bank.base_model.model.get_submodule(name).get_base_layer().weight
    rows = batch()["input_ids"]
    assert torch.equal(bank(rows).logits, plain(rows).logits)
    ids = torch.zeros(7, dtype=torch.long)
    assert torch.equal(bank(rows, multilora_task_ids=ids).logits, plain(rows).logits)
    assert not calls


def test_an_expert_is_merged_for_good():
    bank = make_bank(dtype=torch.float64).eval()
    rows = batch()["input_ids"]
    with pytest.raises(ValueError, match="no expert is chosen; choose one of"):
        bank.merge_and_unload()
    bank.choose("code")
    want = bank(rows).logits
    bank.set_adapter("law")  # PEFT's active one is not what counts
    plain = bank.merge_and_unload()
    assert not any(isinstance(module, LoraLayer) for module in plain.modules())
    close(plain(rows).logits, want, 1e-12)


def test_while_one_is_merged_the_others_are_not_to_be_had():
    bank = make_bank().eval()
    bank.merge("law")
    words = "expert 'law' is merged and the batch has rows of 'law_hard'; call unmerge"
    with pytest.raises(ValueError, match=words):
        bank(**batch())
    with pytest.raises(ValueError, match="'law' is merged; call unmerge\\(\\) before training"):
        bank.train()(**of_task(batch(), 0))
    bank.eval().choose("code")  # takes it out
    want = make_bank().eval()(**batch()).logits
    assert torch.equal(bank(**batch()).logits, want)
    bank.merge("law")
    bank.choose(None)
    assert torch.equal(bank(**batch()).logits, want)


def test_an_expert_with_nan_is_not_merged():
    bank = make_bank()
    with torch.no_grad():
        list(bank.parameters_of("law"))[-1].fill_(float("nan"))
    before = [p.detach().clone() for p in bank.parameters() if torch.isfinite(p).all()]
    with pytest.raises(ValueError, match="law seems to be broken"):
        bank.merge("law")
    assert bank.merged is None
    after = [p.detach() for p in bank.parameters() if torch.isfinite(p).all()]
    assert same(after, before)
    assert not any(layer.merged for layer in bank.modules() if isinstance(layer, LoraLayer))


@pytest.mark.parametrize("do", ["choose", "merge", "remove"])
def test_an_unknown_name_is_refused(do):
    with pytest.raises(ValueError, match=r"no expert 'art'; expected one of \['law', 'law_hard'"):
        getattr(make_bank(), do)("art")


def test_switching_leaves_every_expert_trainable():
    bank = make_bank()
    flags = {name: p.requires_grad for name, p in bank.named_parameters()}
    assert {name for name, flag in flags.items() if flag} == {n for n in flags if "lora_" in n}
    bank.choose("code")
    bank.merge("law")
    bank.choose(None)
    bank.set_adapter("law_hard")
    assert {name: p.requires_grad for name, p in bank.named_parameters()} == flags


# Adding, removing.


def test_adding_a_task_leaves_the_others_bits_and_makes_it_last():
    bank = make_bank().eval()
    inputs = batch()
    before, want = {task: bits(bank, task) for task in TASKS}, bank(**inputs).logits
    bank.choose("law")
    bank.add("art")
    bank.add("music", lora(r=5, target_modules=["q_proj"]))
    assert bank.tasks == [*TASKS, "art", "music"]
    assert all(same(bits(bank, task), before[task]) for task in TASKS)
    assert torch.equal(bank(**inputs).logits, want)
    bank.choose("art")
    plain = base_model().eval()(inputs["input_ids"]).logits
    assert torch.equal(bank(inputs["input_ids"]).logits, plain)
    assert all(p.requires_grad for task in bank.tasks for p in bank.parameters_of(task))
    assert {p.shape[0] for p in bank.parameters_of("music")} == {5, 32}
    inputs["multilora_task_ids"][:] = 3
    bank.train()(**inputs).loss.backward()
    assert all(p.grad is None for task in TASKS for p in bank.parameters_of(task))
    assert any(p.grad.any() for p in bank.parameters_of("art"))


def test_removing_a_task_leaves_the_others_bits():
    bank = make_bank().eval()
    inputs = batch()
    want = bank(**inputs).logits
    before = {task: bits(bank, task) for task in TASKS}
    bank.choose("law")
    bank.remove("law")
    assert bank.tasks == ["law_hard", "code"]
    assert bank.chosen is None
    assert not any("law" in name.split(".") for name, _ in bank.named_parameters())
    assert all(same(bits(bank, task), before[task]) for task in bank.tasks)
    assert all(p.requires_grad for task in bank.tasks for p in bank.parameters_of(task))
    rows = inputs["multilora_task_ids"] > 0
    ids = inputs["multilora_task_ids"][rows] - 1
    close(bank(inputs["input_ids"][rows], multilora_task_ids=ids).logits, want[rows])
    bank.remove("code")
    with pytest.raises(ValueError, match="'law_hard' is the only expert"):
        bank.remove("law_hard")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("law", "expert 'law' exists already"),
        ("", "cannot be named ''; expected a directory name"),
        ("a/b", "cannot be named 'a/b'"),
        ("a.b", "cannot be named 'a.b'"),
        (".hidden", "cannot be named '.hidden'"),
        ("default", "cannot be named 'default', which is a part of the model"),
        ("layers", "cannot be named 'layers', which is a part"),
        ("weight", "cannot be named 'weight', which is a part"),
        ("lora_A", "cannot be named 'lora_A', which is a part"),
        ("keys", "cannot be named 'keys', which is a part"),
    ],
)
def test_names_that_peft_would_mix_up_are_refused(name, words):
    bank = make_bank()
    with pytest.raises(ValueError, match=words):
        bank.add(name)
    assert bank.tasks == TASKS
    if name != "law":
        with pytest.raises(ValueError, match=words):
            ExpertBank(base_model(), lora(), [name])


@pytest.mark.parametrize("saved_modules", [None, ["lm_head"]])
@pytest.mark.parametrize("names", [["or", "ra"], ["a", "lora", "o"], ["lora_", "r", "lora_x"]])
def test_names_that_are_a_part_of_pefts_prefix_are_as_good_as_others(
    tmp_path, names, saved_modules, recwarn
):
    """PEFT tells adapters apart by whole components of names; it warns of these all the same."""
    bank = make_bank(tasks=names, modules_to_save=saved_modules)
    inputs = batch()
    inputs["multilora_task_ids"] %= len(names)
    want = bank.eval()(**inputs).logits
    bank.train()(**inputs).loss.backward()
    assert all(p.grad is not None for name in names for p in bank.parameters_of(name))
    bank.save_pretrained(tmp_path)
    again = ExpertBank.from_pretrained(base_model(), tmp_path)
    assert again.tasks == names
    assert torch.equal(again(**inputs).logits, want)
    for i, name in enumerate(names):
        assert same(bits(again, name), bits(bank, name))
        model = PeftModel.from_pretrained(base_model(), tmp_path / name).eval()
        close(model(**of_task(inputs, i)).logits, want[inputs["multilora_task_ids"] == i])
    kept = bits(again, names[1])
    again.remove(names[0])
    assert same(bits(again, names[1]), kept)
    assert not [w for w in recwarn if "should not be contained" in str(w.message)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora is set"),
        (
            {"init_lora_weights": False},
            "init_lora_weights is False, with which ΔW does not start at 0",
        ),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"bias": "all"}, "bias is 'all', which all experts would share"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
    ],
)
def test_settings_that_would_be_shared_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        ExpertBank(base_model(), lora(**settings), TASKS)
    with pytest.raises(ValueError, match="tasks is empty; expected the name"):
        ExpertBank(base_model(), lora(), [])


# Files.


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "r": 3}, {"lora_dropout": 0.2}])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_files_peft_and_the_analysis_agree(tmp_path, build, settings):
    bank = make_bank(build, **settings).eval()
    inputs = batch()
    want = bank(**inputs).logits
    bank.save_pretrained(tmp_path)
    listed = json.loads((tmp_path / "experts.json").read_text())
    assert listed == {"format": "multilora-experts", "version": 1, "tasks": TASKS}
    again = ExpertBank.from_pretrained(base_model(build), tmp_path)
    assert torch.equal(again(**inputs).logits, want)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    for i, task in enumerate(TASKS):
        model = PeftModel.from_pretrained(base_model(build), tmp_path / task).eval()
        given = of_task(inputs, i)
        close(model(**given).logits, want[inputs["multilora_task_ids"] == i])
        assert same([p.detach() for p in trained(model)], bits(bank, task))
    layers = {name: m for name, m in bank.named_modules() if isinstance(m, LoraLayer)}
    read = list(checkpoint.read(tmp_path))
    assert len(read) == 3 * len(layers)
    for update in read:
        assert update.method == "expert"
        weight = layers[f"base_model.model.{update.name}"].get_delta_weight(update.part)
        weight = weight.T if build is gpt2 else weight
        close(torch.from_numpy(update.dense()).float(), weight.detach())


def test_training_goes_on_from_a_saved_bank(tmp_path):
    bank = make_bank().train()
    bank.save_pretrained(tmp_path)
    again = ExpertBank.from_pretrained(base_model(), tmp_path, is_trainable=True).train()
    for model in (bank, again):
        model(**batch()).loss.backward()
    grads = [[p.grad for t in TASKS for p in model.parameters_of(t)] for model in (bank, again)]
    assert same(*grads)


def test_a_task_is_added_to_a_saved_bank(tmp_path):
    make_bank().save_pretrained(tmp_path)
    files = {task: (tmp_path / task / "adapter_model.safetensors").read_bytes() for task in TASKS}
    bank = ExpertBank.from_pretrained(base_model(), tmp_path, is_trainable=True)
    bank.add("art", lora(r=4))
    move(bank.base_model.model.model.layers[0].self_attn.q_proj.lora_B["art"])
    bank.save_pretrained(tmp_path)
    assert experts.saved_tasks(tmp_path) == [*TASKS, "art"]
    for task, content in files.items():
        assert (tmp_path / task / "adapter_model.safetensors").read_bytes() == content
    again = ExpertBank.from_pretrained(base_model(), tmp_path)
    assert same(bits(again, "art"), bits(bank, "art"))
    assert again.peft_config["art"].r == 4


def test_a_merged_bank_saves_the_same_experts(tmp_path):
    bank = make_bank()
    bank.save_pretrained(tmp_path / "before")
    bank.merge("law")
    bank.save_pretrained(tmp_path / "merged")
    for task in TASKS:
        name = f"{task}/adapter_model.safetensors"
        assert (tmp_path / "before" / name).read_bytes() == (
            tmp_path / "merged" / name
        ).read_bytes()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "experts.json: not the file of a bank of experts"),
        ("[]", "experts.json: not the file of a bank of experts"),
        ('{"format": "multilora-experts", "version": 9, "tasks": ["law"]}', "version 9; expected"),
        (
            '{"format": "multilora-experts", "version": 1, "tasks": ["law", "../precious"]}',
            "task '../precious' cannot name a directory beside it",
        ),
        (
            '{"format": "multilora-experts", "version": 1, "tasks": []}',
            "expected at least one, each once",
        ),
        (
            '{"format": "multilora-experts", "version": 1, "tasks": ["law", "art"]}',
            "art: no adapter_config.json; experts.json lists this expert",
        ),
    ],
)
def test_a_broken_bank_is_refused(tmp_path, text, words):
    make_bank().save_pretrained(tmp_path)
    (tmp_path / "experts.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        ExpertBank.from_pretrained(base_model(), tmp_path)


def test_a_missing_tensor_is_an_error_not_a_fresh_start(tmp_path):
    make_bank().save_pretrained(tmp_path)
    file = tmp_path / "law" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != name}, file)
    with pytest.raises(ValueError, match=r"law: .*lora_A\.law\.weight is missing"):
        ExpertBank.from_pretrained(base_model(), tmp_path)
    save_file(tensors | {name.replace("_proj", "_none"): tensors[name].clone()}, file)
    with pytest.raises(ValueError, match=r"_none.* does not belong to the model"):
        ExpertBank.from_pretrained(base_model(), tmp_path)
