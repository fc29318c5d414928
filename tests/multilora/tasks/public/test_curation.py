import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multilora.tasks.builtin import splits
from multilora.tasks.example import SPLITS
from multilora.tasks.public import curation
from multilora.tasks.public.records import Record, Table

HELD_OUT = ("validation", "test")


def record(text, answer="a", group=""):
    return Record("alpaca_no_input", {"instruction": text}, answer, group=group)


def table(task="t", carve=True, **texts):
    """A table of one instruction an item, by split."""
    return Table(
        task, "instruction", {s: [record(t) for t in ts] for s, ts in texts.items()}, carve
    )


def curated(*tables):
    """The instructions of (task, split), and the notes."""
    examples, notes = curation.examples(tables)
    texts = {}
    for split, here in examples.items():
        for e in here:
            assert e.split == split
            texts.setdefault((e.task, split), []).append(e.prompt.split("\n")[3])
    return texts, notes


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is  this?", "what is this"),
        ("“Quoted” – text…", '"quoted" text'),
        ("a\n\tb", "A b!"),
        ("fill ___ in", "Fill in."),
        ("ÉTÉ", "été"),
    ],
)
def test_case_space_and_punctuation_are_folded(a, b):
    assert curation.normalise(a) == curation.normalise(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [("3 * 4", "3 / 4"), ("x + 1", "x - 1"), ("5%", "5"), ("x < 1", "x > 1"), ("C#", "C"),
     ("√2", "2"), ("ab", "a b"), ("été", "ete"), ("?", "!")],
)  # fmt: skip
def test_what_tells_questions_apart_stays(a, b):
    assert curation.normalise(a) != curation.normalise(b)


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    once = curation.normalise(text)
    assert curation.normalise(once) == once
    assert once == once.strip()
    assert bool(once) == bool(text.strip())


TEXTS = st.lists(
    st.text("abcdefgh", min_size=1, max_size=3).map(lambda t: t.upper() if len(t) > 1 else t + "?"),
    min_size=1,
    max_size=60,
)


@given(TEXTS, TEXTS, TEXTS, st.randoms(use_true_random=False))
def test_splits_are_disjoint_and_whatever_is_gone_is_counted(train, other, test, rng):
    """Two tasks, one with a test split of its own; the order of items does not matter."""

    def tables():
        """One item each that nothing else has, so that no task is left empty."""
        return table("t", train=["t's own", *train]), table(
            "u", train=other, test=["u's own", *test]
        )

    texts, notes = curated(*tables())
    keys = {
        split: {curation.normalise(t) for (_, s), ts in texts.items() if s == split for t in ts}
        for split in SPLITS
    }
    assert not keys["train"] & (keys["validation"] | keys["test"])
    left = sum(map(len, texts.values()))
    gone = [int(n.split()[0]) for n in notes if "training items left out" in n]
    assert left + sum(gone) == len(train) + len(other) + len(test) + 2
    assert texts["u", "test"] == ["u's own", *test]

    for here in (train, other, test):
        rng.shuffle(here)
    again, _ = curated(*tables())
    assert {k: sorted(v) for k, v in again.items()} == {k: sorted(v) for k, v in texts.items()}


def test_an_item_stays_in_its_split_when_others_come_or_go():
    words = [f"word {i}" for i in range(400)]
    all_of_them, _ = curated(table(train=words))
    some, _ = curated(table(train=random.Random(0).sample(words, 100)))
    for key, texts in some.items():
        assert set(texts) <= set(all_of_them[key])
    for split in HELD_OUT:
        assert len(all_of_them["t", split]) / 400 == pytest.approx(0.1, abs=0.05)
        assert all(splits.by_hash(text) == split for text in all_of_them["t", split])


@pytest.mark.parametrize("given", [(), ("validation",), ("test",), HELD_OUT])
def test_what_the_files_have_is_kept_and_the_rest_is_carved(given):
    words = [f"word {i}" for i in range(100)]
    own = {split: [f"own {split}"] for split in given}
    texts, notes = curated(table(train=words, **own))
    for split in HELD_OUT:
        if split in given:
            assert texts["t", split] == own[split]
        else:
            assert texts["t", split] == [w for w in words if splits.by_hash(w) == split]
            count = len(texts["t", split])
            assert f"{count} training items moved to {split}, by hash (t {count})" in notes
    carved = [split for split in HELD_OUT if split not in given]
    assert texts["t", "train"] == [w for w in words if splits.by_hash(w) not in carved]


