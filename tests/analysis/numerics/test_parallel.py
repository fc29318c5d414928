"""Results in the order of the items, with few items held at once and one BLAS thread each."""

import sys
import threading

import numpy as np
import pytest
import tqdm
from threadpoolctl import threadpool_info

from analysis import similarity, spectrum
from analysis.numerics import parallel


def test_results_come_in_the_order_of_the_items():
    first_may_end = threading.Event()

    def slow_first(item):
        if item == 0:
            assert first_may_end.wait(timeout=30)
        elif item == 1:
            first_may_end.set()
        return item**2

    assert list(parallel.in_order(slow_first, range(100))) == [(i, i**2) for i in range(100)]
    assert list(parallel.in_order(slow_first, [])) == []


def test_only_a_few_items_are_held_at_once(monkeypatch):
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 2)
    taken = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    for done, _ in parallel.in_order(lambda item: item, items()):
        assert len(taken) - done <= 2 * 2 + 1
    assert len(taken) == 50


def test_an_error_is_raised_when_its_item_is_due():
    def fail_at_three(item):
        if item == 3:
            raise ValueError("the fourth item")
        return item

    results = parallel.in_order(fail_at_three, range(10))
    assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth item"):
        next(results)


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_each_item_has_one_blas_thread_and_the_rest_as_many_as_before():
    np.eye(2) @ np.eye(2)
    before = blas_threads()
    assert [threads for _, threads in parallel.in_order(lambda _: blas_threads(), range(4))] == (
        [{1}] * 4
    )
    assert blas_threads() == before


@pytest.fixture
def bars(monkeypatch):
    """The bars that are made, as on a terminal: the options of each."""
    made = []

    def bar(items, **options):
        made.append(options)
        return items

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(tqdm, "tqdm", bar)
    return made


def test_bars_appear_after_two_seconds_for_updates_of_low_rank_too(
    write_adapter, lora_tensors, bars
):
    paths = [write_adapter(lora_tensors("l.0.q", "l.1.q"), name) for name in "ab"]
    spectra = spectrum.analyse(paths, progress=True)
    assert [(bar["desc"], bar["unit"], bar["total"]) for bar in bars] == [
        ("a", " module", None),
        ("b", " module", None),
    ]
    assert {bar["delay"] for bar in bars} == {2}
    assert spectra.rows == spectrum.analyse(paths).rows
    bars.clear()
    shared = similarity.analyse(paths, progress=True)
    assert [(bar["desc"], bar["total"]) for bar in bars if bar["total"]] == [("comparing", 2)]
    assert shared.rows == similarity.analyse(paths).rows


def test_a_bar_changes_no_item_and_is_not_on_stdout(capsys, monkeypatch):
    items = [3, 1, 2]
    assert parallel.with_bar(items, progress=True, label="piped", unit="module") is items
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert parallel.with_bar(items, progress=False, label="comparing", unit="module") is items
    with_bar = parallel.with_bar(items, progress=True, label="a\x1b[2Jb", unit="module")
    assert list(with_bar) == items
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b[2J" not in err


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_items_are_held_than_asked_for(most):
    taken, held = 0, []

    def items():
        nonlocal taken
        for i in range(9):
            taken += 1
            yield i

    for i, _ in parallel.in_order(lambda i: i, items(), most):
        held.append(taken - i)
    assert max(held) == most


def test_the_next_result_is_made_while_the_caller_has_one():
    made = [threading.Event() for _ in range(4)]

    def make(i):
        made[i].set()
        return i

    for i in parallel.one_ahead(make, range(4)):
        if i < 3:
            assert made[i + 1].wait(10)
        assert not any(event.is_set() for event in made[i + 2 :])


def test_one_ahead_raises_an_error_when_its_item_is_due():
    results = parallel.one_ahead(lambda i: 1 // i, [1, 0])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(parallel.one_ahead(str, [])) == []
