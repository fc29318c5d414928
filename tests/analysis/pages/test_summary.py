"""The first sentence of a page says what the numbers say, and nothing that chance explains."""

from dataclasses import replace

import made_pages
import numpy as np
import pytest
from made_updates import low_rank

from analysis import spectrum
from analysis.checkpoint import Run
from analysis.pages.data import Results
from analysis.pages.summary import summarise
from analysis.pairs import dominance
from analysis.tables.dominance import contrary


def run(rng, name, exponent, kinds=("q_proj", "v_proj"), layers=6, r=8, exponents=None):
    """A run whose updates have spectra i^-exponent, or one exponent by kind."""
    entries = []
    for layer in range(layers):
        for kind in kinds:
            s = np.arange(1.0, r + 1) ** -(exponents or {}).get(kind, exponent)
            U, V = (np.linalg.qr(rng.standard_normal((32, r)))[0] for _ in range(2))
            entries.append(low_rank(U * s, V.T, name=f"layers.{layer}.{kind}"))
    return spectrum.of_updates(entries, Run(name, name, None))


def random_run(rng, name, r=8):
    entries = [
        low_rank(rng.standard_normal((32, r)), rng.standard_normal((r, 32)), name=f"layers.{i}.q")
        for i in range(8)
    ]
    return spectrum.of_updates(entries, Run(name, name, None))


def summary(*runs):
    spectra = made_pages.together(*runs)
    return summarise(Results(spectra, dominance.findings(spectra)))


def test_two_runs_and_where_they_differ(rng):
    flat = {"q_proj": 0.1, "v_proj": 0.1}
    a = run(rng, "a", 0, exponents=flat | {"v_proj": 2.0})
    found = summary(a, run(rng, "b", 0.1))
    assert found.title == "Spectra of a and b"
    assert found.where[1] == "More dominated, by projection: not clear in q_proj; a in v_proj."
    strong = summary(run(rng, "a", 2.0), run(rng, "b", 0.1))
    assert strong.sentence == "a is more dominated than b, by all measures."
    assert strong.where[2].startswith("It differs most, in eff. rank beyond chance, in layers.")


def test_ranks_alone_are_no_difference(rng):
    found = summary(random_run(rng, "small", r=4), random_run(rng, "large", r=16))
    assert "more dominated than" not in found.sentence
    assert "capacities explain" in found.sentence


def test_one_run_against_chance(rng):
    assert summary(run(rng, "a", 2.0)).sentence.startswith(
        "a: 12 of 12 modules are more concentrated than random updates"
    )
    assert summary(random_run(rng, "random")).sentence.startswith("random: 0 of 8 modules")


def test_rank_one_leaves_nothing_to_test(rng):
    assert summary(random_run(rng, "one", r=1)).sentence == (
        "one: 8 modules of capacity 1, which are neither more nor less dominated."
    )


def test_several_runs(rng):
    runs = [run(rng, name, exponent) for name, exponent in (("a", 2.0), ("b", 0.1), ("c", 0.1))]
    found = summary(*runs)
    assert found.sentence == (
        "a is more dominated than b and c (by all measures); 1 of 3 comparisons is not clear."
    )
    assert (len(found.comparisons), len(found.where)) == (3, 1)
    assert found.where[0].startswith("Share of ΔW's energy in the first direction, median over")
    alike = summary(*runs[1:], run(rng, "d", 0.1))
    assert alike.sentence.startswith("None of 3 comparisons shows which side")


def test_several_ranks_alone_are_no_difference(rng):
    found = summary(*(random_run(rng, f"r{r}", r=r) for r in (4, 8, 16)))
    assert found.sentence == (
        "None of 3 comparisons shows which side is more dominated; in 3 the capacities explain"
        " the difference."
    )


def test_many_orders_are_counted(rng):
    exponents = (3.0, 2.0, 1.5, 1.0, 0.1)
    runs = [run(rng, f"r{i}", exponent) for i, exponent in enumerate(exponents)]
    found = summary(*runs)
    assert found.sentence == (
        "r0 is the more dominated side in 4 of its 4 comparisons, more often than any other."
    )


def test_the_table_has_a_column_for_each_run(rng):
    found = summary(run(rng, "a", 2.0), run(rng, "b", 0.1))
    assert found.table[0] == ["median over modules", "a", "b"]
    lines = {heading: cells for heading, *cells in found.table}
    assert lines["modules"] == ["12", "12"]
    assert lines["more concentrated than chance"][0] == "12 of 12"
    assert float(lines["eff. rank"][0]) < float(lines["eff. rank"][1])


def test_what_is_missing_is_a_warning(rng):
    a, b = run(rng, "a", 1.0), run(rng, "b", 1.0, layers=7)
    a.skipped.append({"run": "a", "module": "layers.9.q", "reason": "a: layers.9.q: holds NaN"})
    found = summary(a, b)
    assert "Not analysed: a: layers.9.q: holds NaN" in found.warnings
    assert "2 modules only in b, such as layers.6.q_proj." in found.warnings


@pytest.mark.parametrize("count", [41, 100])
def test_many_skipped_modules_are_counted(rng, count):
    a = run(rng, "a", 1.0)
    a.skipped.extend({"run": "a", "module": str(i), "reason": f"a: {i}"} for i in range(count))
    more = count - 40
    assert f"{more} more module{'s' * (more > 1)} not analysed." in summary(a).warnings


def test_control_characters_of_names_are_escaped(rng):
    found = summary(run(rng, "a\u202e\x1b", 1.0))
    assert "\x1b" not in found.sentence + found.title + str(found.table)
    assert "\u202e" not in found.sentence


def test_a_first_direction_that_points_the_other_way_is_told(rng):
    """Evenness decides for a; the first direction's share is larger in b in half of the modules."""
    finding = dominance.findings(made_pages.together(run(rng, "a", 2.0), run(rng, "b", 0.1)))[0]
    assert [*contrary([finding])] == []
    turned = {**finding.readings}
    turned["top_share_1"] = replace(turned["top_share_1"], beyond=-0.1, more=None)
    turned = replace(finding, readings=turned, agreement=dominance.Agreement.WITHIN)
    (words,) = contrary([turned])
    assert words.endswith("its share is further beyond chance in b than in a.")
    (words,) = contrary([turned, finding, turned])
    assert words.endswith("in b than in a, and likewise in 1 more comparison.")
    assert [*contrary([replace(turned, more=None)])] == []


def test_the_terminal_says_the_same_sentence(rng, write_adapter, lora_tensors, run_main):
    paths = [write_adapter(lora_tensors("layers.0.q", "layers.1.q"), name) for name in "abc"]
    found = spectrum.analyse(paths)
    page = summarise(Results(found, dominance.findings(found)))
    printed = " ".join(run_main(spectrum.main, *paths)[1].split())
    assert printed.startswith(f"{page.sentence} {page.where[0]}")
