"""The printed comparisons of spectra, built to have a known verdict."""

import numpy as np
from made_spectra import power, spectra

from analysis.pairs import dominance
from analysis.tables import dominance as dominance_table
from analysis.tables.text import plain


def lines(of):
    return list(plain(dominance_table.lines(dominance.findings(of))))


def test_a_block_has_the_measures_and_what_was_left_out():
    a = power(8, 2) | {f"v{i}": [3, 1] for i in range(4)} | {"z": [0, 0]}
    got = lines(spectra(a=a, b=power(8, 0.5) | {"z": [1, 1]}))
    assert got[0] == "a (a) against b (b): 4 common modules; k = 8, held 1.000 and 1.000"
    assert got[1] == "only in a: 4 (v0, v1, v2, …)"
    assert got[2] == "left out, ΔW = 0 on one side: 1 (z)"
    assert got[4].split()[0] == "top-1"
    assert got[4].endswith("a in 4 of 4  clear")
    medians = [
        np.median([s[0] ** 2 / np.sum(s**2) for s in power(8, x).values()]) for x in (2, 0.5)
    ]
    assert got[4].split()[1:3] == [f"{median:.3f}" for median in medians]
    assert not any(line.startswith(("top-16", "kind")) for line in got)
    assert "a is more dominated than b, by all measures." not in got  # it stands above everything
    assert max(map(len, got)) <= 80


def test_unlike_capacities_have_a_column_beyond_chance():
    pair = spectra(a=power(4, 0.6), b=power(48, 0.6))
    got = lines(pair)
    assert [cell.strip() for cell in got[1].split("  ") if cell.strip()][-3:] == [
        *("a − b", "beyond", "more dominated")
    ]
    (top,) = [line for line in got if line.startswith("top-1 ")]
    assert top.endswith("a in 4 of 4  by capacity")
    difference, beyond = map(float, top.split()[3:5])
    assert difference > 0.1
    assert beyond < 0
    (finding,) = dominance.findings(pair)
    assert finding.sentence == ("a and b differ by top-1: the capacities explain the difference.")
    assert max(map(len, got)) <= 80
    alike = lines(spectra(a=power(8, 2), b=power(8, 0.5)))
    assert "beyond" not in alike[1]


def test_many_pairs_say_that_capacity_explains():
    runs = {f"r{k}": power(k, 0.6) for k in (4, 16, 48)} | {"z": {"v": [1, 1]}}
    got = lines(spectra(**runs))
    (line,) = [line for line in got if line.startswith("r4 – r48")]
    assert line.endswith("by capacity")


def test_several_kinds_get_one_line_each():
    a, b = power(8, 2), power(8, 0.5)
    more = {"v" + module: s for module, s in a.items()}
    got = lines(spectra(a=a | more, b=b | more))
    (heading,) = [i for i, line in enumerate(got) if line.startswith("kind")]
    assert [got[heading + i].split()[0] for i in (1, 2)] == ["q", "v"]
    assert got[heading + 1].endswith("a: all")
    assert got[heading + 2].endswith("not clear")
    assert len({len(line) for line in got[heading : heading + 3]}) == 1


def test_the_sentences_of_two_and_three_pairs_stand_below_them():
    got = lines(spectra(a=power(8, 2), b=power(8, 1), c=power(8, 0.1)))
    assert [line.partition(",")[0] for line in got if " is more " in line] == [
        *("a is more dominated than b", "a is more dominated than c", "b is more dominated than c")
    ]


def test_many_pairs_get_one_line_each():
    names = "abcd"
    runs = {name: power(8, i) for i, name in enumerate(names)} | {"d": {"v": [1, 1]}}
    got = lines(spectra(**runs))
    assert [line.split("  ")[0] for line in got[1:7]] == [
        *("a – b", "a – c", "a – d", "b – c", "b – d", "c – d")
    ]
    assert got[1].endswith("b: all")
    assert got[3].endswith("nothing to compare")
    assert "a – d: only in a: 4; only in d: 1" in got


def test_steps_of_one_run_are_called_by_their_step():
    steps = {f"run_at_{i}": power(8, i / 2) for i in range(1, 5)}
    got = lines(spectra(**steps))
    assert got[0].startswith("run ")
    assert [line.split("  ")[0] for line in got[1:5]] == ["1 – 2", "2 – 3", "3 – 4", "1 – 4"]
    assert got[5] == "run@4 is more dominated than run@1, by all measures."


def test_numbers_that_round_to_zero_have_no_minus():
    a = power(8, 1)
    got = lines(spectra(a={m: s * (1 + 1e-9) for m, s in a.items()}, b=a))
    assert "-0.00" not in "\n".join(got)
