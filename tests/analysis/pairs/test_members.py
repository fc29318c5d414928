"""The walk over what meets: every update decomposed once, and every fault said once."""

import re

import numpy as np
import pytest

from analysis import checkpoint
from analysis.formats import Options
from analysis.numerics import decompose
from analysis.pairs import meeting, members
from analysis.pairs.members import ONE, PAIR, Members, over_modules, pair_columns


@pytest.fixture
def collected(write_adapter, lora_tensors):
    """Three runs of q and v; in run c, v is zero."""
    paths = [write_adapter(lora_tensors("l.0.q", "l.0.v"), name) for name in "ab"]
    zero = lora_tensors("l.0.q", "l.0.v")
    zero["base_model.model.l.0.v.lora_B.weight"][:] = 0
    paths.append(write_adapter(zero, "c"))
    runs = checkpoint.runs(paths)
    return runs, meeting.collect(runs, Options(), re.compile(""), [("^l", "layers")])


def all_pairs(runs):
    return [(a, b) for i, a in enumerate(runs) for b in runs[i + 1 :]]


def test_each_update_is_decomposed_once(collected, monkeypatch):
    runs, found = collected
    seen = []
    decomposition = decompose.decomposition
    monkeypatch.setattr(
        members.decompose,
        "decomposition",
        lambda update: seen.append(update) or decomposition(update),
    )
    assert len(list(Members("layers.0.q", found).pairs(all_pairs(runs)))) == 3
    assert len(seen) == 3


def test_zero_is_noted_once_and_has_no_pair(collected):
    runs, found = collected
    of_module = Members("layers.0.v", found)
    assert [(a.run.name, b.run.name) for a, b in of_module.pairs(all_pairs(runs))] == [("a", "b")]
    (note,) = of_module.skipped
    assert (note["run"], note["module"]) == ("c", "layers.0.v")
    assert "ΔW is zero" in note["reason"]
    assert [member.decomposition.rank for member in Members("layers.0.v", found).of(runs[2])] == [0]


def test_an_update_of_rank_one_is_not_zero(write_adapter, lora_tensors):
    paths = [write_adapter(lora_tensors("q", r=1), name, r=1) for name in "ab"]
    runs = checkpoint.runs(paths)
    of_module = Members("q", meeting.collect(runs, Options(), re.compile("")))
    ((a, b),) = of_module.pairs(all_pairs(runs))
    assert (a.decomposition.rank, b.decomposition.rank) == (1, 1)
    assert (of_module.skipped, of_module.zero) == ([], [])


def test_columns_say_which_updates_meet(collected):
    runs, found = collected
    ((a, b),) = Members("layers.0.q", found).pairs([(runs[0], runs[1])])
    assert tuple(a.columns) == ONE
    line = pair_columns(a, b)
    assert tuple(line) == PAIR
    # Keys are the names of the checkpoints, modules the names under which they meet.
    assert line["key"] == "a/l.0.q~b/l.0.q"
    assert (line["module"], line["layer"], line["kind"]) == ("layers.0.q", 0, "q")


def test_modules_come_in_their_order_with_what_was_noted(collected):
    runs, found = collected

    def job(of_module):
        return of_module.module, len(list(of_module.pairs(all_pairs(runs))))

    assert list(over_modules(job, found, progress=False)) == [("layers.0.q", 3), ("layers.0.v", 1)]
    assert len(found.skipped) == 1


def test_dense_modules_come_last(write_adapter, write_delta, lora_tensors, rng):
    full = write_delta({"l.0.q": rng.standard_normal((12, 10)).astype("f4")})
    runs = checkpoint.runs([full, write_adapter(lora_tensors("l.0.q", "l.0.v"), "a")])
    found = meeting.collect(runs, Options(), re.compile(""))
    names = list(over_modules(lambda of_module: of_module.module, found, progress=False))
    assert names == ["l.0.v", "l.0.q"]


def test_a_fault_of_one_run_leaves_the_others(write_adapter, lora_tensors):
    bad = lora_tensors("q")
    bad["base_model.model.q.lora_A.weight"][0, 0] = np.nan
    paths = [write_adapter(lora_tensors("q"), name) for name in "ab"] + [write_adapter(bad, "c")]
    runs = checkpoint.runs(paths)
    of_module = Members("q", meeting.collect(runs, Options(), re.compile("")))
    assert len(list(of_module.pairs(all_pairs(runs)))) == 1
    assert [note["run"] for note in of_module.skipped] == ["c"]


def test_what_does_not_fit_into_memory_is_noted(collected, monkeypatch):
    runs, found = collected

    def too_large(update):
        raise MemoryError

    monkeypatch.setattr(members.decompose, "decomposition", too_large)
    of_module = Members("layers.0.q", found)
    assert list(of_module.pairs(all_pairs(runs))) == []
    assert len(of_module.skipped) == 3
    assert "does not fit into memory" in of_module.skipped[0]["reason"]
