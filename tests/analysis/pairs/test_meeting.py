"""Which updates of several checkpoints meet, and what is said of those that do not."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import UserError, checkpoint
from analysis.formats import Options
from analysis.pairs import meeting as pairing
from analysis.update import DenseUpdate, LowRankUpdate

ALL = re.compile("")


def update(name="q", part="", **fields):
    return LowRankUpdate(name, np.ones((4, 2)), np.ones((2, 3)), part=part, **fields)


def collected(paths, rename=(), wanted=ALL):
    runs = checkpoint.runs(paths)
    return runs, pairing.collect(runs, Options(), wanted, rename)


def test_modules_are_collected_by_name(write_adapter, lora_tensors):
    a = write_adapter(lora_tensors("layers.0.q", "layers.0.v"), "a")
    b = write_adapter(lora_tensors("layers.0.v", "layers.1.v"), "b")
    runs, found = collected([a, b])
    assert {module: list(by_run) for module, by_run in found.modules.items()} == {
        "layers.0.q": ["a"],
        "layers.0.v": ["a", "b"],
        "layers.1.v": ["b"],
    }
    assert found.names(runs[1]) == ["layers.0.v", "layers.1.v"]
    _, found = collected([a, b], wanted=re.compile(r"1\.v"))
    assert list(found.modules) == ["layers.1.v"]


def test_factors_stay_in_the_dtype_they_are_stored_in(write_adapter, lora_tensors):
    _, found = collected([write_adapter(lora_tensors("q"))])
    (only,) = found.modules["q"]["adapter"]
    assert only.B.dtype == np.float32


def test_what_cannot_be_read_is_noted(write_adapter, lora_tensors, tmp_path):
    good = write_adapter(lora_tensors("q"), "good")
    broken = write_adapter(lora_tensors("q"), "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    halved = lora_tensors("q", "v")
    del halved["base_model.model.v.lora_B.weight"]
    half = write_adapter(halved, "half")
    _, found = collected([good, broken, half])
    assert [(skip["run"], skip["module"]) for skip in found.skipped] == [
        ("broken", ""),
        ("half", "v"),
    ]


def test_names_can_be_changed_so_that_they_meet(write_adapter, lora_tensors):
    a = write_adapter(lora_tensors("layers.0.q"), "a")
    b = write_adapter(lora_tensors("blocks.0.attention.query"), "b")
    rename = [("^blocks", "layers"), (r"attention\.query$", "q")]
    _, found = collected([a, b], rename)
    assert list(found.modules) == ["layers.0.q"]
    assert list(found.modules["layers.0.q"]) == ["a", "b"]


def test_two_modules_of_one_name_are_not_mixed_up(write_adapter, lora_tensors):
    a = write_adapter(lora_tensors("q", "k"), "a")
    _, found = collected([a], [("k", "q")])
    assert len(found.modules["q"]["a"]) == 1
    assert "appears twice" in found.skipped[0]["reason"]


@pytest.mark.parametrize("rename", [("(", "x"), ("q", r"\2")])
def test_a_pattern_that_is_none(write_adapter, lora_tensors, rename):
    with pytest.raises(ValueError, match="--map"):
        collected([write_adapter(lora_tensors("q"))], [rename])


def test_pairs_that_share_a_module_and_what_they_lack(write_adapter, lora_tensors):
    a = write_adapter(lora_tensors("q", "v"), "a")
    b = write_adapter(lora_tensors("q", "k"), "b")
    runs, found = collected([a, b])
    assert pairing.sharing([(runs[0], runs[1])], found) == [(runs[0], runs[1])]
    assert [(skip["run"], skip["module"]) for skip in found.skipped] == [("a", "k"), ("b", "v")]
    assert f"{b}: v: is missing, but is in {a}" in found.skipped[1]["reason"]


def test_pairs_that_share_nothing_get_a_hint(write_adapter, lora_tensors):
    a = write_adapter(lora_tensors("model.layers.0.self_attn.q_proj"), "a")
    b = write_adapter(lora_tensors("transformer.layers.0.attn.q_proj"), "b")
    runs, found = collected([a, b])
    assert pairing.sharing([(runs[0], runs[1])], found) == []
    (skip,) = found.skipped
    assert "share no module" in skip["reason"]
    assert "model.layers.0.self_attn.q_proj and transformer.layers.0.attn.q_proj" in skip["reason"]
    assert "--map" in skip["reason"]


def test_a_run_that_cannot_be_read_is_not_said_to_lack_modules(write_adapter, lora_tensors):
    a = write_adapter(lora_tensors("q"), "a")
    b = write_adapter(lora_tensors("q"), "b")
    (b / "adapter_model.safetensors").unlink()
    runs, found = collected([a, b])
    assert pairing.sharing([(runs[0], runs[1])], found) == []
    assert len(found.skipped) == 1


def meeting(a, b):
    return pairing.match_parts(a, b, lambda update: update.part)


def test_parts_meet_by_name_and_the_rest_is_told():
    a, b = [update(part="x"), update(part="y")], [update(part="y"), update(part="z")]
    assert meeting(a, b) == ([(a[1], b[0])], [a[0]], [b[1]])


def test_an_update_without_parts_meets_every_part():
    whole, heads = [update()], [update(part="head1"), update(part="head2")]
    assert meeting(whole, heads) == ([(whole[0], heads[0]), (whole[0], heads[1])], [], [])
    assert meeting(heads, whole) == ([(heads[0], whole[0]), (heads[1], whole[0])], [], [])
    task = [update(part="task")]
    assert meeting(heads, task) == ([], heads, task)


def test_parts_of_a_module():
    assert list(pairing.parts([update()])) == []
    heads = [update(part="head1"), update(part="head2")]
    assert list(pairing.parts(heads)) == heads
    assert list(pairing.parts([update(part="slice0", of_rows=True)])) == []
    dense = [DenseUpdate("q", (2, 2), lambda: np.eye(2), part=part) for part in "ab"]
    assert list(pairing.parts(dense)) == dense
    stacked = list(pairing.parts([update(stacked=2)]))
    assert [part.part for part in stacked] == ["1", "2"]
    np.testing.assert_array_equal(sum(part.dense() for part in stacked), update().dense())


def test_a_real_pair_meets(real_adapter):
    paths = [real_adapter(f"roberta-portuguese-run/checkpoint-{step}") for step in (500, 8610)]
    runs, found = collected(paths)
    assert pairing.sharing([(runs[0], runs[1])], found) == [(runs[0], runs[1])]
    assert len(found.modules) == 24
    assert all(len(by_run) == 2 for by_run in found.modules.values())
    assert found.skipped == []


def test_millions_of_comparisons_of_a_small_checkpoint_are_refused(rng):
    run = checkpoint.Run(Path("a"), "a", None)
    whole = LowRankUpdate("q", rng.standard_normal((5, 300)), rng.standard_normal((300, 5)))
    few, many = (pairing.Collected() for _ in range(2))
    few.modules["q"] = {"a": [replace(whole, stacked=3)]}
    many.modules["q"] = {"a": [replace(whole, stacked=300)]}
    pairing.refuse_many([], [run], few)
    pairing.refuse_many([], [], many)
    with pytest.raises(UserError, match="44850 comparisons of updates that have 3000 numbers"):
        pairing.refuse_many([], [run], many)


def test_a_hint_about_names_takes_no_time(rng):
    """Two long names are compared in a tenth of a second; here are millions of pairs."""
    a, b = ([f"{i}.{letter * 900}" for i in range(2000)] for letter in "qv")
    assert "their names look like" in pairing._closest(a, b)
    assert "closest names are 0." in pairing._closest([a[0]], [a[1]])


@pytest.fixture
def four(write_adapter, lora_tensors):
    """Four runs of three modules, the last in another order and with other values."""
    names = ["layers.0.q", "layers.0.v", "layers.1.q"]
    paths = [write_adapter(lora_tensors(*names), name) for name in "abc"]
    return [*paths, write_adapter(lora_tensors(*reversed(names)), "d")]


def numbers_of(by_run):
    return {
        key: [(u.name, u.part, u.B.tobytes(), u.A.tobytes()) for u in updates]
        for key, updates in by_run.items()
    }


@pytest.mark.parametrize("order", [1, -1])
def test_of_many_runs_only_outlines_are_kept_and_the_numbers_are_read_again(
    four, monkeypatch, order
):
    _, found = collected(four)
    monkeypatch.setattr(pairing, "HELD", 99)
    _, whole = collected(four)
    assert list(found.modules) == list(whole.modules)
    for module in list(found.modules)[::order]:
        assert [u.B.any() for (u,) in found.modules[module].values()] == [True, True, False, False]
        shapes = [(u.B.shape, u.A.shape, u.stored) for (u,) in found.modules[module].values()]
        assert shapes == [(u.B.shape, u.A.shape, u.stored) for (u,) in whole.of(module).values()]
        for _ in range(2):  # also a second time
            assert numbers_of(found.of(module)) == numbers_of(whole.of(module))
    assert found.skipped == []


def test_an_outline_takes_no_memory():
    of = pairing.outline(
        LowRankUpdate("q", np.ones((1000, 8)), np.ones((8, 2000), "f4"), stacked=2)
    )
    assert (of.B.base.nbytes, of.A.base.nbytes) == (8, 4)
    assert (of.shape, of.r, of.stacked, of.stored[1]) == ((1000, 2000), 8, 2, np.float32)
    dense = DenseUpdate("q", (2, 3), lambda: np.ones((2, 3)))
    assert pairing.outline(dense) is dense


def test_only_wanted_modules_wait_in_memory(four):
    _, found = collected(four, wanted=re.compile("1.q"), rename=[("layers", "l")])
    assert list(found.of("l.1.q")) == ["a", "b", "c", "d"]
    assert [again._passed for again in found.again.values()] == [{}, {}]


@pytest.mark.parametrize("left", [[], ["layers.0.q"]])
def test_a_file_that_changed_meanwhile_is_noted(four, left, write_adapter, lora_tensors):
    _, found = collected(four)
    (four[2] / "adapter_model.safetensors").unlink()
    if left:
        write_adapter(lora_tensors(*left), "c")
    assert found.of("layers.0.v")["c"] == []
    (note,) = found.skipped
    assert note["reason"].startswith(f"{four[2]}: layers.0.v: has changed or cannot be read")
    assert len(found.of("layers.0.v")["d"]) == 1
