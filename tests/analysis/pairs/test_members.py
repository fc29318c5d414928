"""The walk over what meets: every update decomposed once, and every fault said once."""

import json
import re
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import checkpoint, similarity
from analysis.checkpoint import Run
from analysis.formats import Options, full
from analysis.numerics import decompose
from analysis.pairs import meeting, members
from analysis.pairs.members import ONE, PAIR, Members, over_modules, pair_columns
from analysis.update import DenseUpdate
from analysis.work.cluster import Lost
from analysis.work.kept import Kept


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


@pytest.fixture
def many(write_adapter, rng):
    """Eight adapters of twelve modules, 7.7 MB each."""

    def tensors():
        return {
            f"base_model.model.layers.{i}.q.lora_{factor}.weight": rng.standard_normal(shape, "f4")
            for i in range(12)
            for factor, shape in (("A", (8, 10000)), ("B", (10000, 8)))
        }

    return [write_adapter(tensors(), f"a{n}", r=8) for n in range(8)]


@pytest.fixture
def models(tmp_path, rng):
    """Two full fine-tunes of two matrices, as this project stores them."""
    paths = []
    for name in "ab":
        tensors = {f"layers.{i}.q": rng.standard_normal((5, 4)) for i in range(2)}
        facts = {"format": full.FORMAT, "version": full.VERSION}
        facts["modules"] = {key: {"floor": 1e-09} for key in tensors}
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / full.WEIGHTS)
        (tmp_path / name / full.CONFIG).write_text(json.dumps(facts))
        paths.append(tmp_path / name)
    return paths


def peak(paths):
    """The results of comparing checkpoints, and the most memory that it took, in MB."""
    tracemalloc.start()
    result = similarity.analyse(paths)
    most = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return result, most


def test_many_adapters_are_never_in_memory_together(many, monkeypatch):
    size = 12 * 2 * 8 * 10000 * 4 / 1e6
    monkeypatch.setattr(members, "HELD", 1)  # one module at a time
    few, least = peak(many)
    monkeypatch.setattr(meeting, "HELD", 99)
    whole, most = peak(many)
    assert few.rows == whole.rows
    assert {key: x.tobytes() for key, x in few.phi.items()} == {
        key: x.tobytes() for key, x in whole.phi.items()
    }
    of_module = 8 * size / 12
    assert most > 8 * size
    assert least < 2 * size + 4 * of_module  # stored, in float64 and decomposed, and the results


class Here:
    """A cluster that computes in this process and loses the modules of `lost`."""

    def __init__(self, *lost):
        self.lost = lost

    def each(self, function, items, size):
        for item in sorted(items, key=size, reverse=True):
            yield item, Lost("why") if item.module in self.lost else function(item)


def test_other_processes_compare_dense_modules_and_a_lost_one_is_skipped(models, rng):
    whole = similarity.analyse(models)
    runs, options = checkpoint.runs(models), Options()
    spread = similarity.of_runs(runs, options=options, cluster=Here())
    assert repr(spread.rows) == repr(whole.rows)
    assert [(key, x.tobytes()) for key, x in spread.phi.items()] == [
        (key, x.tobytes()) for key, x in whole.phi.items()
    ]
    fewer = similarity.of_runs(runs, options=options, cluster=Here("layers.0.q"))
    assert [row["module"] for row in fewer.rows] == ["layers.1.q"]
    assert [(skip["run"], skip["reason"]) for skip in fewer.skipped] == [
        ("a", "layers.0.q: why"),
        ("b", "layers.0.q: why"),
    ]


def test_dense_modules_are_kept_and_not_compared_again(collected, tmp_path, monkeypatch, rng):
    W = [rng.standard_normal((5, 4)) for _ in range(3)]
    found = meeting.Collected()
    runs = [Run(tmp_path / name, name, None) for name in "abc"]
    for run, x in zip(runs, W, strict=True):
        found.modules.setdefault("q", {})[run.key] = [DenseUpdate("q", x.shape, lambda x=x: x)]

    def compared(**options):
        monkeypatch.setattr(meeting, "collect", lambda *_: found)
        return similarity.of_runs(runs, options=Options(), **options)

    fresh = compared()
    out = tmp_path / "out"
    first = compared(kept=Kept(out, lambda: {"command": "c"}))
    monkeypatch.setattr(decompose, "decomposition", lambda update: pytest.fail("decomposed"))
    again = compared(kept=Kept(out, lambda: {"command": "c"}))
    for result in (first, again):
        assert repr(result.rows) == repr(fresh.rows)
        assert [(key, x.tobytes()) for key, x in result.phi.items()] == [
            (key, x.tobytes()) for key, x in fresh.phi.items()
        ]
