import collections
import itertools
import random

import pytest

from multilora.tasks import mixture


@pytest.fixture
def lengths():
    generator = random.Random(0)
    return [generator.randint(8, 30) for _ in range(700)]


def order_of(lengths, count, batch, seed):
    """`count` indices in batches of like length, as a run without packing has them."""
    rng = random.Random(seed)
    indices = list(itertools.islice(mixture.draw([""] * len(lengths), rng), count))
    return mixture.bucket(indices, lengths, batch, rng)


def padding(order, lengths, batch):
    """Tokens that are spent on filling every batch up to its longest row."""
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    return sum(max(lengths[j] for j in b) * len(b) - sum(lengths[j] for j in b) for b in batches)


@pytest.mark.parametrize("count", [0, 1, 31, 700, 1000, 2100, 5003])
@pytest.mark.parametrize("batch", [1, 32])
def test_the_count_is_exact(lengths, count, batch):
    order = order_of(lengths, count, batch, seed=0)
    assert len(order) == count
    assert all(0 <= i < len(lengths) for i in order)


@pytest.mark.parametrize("epochs", [1, 3])
def test_whole_epochs_hold_every_example_equally_often(lengths, epochs):
    order = order_of(lengths, epochs * 700, 32, seed=0)
    assert sorted(order) == sorted(list(range(700)) * epochs)


def test_each_epoch_is_a_permutation_where_windows_end_with_it():
    """With 50 batches an epoch no window reaches into the next epoch."""
    lengths = [5] * 100
    order = order_of(lengths, 300, 2, seed=0)
    epochs = [order[i : i + 100] for i in (0, 100, 200)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_order_depends_on_the_seed_alone(lengths):
    first = order_of(lengths, 1500, 32, seed=0)
    random.seed(5)
    assert order_of(lengths, 1500, 32, seed=0) == first
    assert order_of(lengths, 1500, 32, seed=1) != first


def test_batches_of_like_length_need_less_padding_than_random_ones(lengths):
    order = order_of(lengths, 2100, 32, seed=0)
    shuffled = random.Random(1).sample(order, len(order))
    assert padding(order, lengths, 32) < 0.25 * padding(shuffled, lengths, 32)


def test_long_batches_do_not_all_come_first(lengths):
    """Batches are shuffled within a window: the length says nothing about the step."""
    order = order_of(lengths, 20 * 1600, 32, seed=0)
    longest = [max(lengths[j] for j in order[i : i + 32]) for i in range(0, len(order), 32)]
    early = [size for i, size in enumerate(longest) if i % 50 < 25]
    late = [size for i, size in enumerate(longest) if i % 50 >= 25]
    assert abs(sum(early) / sum(late) - 1) < 0.1


def test_fewer_examples_than_a_batch_are_repeated():
    order = order_of([3, 4, 5], 8, 4, seed=0)
    assert [order.count(i) >= 2 for i in range(3)] == [True] * 3


@pytest.mark.parametrize(
    ("words", "want"), [("proportional", 1), ("equal", float("inf")), ("2", 2), ("0.5", 0.5)]
)
def test_a_mixture_is_a_temperature(words, want):
    assert mixture.temperature(words) == want


@pytest.mark.parametrize("words", ["", "none", "0", "-1", "nan"])
def test_other_mixtures_are_refused(words):
    with pytest.raises(ValueError, match="expected proportional, equal, families or a temperature"):
        mixture.temperature(words)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, float("inf")])
def test_a_task_is_drawn_by_its_size_to_one_over_the_temperature(temperature):
    sizes = {"a": 1000, "b": 100, "c": 10}
    tasks = [task for task, n in sizes.items() for _ in range(n)]
    count = 20000
    drawn = itertools.islice(mixture.draw(tasks, random.Random(0), temperature), count)
    found = collections.Counter(tasks[i] for i in drawn)
    weights = {task: n ** (1 / temperature) for task, n in sizes.items()}
    for task, weight in weights.items():
        share = weight / sum(weights.values())
        deviation = (share * (1 - share) / count) ** 0.5
        assert abs(found[task] / count - share) < 5 * deviation


def test_every_task_goes_through_its_examples_evenly():
    tasks = ["a"] * 50 + ["b"] * 7
    drawn = list(itertools.islice(mixture.draw(tasks, random.Random(0), float("inf")), 1000))
    for task in "ab":
        of_task = collections.Counter(i for i in drawn if tasks[i] == task)
        assert max(of_task.values()) - min(of_task.values()) <= 1


@pytest.mark.parametrize("temperature", [2, float("inf")])
def test_a_task_goes_through_its_examples_in_another_order_every_epoch(temperature):
    order = list(itertools.islice(mixture.draw("a" * 8, random.Random(0), temperature), 8 * 50))
    epochs = [tuple(order[i : i + 8]) for i in range(0, len(order), 8)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len(set(epochs)) > 45


def test_a_bucket_starts_with_its_longest_example_and_the_shortest_are_left_over(lengths):
    order = mixture.bucket(list(range(700)), lengths, 32, random.Random(0))
    batches = [[lengths[i] for i in order[k : k + 32]] for k in range(0, 700, 32)]
    assert all(batch == sorted(batch, reverse=True) for batch in batches)
    assert len(batches[-1]) == 700 % 32
    assert batches[-1] == sorted(lengths, reverse=True)[-(700 % 32) :]


def test_nothing_is_drawn_from_nothing():
    assert list(mixture.draw([], random.Random(0))) == []
    assert list(mixture.draw([], random.Random(0), 2)) == []


def packed(lengths, size, groups=(), seed=0):
    return list(mixture.pack(iter(range(len(lengths))), lengths, size, random.Random(seed), groups))


def test_packing_loses_and_repeats_nothing(lengths):
    rows = packed(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(700))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 64
    assert rows == packed(lengths, 64)
    assert rows != packed(lengths, 64, seed=1)


def test_packed_rows_are_shuffled_and_so_are_the_examples_of_a_row(lengths):
    """Unshuffled, each row would start with its longest example, the longest of all first."""
    rows = packed(lengths, 64)
    longest = [max(lengths[i] for i in row) for row in rows]
    half = len(rows) // 2
    assert abs(sum(longest[:half]) / sum(longest[half : 2 * half]) - 1) < 0.1
    several = [row for row in rows if len({lengths[i] for i in row}) > 2]
    first = sum(lengths[row[0]] == max(lengths[i] for i in row) for row in several)
    assert 0 < first < 0.7 * len(several)


def test_packing_is_near_the_least_number_of_rows(lengths):
    for size in (64, 128, 500):
        assert len(packed(lengths, size)) <= 1.02 * sum(lengths) / size + 1


def test_groups_share_no_row(lengths):
    groups = ["ab"[i % 2] for i in range(700)]
    rows = packed(lengths, 64, groups)
    assert all(len({groups[i] for i in row}) == 1 for row in rows)
    assert sorted(i for row in rows for i in row) == list(range(700))


def test_examples_as_long_as_a_row_have_one_each():
    assert sorted(packed([8, 8, 8], 8)) == [[0], [1], [2]]
    with pytest.raises(ValueError, match="an example has 9 tokens; expected at most 8"):
        packed([3, 9], 8)


def test_a_row_is_filled_with_what_leaves_least_room():
    """7 + 5 + 4 and 6 + 6 + 4 fill 16 exactly; the longest that fit would leave room."""
    lengths = [7, 6, 6, 5, 4, 4]
    rows = packed(lengths, 16)
    assert sorted(sum(lengths[i] for i in row) for row in rows) == [16, 16]
