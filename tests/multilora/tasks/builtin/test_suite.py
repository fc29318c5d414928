import collections
import itertools
import random

import pytest

from multilora.tasks import data
from multilora.tasks.builtin import instruction, knowledge, splits, suite, understanding
from multilora.tasks.example import FAMILIES, SPLITS

SEEDS = (0, 1, 2)


def test_the_suite_has_three_families_of_five():
    assert tuple(dict.fromkeys(suite.FAMILY_OF.values())) == FAMILIES
    assert list(suite.FAMILY_OF) == [
        *instruction.TASKS, *understanding.TASKS, *knowledge.TASKS,
    ]  # fmt: skip
    assert set(collections.Counter(suite.FAMILY_OF.values()).values()) == {5}


def test_the_suite_is_the_same_at_every_call(drawn):
    assert suite.load("train", 150, 1) == drawn["train", 1]
    assert suite.load("test", 150, 1) == drawn["test", 1]
    assert drawn["test", 0] != drawn["test", 1]
    assert suite.load("train", 20) == [
        e for task in suite.TASKS for e in [x for x in drawn["train", 0] if x.task == task][:20]
    ]


def test_every_task_has_its_count_and_held_out_items_are_distinct(drawn):
    for (split, _), examples in drawn.items():
        assert collections.Counter(e.task for e in examples) == dict.fromkeys(suite.TASKS, 150)
        assert {e.split for e in examples} == {split}
        assert all(e.family == suite.FAMILY_OF[e.task] for e in examples)
        if split != "train":
            assert len({e.prompt for e in examples}) == len(examples)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_prompt_is_in_two_splits(drawn, seed):
    prompts = {split: {e.prompt for e in drawn[split, seed]} for split in SPLITS}
    # Across seeds too: what one seed trains on, another must not test.
    trained = {e.prompt for s in SEEDS for e in drawn["train", s]}
    assert not trained & (prompts["validation"] | prompts["test"])
    assert not prompts["validation"] & prompts["test"]


def test_no_prompt_is_in_two_splits_at_thousands_of_draws():
    prompts = [
        {e.prompt for e in suite.load(s, n)} for s, n in zip(SPLITS, (4000, 160, 160), strict=True)
    ]
    for a, b in itertools.combinations(prompts, 2):
        assert not a & b


def test_an_item_has_one_split_however_often_it_is_drawn():
    """Drawn without a wish for a split, from other seeds than the suite's."""
    for task, (_, draw) in suite.TASKS.items():
        rng = random.Random(f"{task} again")
        split_of = {}
        for _ in range(2000):
            item = draw(rng)
            assert split_of.setdefault(item.prompt, item.split) == item.split, (task, item)
        assert set(split_of.values()) == set(SPLITS), task


@pytest.mark.parametrize("task", suite.TASKS)
def test_options_hold_the_answer_once(items, task):
    count = {"sentiment": 2, "coreference": 3, "roles": 3, "order": 3}.get(task, 4)
    for e in items(task):
        if e.options is None:
            assert e.family == "instruction"
            assert e.chance == 0
        else:
            assert e.options.count(e.answer) == 1, e
            assert len(set(e.options)) == len(e.options) == count
            assert e.chance == 1 / count


@pytest.mark.parametrize("task", [*understanding.TASKS, *knowledge.TASKS])
def test_no_option_is_right_by_its_place(items, task):
    """Answers stand at each place about as often, and no word is the answer too often."""
    of_task = [e for e in items(task) if e.options and e.split == "train"]
    total, count = len(of_task), len(of_task[0].options)
    words = collections.Counter(e.answer for e in of_task)
    if count == 2:  # two words in a fixed order
        places = words
    else:
        places = collections.Counter(e.options.index(e.answer) for e in of_task)
        assert max(words.values()) < 0.2 * total
    deviation = (total / count * (1 - 1 / count)) ** 0.5
    assert max(places.values()) < total / count + 4 * deviation


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'dev'; expected one of train, validation, test"):
        suite.load("dev", 1)


def test_no_examples_are_no_examples():
    assert suite.load("train", 0) == []


def test_more_distinct_items_than_there_are_are_refused(monkeypatch):
    def coin(rng):
        return splits.Item(rng.choice("ab"), "heads", None, "test")

    monkeypatch.setattr(suite, "TASKS", {"coin": ("knowledge", coin)})
    assert len(suite.load("test", 2)) == 2
    with pytest.raises(ValueError, match="coin: 3 test items were requested; expected at most ab"):
        suite.load("test", 3)


@pytest.mark.parametrize(
    ("split", "per_task", "sha256"),
    [
        ("train", 800, "aa376ae097df"),
        ("validation", 100, "469e6e3bd938"),
        ("test", 100, "c851f6e72780"),
    ],
)
def test_the_suite_is_the_one_of_the_published_results(split, per_task, sha256):
    assert data.sha256(suite.load(split, per_task)).startswith(sha256)
