"""A bank of experts as the analysis sees it: one update a module and task."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint, similarity, spectrum
from analysis.formats import experts
from analysis.update import LowRankUpdate, Other, Skipped

TASKS = ["law", "code", "art"]
MODULES = ("model.layers.0.q_proj", "model.layers.1.q_proj")


@pytest.fixture
def write_bank(tmp_path, write_adapter, lora_tensors):
    """Write a bank; returns its directory."""

    def write(tasks=TASKS, name="bank"):
        for task in tasks:
            write_adapter(lora_tensors(*MODULES), f"{name}/{task}")
        text = {"format": "multilora-experts", "version": 1, "tasks": list(tasks)}
        (tmp_path / name / "experts.json").write_text(json.dumps(text))
        return tmp_path / name

    return write


def test_every_expert_is_a_part_of_each_module(write_bank):
    bank = write_bank()
    updates = list(checkpoint.read(bank))
    assert [(u.part, u.name) for u in updates] == [(t, m) for t in TASKS for m in MODULES]
    for update in updates:
        assert isinstance(update, LowRankUpdate)
        assert (update.method, update.scale, update.capacity) == ("expert", 2.0, 4)
        alone = {u.name: u for u in checkpoint.read(bank / update.part)}[update.name]
        np.testing.assert_array_equal(update.dense(), alone.dense())
        assert (alone.method, alone.part) == ("lora", "")
    assert not np.array_equal(updates[0].dense(), updates[2].dense())


def test_the_order_of_the_tasks_is_the_configs(write_bank):
    bank = write_bank(tasks=["z", "a"])
    assert [u.part for u in checkpoint.read(bank)] == ["z", "z", "a", "a"]


def test_a_directory_that_is_not_listed_is_not_read(write_bank, write_adapter, lora_tensors):
    bank = write_bank()
    write_adapter(lora_tensors(*MODULES), "bank/removed")
    assert {u.part for u in checkpoint.read(bank)} == set(TASKS)
    assert [run.name for run in checkpoint.runs([bank])] == ["bank"]


def test_spectra_carry_the_parts(write_bank):
    bank = write_bank()
    found = spectrum.analyse([bank])
    assert {row["key"] for row in found.rows} == {f"bank/{m}#{t}" for m in MODULES for t in TASKS}
    assert {row["method"] for row in found.rows} == {"expert"}
    alone = spectrum.analyse([bank / "law"])
    for row in alone.rows:
        s = found.s[f"bank/{row['module']}#law"]
        np.testing.assert_array_equal(s, alone.s[row["key"]])


def test_the_experts_are_compared_with_one_another(write_bank):
    found = similarity.analyse([write_bank()])
    assert not found.skipped
    pairs = {(row["module"], row["part_a"], row["part_b"]) for row in found.inside}
    want = [("law", "code"), ("law", "art"), ("code", "art")]
    assert pairs == {(module, a, b) for module in MODULES for a, b in want}


def test_of_two_banks_equal_tasks_are_compared(write_bank):
    one, two = write_bank(name="one"), write_bank(["code", "law"], name="two")
    found = similarity.analyse([one, two])
    between = found.rows
    assert {(row["part_a"], row["part_b"]) for row in between} == {("law",) * 2, ("code",) * 2}


def test_the_steps_of_a_run_are_banks_too(write_bank, tmp_path):
    for step in (10, 2):
        write_bank(name=f"run/checkpoint-{step}")
    runs = checkpoint.runs([tmp_path / "run"])
    assert [(run.name, run.step) for run in runs] == [("run", 2), ("run", 10)]
    assert len(list(checkpoint.read(runs[0].path))) == 6


def test_every_file_of_a_bank_is_an_input(write_bank):
    bank = write_bank(["law", "code"])
    names = [str(path.relative_to(bank)) for path in checkpoint.inputs(bank)]
    of_each = ("adapter_config.json", "adapter_model.safetensors")
    assert sorted(names) == sorted(
        ["experts.json", *(f"{task}/{name}" for task in ("law", "code") for name in of_each)]
    )


def test_what_is_no_update_tells_its_expert(write_bank, write_adapter, lora_tensors):
    bank = write_bank()
    head = {"base_model.model.lm_head.weight": np.ones((3, 10), "f4")}
    write_adapter(lora_tensors(*MODULES) | head, "bank/code")
    others = [e.name for e in checkpoint.scan(bank) if isinstance(e, Other)]
    assert others == ["code/base_model.model.lm_head.weight"]


def test_a_module_that_cannot_be_read_is_listed(write_bank):
    bank = write_bank()
    file = bank / "code" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = f"base_model.model.{MODULES[0]}.lora_B.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, file)
    entries = list(checkpoint.scan(bank))
    (skipped,) = (e for e in entries if isinstance(e, Skipped))
    assert skipped.name == MODULES[0]
    assert "code" in skipped.reason
    assert "no lora_B" in skipped.reason
    assert len(entries) == 6


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ({"format": "other"}, "experts.json: format is 'other', version 1; expected"),
        ({"version": 2}, "version 2; expected 'multilora-experts', 1"),
        ({"tasks": []}, r"tasks is \[\]; expected the names of directories"),
        ({"tasks": "law"}, "tasks is 'law'; expected the names"),
        ({"tasks": ["law", 3]}, r"tasks is \['law', 3\]; expected the names"),
        ({"tasks": ["../other"]}, "expected the names of directories next to it"),
        ({"tasks": [".."]}, "expected the names of directories next to it"),
        ({"tasks": ["law", "law"]}, "a task appears twice"),
        ({"tasks": ["law", "music"]}, "music: no expert here; experts.json names it, expected"),
    ],
)
def test_a_broken_list_is_refused(write_bank, listed, words):
    bank = write_bank()
    text = {"format": "multilora-experts", "version": 1, "tasks": TASKS} | listed
    (bank / "experts.json").write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match=words):
        list(checkpoint.scan(bank))


def test_a_list_that_is_no_json_is_refused(write_bank):
    bank = write_bank()
    (bank / "experts.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"experts.json: not readable as JSON"):
        list(checkpoint.scan(bank))


def test_nothing_is_read_where_one_expert_is_broken(write_bank):
    """Else the table would show a part of the bank as if it were all."""
    bank = write_bank()
    file = bank / "art" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match=r"art.*not a readable safetensors file"):
        next(checkpoint.scan(bank))
    file.unlink()
    with pytest.raises(CheckpointError, match=r"art: has adapter_config.json but no weights"):
        next(checkpoint.scan(bank))
    file.write_bytes(whole)
    config = bank / "art" / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "VERA", "r": 4}))
    with pytest.raises(CheckpointError, match=r"art.*peft_type is 'VERA'; expected 'LORA'"):
        next(checkpoint.scan(bank))


@pytest.mark.parametrize("command", [spectrum, similarity])
def test_the_commands_say_what_is_broken(write_bank, command, capsys):
    bank = write_bank()
    assert command.main([str(bank)]) == 0
    capsys.readouterr()
    (bank / "code" / "adapter_config.json").unlink()
    assert command.main([str(bank)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "no expert here" in err


def test_a_task_may_have_a_name_that_is_part_of_another_word(write_bank):
    """`or` and `ra` are in `lora_`, by which PEFT finds its tensors."""
    bank = write_bank(["or", "ra", "lo", "default"])
    assert [u.part for u in checkpoint.read(bank)][::2] == ["or", "ra", "lo", "default"]


def test_the_file_is_the_one_that_the_method_writes():
    """The method must not import this package, so that the names are written twice."""
    from multilora.methods import experts as written

    for name in ("CONFIG", "FORMAT", "VERSION"):
        assert getattr(experts, name) == getattr(written, name)
