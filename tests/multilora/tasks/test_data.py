import pytest

from multilora.tasks import data
from multilora.tasks.builtin import suite
from multilora.tasks.example import FAMILIES, SPLITS, Example


def test_items_are_chosen_alike_every_time(spec):
    chosen = data.load(spec)
    few = chosen.split("train", 5)
    assert few == data.load(spec).split("train", 5)
    assert {e.task for e in few} == set(chosen.family_of)
    assert len(few) == 15
    every = chosen.split("train")
    assert [e for e in every if e in few] == few  # in their order
    assert chosen.split("train", 10**6) == every
    with pytest.raises(ValueError, match="split is 'dev'; expected one of train"):
        chosen.split("dev")


def test_the_choice_of_one_task_does_not_depend_on_the_others(spec):
    """Each task has random numbers of its own."""
    together, alone = data.load(spec), data.load(spec.split(",")[0])
    of_task = [e for e in together.split("train", 5) if e.task == "alpaca"]
    assert of_task == alone.split("train", 5)


def test_the_built_in_suite_has_its_usual_numbers():
    built_in = data.load()
    assert len(built_in.split("train")) == 800 * 15
    assert len(built_in.split("test")) == 100 * 15
    assert built_in.split("validation", 3) == suite.load("validation", 3)
    assert list(built_in.family_of) == list(suite.TASKS)


def test_samples_have_all_three_families(samples):
    parts = (f"alpaca:{samples}/alpaca/alpaca_data_400.json", f"mmlu:{samples}/mmlu")
    chosen = data.load(",".join([*parts, f"superglue:{samples}/superglue"]))
    for split in SPLITS:
        assert {e.family for e in chosen.split(split, 3)} == set(FAMILIES)


def test_the_hash_covers_every_field():
    given = {"task": "t", "family": "f", "split": "test", "prompt": "p", "answer": "a"}
    hashes = {data.sha256([Example(**given)]), data.sha256([])}
    for field in given:
        hashes.add(data.sha256([Example(**given | {field: "other"})]))
    hashes.add(data.sha256([Example(**given, options=("a", "b"))]))
    assert len(hashes) == 8
    assert data.sha256([Example(**given)]) in hashes
