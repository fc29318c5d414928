"""Rows of runs → differences paired by seed."""

import numpy as np
import pytest
import scipy.stats

from analysis.results import Spectra
from multilora.reproduction.figures import bands_table
from multilora.reproduction.report import MEASURES, difference_table, differences, publish


@pytest.fixture
def rows(rng):
    """Three seeds each of two methods, the second in another order."""
    return [
        {"method": method, "seed": seed, **{m: float(rng.standard_normal()) for m in MEASURES}}
        for method, seeds in (("full", (0, 1, 2)), ("lora", (2, 0, 1)))
        for seed in seeds
    ]


def test_differences_are_paired_by_seed(rows):
    compared = differences(rows)
    assert [row["measure"] for row in compared] == list(MEASURES)
    value = {(row["method"], row["seed"]): row["gini_k"] for row in rows}
    d = [value["full", seed] - value["lora", seed] for seed in (0, 1, 2)]
    row = compared[MEASURES.index("gini_k")]
    want = scipy.stats.t.interval(0.95, 2, np.mean(d), scipy.stats.sem(d))
    assert (row["low"], row["high"]) == pytest.approx(want)
    assert row["mean"] == pytest.approx(np.mean(d))
    assert (row["above"], row["below"]) == (sum(x > 0 for x in d), sum(x < 0 for x in d))


def test_one_seed_has_no_interval(rows):
    compared = differences([row for row in rows if row["seed"] == 1])
    assert {row["low"] for row in compared} == {None}
    assert "[–, –]" in difference_table(compared)


def test_one_method_has_no_difference(rows):
    assert differences([row for row in rows if row["method"] == "full"]) == []


def test_methods_of_other_seeds_are_paired_on_those_in_common(rows):
    """The last row is LoRA's of seed 1."""
    compared = differences(rows[:-1])
    assert {row["seeds"] for row in compared} == {2}
    want = differences([row for row in rows if row["seed"] != 1])
    assert compared == want
    assert "n = 2" in difference_table(compared)


def test_methods_without_a_common_seed_have_no_difference(rows):
    apart = [row for row in rows if (row["method"] == "full") == (row["seed"] == 0)]
    compared = differences(apart)
    assert {(row["seeds"], row["mean"], row["low"]) for row in compared} == {(0, None, None)}
    assert "– [–, –] 0/0" in difference_table(compared)


def test_what_a_method_has_too_few_values_for_is_left_out(rows):
    for row in rows[:3]:
        row["gini_k"] = None
    compared = {row["measure"]: row for row in differences(rows)}
    assert (compared["gini_k"]["seeds"], compared["gini_k"]["mean"]) == (0, None)
    assert compared["top_share_1"]["seeds"] == 3


def test_the_table_has_a_line_a_pair(rows):
    lines = difference_table(differences(rows)).splitlines()
    assert "n = 3" in lines[0]
    assert lines[2].startswith("full − lora")


def test_bands_of_pruned_ranks_go_as_far_as_all_do(rng):
    """AdaLoRA leaves each module a rank of its own."""
    spectra = Spectra()
    for i, r in enumerate((5, 3, 4)):
        key = f"run/{i}"
        spectra.rows.append({"key": key, "run": "run", "kind": "q"})
        spectra.s[key] = np.sort(rng.random(r))[::-1]
    table = bands_table(spectra, {"run": "peft:ADALORA"})
    assert [row["index"] for row in table] == [1, 2, 3]
    third = [spectra.s[f"run/{i}"][2] / np.linalg.norm(spectra.s[f"run/{i}"]) for i in range(3)]
    assert table[2]["median"] == pytest.approx(np.median(third))


def test_publishing_takes_the_place_of_an_earlier_run_and_of_nothing_else(tmp_path):
    results, to = tmp_path / "full", tmp_path / "figures"
    for directory, names in (
        (results, ("methods.csv", "a.png", "claims.md", "spectrum.csv", "spectra.safetensors")),
        (to, ("methods.csv", "old.png", "resources.csv", "resources.png", "quick/methods.csv")),
    ):
        for name in names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(directory.name)
    publish(results, to)
    there = {f.relative_to(to).as_posix(): f.read_text() for f in to.rglob("*") if f.is_file()}
    fresh = dict.fromkeys(("methods.csv", "a.png", "claims.md"), "full")
    kept = dict.fromkeys(("resources.csv", "resources.png", "quick/methods.csv"), "figures")
    assert there == fresh | kept


def test_results_are_not_published_onto_themselves(tmp_path):
    (tmp_path / "methods.csv").write_text("a")
    with pytest.raises(ValueError, match="expected results beside"):
        publish(tmp_path, tmp_path / "." / "")
    assert (tmp_path / "methods.csv").read_text() == "a"