def test_a_table_that_is_not_carved_stays_whole():
    words = [f"word {i}" for i in range(50)]
    texts, notes = curated(table(train=words, carve=False))
    assert texts == {("t", "train"): words}
    assert notes == ["no validation items in 1 tasks (t)", "no test items in 1 tasks (t)"]


def test_without_training_items_nothing_is_carved():
    texts, notes = curated(table(test=["a", "b"]))
    assert texts == {("t", "test"): ["a", "b"]}
    assert notes == ["no train items in 1 tasks (t)", "no validation items in 1 tasks (t)"]


def test_a_group_comes_into_one_split():
    groups = [f"group {i}" for i in range(100)]
    records = [record(f"{group} item {i}", group=group) for i in range(3) for group in groups]
    texts, _ = curated(Table("t", "instruction", {"train": records}))
    where = {split: {text.split(" item")[0] for text in texts["t", split]} for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert where[a]
        assert not where[a] & where[b]
    alone, _ = curated(table(train=[r.fields["instruction"] for r in records]))
    apart = {s: {text.split(" item")[0] for text in alone["t", s]} for s in SPLITS}
    assert apart["train"] & apart["test"]  # without groups they would not


def test_training_items_that_are_held_out_are_left_out_in_every_task():
    texts, notes = curated(
        table("t", train=["One, two!", "three"], validation=["one two"], test=["four"]),
        table("u", train=["FOUR", "five", "four."], validation=["x"], test=["y"]),
    )
    assert texts["t", "train"] == ["three"]
    assert texts["u", "train"] == ["five"]
    assert texts["t", "validation"] == ["one two"]
    assert notes == ["3 training items left out, also in validation or test (t 1, u 2)"]


def test_what_is_tested_is_never_carved_for_validation():
    word = next(w for w in map(str, range(100)) if splits.by_hash(w) == "validation")
    texts, notes = curated(table(train=[word, "other"], test=[f"{word}."]))
    assert ("t", "validation") not in texts
    assert "1 training items left out, also in validation or test (t 1)" in notes


def test_what_one_task_carves_out_is_not_trained_in_another():
    word = next(w for w in map(str, range(100)) if splits.by_hash(w) == "test")
    texts, notes = curated(table("t", train=[word, "a"]), table("u", train=[word, "b"], test=["c"]))
    assert texts["t", "test"] == [word]
    assert texts["u", "train"] == ["b"]
    assert "1 training items left out, also in validation or test (u 1)" in notes


def test_repeats_are_kept_and_counted():
    texts, notes = curated(
        table(train=["a", "A", "b", "a."], validation=["c", "d"], test=["c!", "e"])
    )
    assert texts["t", "train"] == ["a", "A", "b", "a."]
    assert notes == [
        "2 train items that repeat an earlier one, kept (t 2)",
        "1 validation items that are also test items, kept (t 1)",
    ]


def test_records_without_answer_or_prompt_are_left_out_and_counted():
    records = [record("a"), record("b", " \n"), record(" "), record("c", "")]
    own = {"train": records, "validation": [record("d")], "test": [record("e")]}
    texts, notes = curated(Table("t", "instruction", own))
    assert texts["t", "train"] == ["a"]
    assert notes == [
        "2 records without an answer left out (t 2)",
        "1 records without a prompt left out (t 1)",
    ]


def test_a_task_of_which_nothing_is_left_is_an_error():
    empty = Table("t", "instruction", {"train": [record("a", "")]})
    with pytest.raises(ValueError, match=r"'t' has no items left; 1 records without an answer"):
        curation.examples([empty])


def test_two_tasks_of_one_name_are_an_error():
    with pytest.raises(ValueError, match=r"two tasks are called 't'; .* NAME=KIND:PATH"):
        curation.examples([table("t", train=["a"]), table("t", train=["b"])])


def test_a_line_names_eight_tasks_but_all_of_what_is_left_out():
    many = [table(f"t{i}", train=["a"], validation=["a"], test=[f"b{i}"]) for i in range(10)]
    _, notes = curated(*many)
    names = [f"t{i}" for i in range(10)]
    assert notes == [
        "10 training items left out, also in validation or test "
        f"({', '.join(f'{name} 1' for name in names)})",
        f"no train items in 10 tasks ({', '.join(names[:8])} and 2 more)",
    ]
