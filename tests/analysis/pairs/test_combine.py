"""Sums of checkpoints against the sum of their dense updates, and what is not a sum."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import Options
from analysis.pairs import combine
from analysis.pairs.combine import Term, averages, parse, sums
from analysis.spectrum import analyse, main
from analysis.update import DenseUpdate, LowRankUpdate, Other, Skipped


@pytest.fixture
def two(write_adapter, lora_tensors):
    """Two adapters of other numbers, modules and ranks of scale."""
    paths = []
    for i, modules in enumerate((("q", "v"), ("q", "k"))):
        tensors = {n: (i + 1) * x[::-1] ** (i + 1) for n, x in lora_tensors(*modules).items()}
        tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
        paths.append(write_adapter(tensors, f"adapter{i}", lora_alpha=8))
    return paths


def dense(path):
    return {update.name: update.dense() for update in checkpoint.read(path)}


def test_a_weighted_sum_is_the_sum_of_the_updates(two):
    terms = [Term(0.75, two[0]), Term(-2.0, two[1])]
    a, b = dense(two[0]), dense(two[1])
    zero = np.zeros((12, 10))
    found = {update.name: update for update in sums(terms, Options())}
    assert found.keys() == {"q", "v", "k"}
    for name, update in found.items():
        assert isinstance(update, LowRankUpdate)
        want = 0.75 * a.get(name, zero) - 2.0 * b.get(name, zero)
        np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-13 * np.abs(want).max())
    assert found["q"].capacity == 8
    assert found["v"].capacity == 4


def test_averaged_factors_are_what_peft_calls_an_average_of_weights(two):
    """(Σ wB)(Σ wA), as federated averaging of the files gives it; not the sum."""
    terms = [Term(0.5, path) for path in two]
    files = [load_file(path / "adapter_model.safetensors") for path in two]
    key = "base_model.model.q.lora_{}.weight"
    B, A = (sum(0.5 * file[key.format(f)].astype(float) for file in files) for f in "BA")
    (update,) = averages(terms, Options())
    assert update.name == "q"
    np.testing.assert_allclose(update.dense(), 2.0 * B @ A, rtol=0, atol=1e-12)
    exact = next(u for u in sums(terms, Options()) if u.name == "q")
    assert np.abs(exact.dense() - update.dense()).max() > 0.1


def test_peft_cat_is_the_exact_sum(tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(7, 5)), config, adapter_name="a")
    model.add_adapter("b", config)
    model.add_weighted_adapter(["a", "b"], [0.3, 0.7], "both", combination_type="cat")
    model.save_pretrained(tmp_path)
    (update,) = sums([Term(0.3, tmp_path / "a"), Term(0.7, tmp_path / "b")], Options())
    (merged,) = checkpoint.read(tmp_path / "both")
    np.testing.assert_allclose(update.dense(), merged.dense(), rtol=0, atol=1e-6)


def test_a_sum_with_a_dense_update_is_dense(write_adapter, write_delta, lora_tensors, rng):
    W = rng.standard_normal((12, 10)).astype("f4")
    lora = write_adapter(lora_tensors("q"))
    full = write_delta({"q": W}, modules={"q": {"floor": 0.3}})
    (update,) = sums([Term(0.5, lora), Term(2.0, full)], Options())
    assert isinstance(update, DenseUpdate)
    want = 0.5 * dense(lora)["q"] + 2.0 * W
    np.testing.assert_allclose(update.dense(), want, rtol=0, atol=1e-12)
    assert update.floor() == pytest.approx(0.6)
    assert list(averages([Term(0.5, lora), Term(2.0, full)], Options())) == []


def test_floors_add_as_they_are_and_none_is_none(write_delta, two):
    """The rounding of W0 is the same in both: it does not average out."""
    W = {"q": np.ones((12, 10), "f4")}
    paths = [write_delta(W, f"full{i}", modules={"q": {"floor": 0.3}}) for i in (1, 2)]
    (update,) = sums([Term(0.5, paths[0]), Term(-0.5, paths[1])], Options())
    assert update.floor() == pytest.approx(0.3)
    unrounded = [DenseUpdate("q", (12, 10), lambda: W["q"]), next(checkpoint.read(two[0]))]
    assert combine.weighted_sum([(1.0, update) for update in unrounded]).floor is None


def test_what_is_not_averaged_by_its_factors_is_listed(two, write_adapter, lora_tensors):
    other = write_adapter(lora_tensors("q"), "other", lora_alpha=1)
    (entry,) = averages([Term(1, two[0]), Term(1, other)], Options())
    assert entry == Other("q", "factors of different shapes or scales: not averaged")
    (entry,) = averages([Term(1, two[0])], Options(initial=two[1]))
    assert "not averaged" in entry.what
    multi = {"q.multilora_A": np.ones((4, 10)), "q.multilora_B": np.ones((12, 4))}
    multi["q.multilora_s"] = np.ones((12, 2))
    path = write_adapter(multi, "multi", peft_type="MULTILORA", n=2, r=2)
    assert list(averages([Term(1, path)], Options())) == []


def test_a_module_that_one_cannot_read_is_no_sum(two):
    file = two[1] / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.q.lora_A.weight"]
    save_file(tensors, file)
    entries = {e.name: e for e in sums([Term(1, path) for path in two], Options())}
    assert "q: has lora_B but no lora_A" in entries["q"].reason
    assert isinstance(entries["v"], LowRankUpdate)


def test_other_shapes_make_no_sum(write_adapter, lora_tensors):
    paths = [write_adapter(lora_tensors("q", d_in=d), f"a{d}") for d in (10, 11)]
    (entry,) = sums([Term(1, path) for path in paths], Options())
    assert isinstance(entry, Skipped)
    assert "q: shapes differ, " in entry.reason
    for path, d_in in zip(paths, (10, 11), strict=True):
        assert f"{path / 'adapter_model.safetensors'} has (12, {d_in})" in entry.reason


@pytest.mark.parametrize("text", ["adapter", "x:adapter", "0.5", "nan:a", ":a", "1e999:a", "1-:a"])
def test_a_term_without_its_weight_is_refused(text):
    with pytest.raises(ValueError, match="expected WEIGHT:PATH"):
        parse(text)
    assert parse("-0.5:a:b/") == combine.Term(-0.5, combine.Path("a:b/"))


@pytest.mark.parametrize("taken", ["combined", "factors"])
def test_a_sum_beside_a_run_of_its_name_is_kept_and_judged(
    write_adapter, lora_tensors, taken, capsys
):
    """The run keeps its name; the sum gets another, and the verdict is about the sum."""
    a = write_adapter(lora_tensors("q"), taken)
    b = write_adapter(lora_tensors("q"), "other")
    terms = [Term(0.5, a), Term(0.5, b)]
    runs = {"combined": "combined", "factors": "factors", taken: f"{taken}-2"}
    spectra = analyse([a, b], terms=terms)
    assert spectra.skipped == []
    assert [row["run"] for row in spectra.rows] == [taken, "other", *runs.values()]
    of_run = {row["run"]: spectra.s[row["key"]] for row in spectra.rows}
    half = 0.5 * (dense(a)["q"] + dense(b)["q"])
    want = np.linalg.svd(half, compute_uv=False)[: of_run[runs["combined"]].size]
    np.testing.assert_allclose(of_run[runs["combined"]], want, rtol=0, atol=1e-12 * want[0])
    alone = analyse(a)
    np.testing.assert_array_equal(of_run[taken], alone.s[f"{taken}/q"])
    assert main([str(a), "--combine", f"0.5:{a}", f"0.5:{b}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    compared = {(v["run_a"], v["run_b"]) for v in result["verdicts"]}
    assert (taken, runs[taken]) in compared


def test_a_run_of_steps_called_combined_keeps_its_steps_apart_from_the_sum(
    write_adapter, lora_tensors, tmp_path
):
    for step in (1, 2):
        write_adapter(lora_tensors("q"), f"combined/checkpoint-{step}")
    spectra = analyse(tmp_path / "combined", terms=[Term(1.0, tmp_path / "combined/checkpoint-1")])
    assert [(row["run"], row["step"]) for row in spectra.rows] == [
        ("combined", 1),
        ("combined", 2),
        ("combined-2", None),
        ("factors", None),
    ]


def test_the_command(two, capsys):
    terms = [f"0.5:{path}" for path in two]
    assert main(["--combine", *terms, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    keys = [row["key"] for row in result["rows"]]
    assert keys == ["combined/q", "combined/v", "combined/k", "factors/q"]
    assert {row["method"] for row in result["rows"]} == {"sum", "average of factors"}
    assert len(result["record"]["inputs"]) == 4
    assert main([str(two[0]), "--combine", *terms]) == 0
    heading, methods = capsys.readouterr().out.split("\n\n")[1].splitlines()[:2]
    assert heading.split() == ["adapter0", "combined", "factors"]
    assert methods.split() == ["method", "lora", "sum", "average", "of", "factors"]
    assert main(["--combine", "0.5:/nowhere"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "/nowhere: no such file" in errors[0]
    assert main(["--combine", "half:a"]) == 2
    capsys.readouterr()
    with pytest.raises(CheckpointError, match="no such"):
        list(sums([Term(1, two[0] / "nowhere")], Options()))
    assert len(analyse([], terms=[Term(1.0, two[0])]).rows) == 4
