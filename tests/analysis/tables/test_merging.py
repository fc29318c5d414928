"""The printed report before merging: a table, and the words for every relation of two updates."""

import numpy as np
import pytest
from made_updates import dense, from_spectrum, low_rank, merged, orthonormal

from analysis.results import Merging
from analysis.tables import merging as merging_table
from analysis.tables.merging import relation, sentence
from analysis.tables.text import plain


def lines(rows, adapters=(), merged=()):
    """The printed lines, however wide."""
    found = Merging(rows, adapters=list(adapters), merged=list(merged))
    return list(plain(merging_table.lines(found)))


def row_of(rng, case):
    """A row of two updates that are built to lie to one another as `case` says."""
    U, V = orthonormal(rng, 400, 8), orthonormal(rng, 300, 8)
    s = np.array([4.0, 3, 2, 1])
    one, other = slice(0, 4), slice(4, 8)
    a = from_spectrum(U[:, one], s, V[:, one])
    turned = np.roll(np.arange(4), 1)
    b = {
        "same": a,
        "opposite": low_rank(a.B, a.A, -1),
        "independent": from_spectrum(U[:, other], s, V[:, other]),
        "aligned": low_rank(np.hstack([a.B, U[:, other] * s]), np.vstack([a.A, V[:, other].T])),
        "conflicting": low_rank(
            np.hstack([-a.B, U[:, other] * s]), np.vstack([a.A, V[:, other].T])
        ),
        "unrelated": from_spectrum(U[:, one], s, V[:, turned]),
        "writing": from_spectrum(U[:, one], s, V[:, other]),
        "reading": from_spectrum(U[:, other], s, V[:, one]),
        "partial": from_spectrum(U[:, [4, 1, 5, 6]], s, V[:, [4, 5, 1, 6]]),
    }[case]
    return merged(a, b)[0], a, b


@pytest.mark.parametrize(
    ("case", "name", "consequence"),
    [
        ("same", "nearly the same direction", "counts what they share twice, the average once"),
        (
            "opposite",
            "nearly opposite",
            "the sum cancels 100 % of their energy, and nothing is left",
        ),
        ("independent", "almost independent", "the sum keeps both, and needs 8 of 8 directions"),
        ("aligned", "partly aligned", "strengthens what they share (67 % more energy than the two"),
        ("conflicting", "conflicting", "the sum cancels 67 % of their energy, and needs 4 of 12"),
        ("unrelated", "overlapping, with unrelated content", "each changes what the other does"),
        (
            "writing",
            "writing the same directions, reading others",
            "hold the directions of only",
        ),
        (
            "reading",
            "reading the same directions, writing others",
            "sum writes what both write",
        ),
        ("partial", "partly overlapping, with unrelated content", "the sum keeps most of both"),
    ],
)
def test_words_for_every_relation(rng, case, name, consequence):
    row, a, b = row_of(rng, case)
    words = sentence([row])
    assert relation(row) == name
    assert words.startswith(f"{name} (cosine ")
    assert consequence in words
    assert "-0.00" not in words
    # Exchanging and scaling both changes nothing of it.
    swapped, _ = merged(low_rank(b.B, b.A, 1e-3 * b.scale), low_rank(a.B, a.A, 1e-3 * a.scale))
    assert relation(swapped) == name


def test_every_relation_has_its_words(rng):
    cases = (
        "same opposite independent aligned conflicting unrelated writing reading partial".split()
    )
    names = {relation(row_of(rng, case)[0]) for case in cases}
    assert names == set(merging_table.MEANING) - {"independent, overlapping only by chance"}


def test_random_matrices_are_not_said_to_be_kept(rng):
    """Nine tenths of the energy of a random matrix fill half of the space: they meet by chance."""
    row, _ = merged(*(dense(rng.standard_normal((60, 50))) for _ in "ab"))
    assert relation(row) == "independent, overlapping only by chance"
    words = sentence([row])
    assert "each changes what the other does" in words
    assert "keeps both" not in words


def test_words_give_the_evidence_with_chance(rng):
    words = sentence([row_of(rng, "writing")[0]])
    assert "cosine 0.00; 97 % of a's energy written to b's directions, by chance 0.75 %" in words
    assert "under 0.1 % of a's energy read from b's directions, by chance 1 %" in words


def scaled_row(rng, case, factor):
    _, a, b = row_of(rng, case)
    return merged(low_rank(a.B, a.A, factor * a.scale), b)[0]


@pytest.mark.parametrize("case", ["same", "opposite", "independent", "conflicting", "unrelated"])
def test_an_update_that_is_much_larger_is_named_whatever_the_relation(rng, case):
    words = sentence([scaled_row(rng, case, 40.0)])
    assert "as large as b, which will hardly count; the sum is nearly a alone, and needs" in words
    for untrue in ("keeps both", "twice", "cancels"):
        assert untrue not in words
    words = sentence([scaled_row(rng, case, 1 / 40)])
    assert "as large as a, which will hardly count; the sum is nearly b alone, and needs" in words


def test_an_update_that_is_larger_outweighs_and_both_count(rng):
    words = sentence([scaled_row(rng, "independent", 5.0)])
    assert "): a is 5 times as large as b and outweighs it; the sum keeps both" in words
    words = sentence([scaled_row(rng, "independent", 0.2)])
    assert "): b is 5 times as large as a and outweighs it; the sum keeps both" in words
    assert "times as large" not in sentence([scaled_row(rng, "independent", 3.0)])


def test_modules_that_lie_otherwise_are_counted(rng):
    """A median over a conflict and an accord would be no relation at all."""
    cases = ["aligned"] * 3 + ["conflicting"] * 2 + ["independent"]
    words = sentence([row_of(rng, case)[0] for case in cases])
    assert words.startswith("in 3 of 6 modules partly aligned (cosine 0.71;")
    assert words.endswith("Others: 2 conflicting; 1 almost independent")
    rows = [scaled_row(rng, "same", factor) for factor in (1, 1, 20, 0.05)]
    words = sentence(rows)
    assert words.startswith("in 2 of 4 modules nearly the same direction")
    assert words.endswith(
        "Others: 1 nearly the same direction, a much the larger;"
        " 1 nearly the same direction, b much the larger"
    )


def test_norm_ratios_that_are_opposite_are_no_ratio(rng):
    rows = [scaled_row(rng, "independent", factor) for factor in (8, 1 / 8)]
    assert "times as large" not in sentence(rows)
    rows = [scaled_row(rng, "independent", factor) for factor in (1 / 9, 1 / 9, 4, 4, 4)]
    assert "a is 4 times as large as b" in sentence(rows)


def front(row, kind="q", module="layers.0.q", step_a=None, run_b="B"):
    return {
        "run_a": "A",
        "step_a": step_a,
        "method_a": "lora",
        "run_b": run_b,
        "step_b": 7,
        "method_b": "full",
        "module": module,
        "kind": kind,
        **row,
    }


def test_lines_are_a_table_and_a_line_in_words_a_projection(rng):
    rows = [
        front(row_of(rng, case)[0], kind)
        for kind, case in (("q", "same"), ("v", "independent"), ("q", "same"), ("v", "opposite"))
    ]
    printed = list(lines(rows))
    assert printed[:2] == ["a: A  (lora)", "b: B  step 7  (full)"]
    heading, q, v, total, empty, words_q, words_v, end = printed[2:]
    assert heading.split()[:3] == ["kind", "modules", "cosine"]
    assert (q.split()[:4], v.split()[:2], total.split()[:2]) == (
        ["q", "2", "1.000", "1"],
        ["v", "2"],
        ["all", "4"],
    )
    assert words_q == f"q: {sentence([rows[0], rows[2]])}"
    assert words_v.startswith("v: in 1 of 2 modules almost independent")
    assert (empty, end) == ("", "")
    assert len({len(line) for line in (heading, q, v, total)}) == 1


def test_lines_of_a_sum_that_vanishes_have_dashes(rng):
    table = list(lines([front(row_of(rng, "opposite")[0])]))
    assert table[3].split()[-9:] == ["0.000", "0", "–", "–", "–", "of", "8", "4", "4"]


def test_several_pairs_have_one_line_each(rng):
    rows = [front(row_of(rng, "same")[0], run_b=run) for run in "BC"]
    printed = list(lines(rows))
    assert printed[0] == "Each pair, a ~ b"
    assert [line.split()[:5] for line in printed[2:4]] == [
        ["A", "~", "B", "step", "7"],
        ["A", "~", "C", "step", "7"],
    ]
    assert list(lines([])) == []


def of_adapter(run, step=None, **changed):
    return {
        "run": run,
        "step": step,
        "kind": "q",
        "capacity": 8,
        "frobenius_norm": 2.0,
        "effective_rank": 3.5,
        "top_share_1": 0.5,
        "shared_left": 0.25,
        "shared_right": 0.125,
        "chance_left": 0.01,
        "chance_right": 0.02,
        "alignment": 0.75,
        "alignment_chance": 0.1,
        "cosine": 0.6,
    } | changed


def of_merged(kind="q", **changed):
    return {
        "kind": kind,
        "adapters": 3,
        "merged_by": "tsv",
        "interference_relative": 0.3,
        "alignment": 0.75,
        "alignment_min": 0.5,
        "sign_conflict": 0.4,
        "norm_ratio": 2.0,
        "energy": 1.5,
        "effective_rank_before": 3.5,
        "effective_rank": 6.25,
        "top_share_1_before": 0.5,
        "top_share_1": 0.2,
        "rank_99": 9,
        "capacity": 12,
        "error": 0.0,
    } | changed


def test_adapters_and_the_merged_update_have_a_table_each(rng):
    adapters = [of_adapter("A"), of_adapter("A", frobenius_norm=4.0), of_adapter("B", 7)]
    merged = [of_merged(), of_merged("v", norm_ratio=8.0)]
    printed = lines([], adapters, merged)
    heading, columns, one, two, empty = printed[:5]
    assert (heading, empty) == ("Each adapter beside the others, and the merged update", "")
    assert columns.split()[:3] == ["adapter", "modules", "‖ΔW‖_F"]
    assert one.split() == (
        "A 2 3 3.50 of 8 0.500 0.250 (0.010) 0.125 (0.020) 0.750 (0.100) 0.600".split()
    )
    assert two.split()[:3] == ["B@7", "1", "2"]
    assert printed[5] == "3 adapters merged (tsv)"
    q, v, total = printed[7:10]
    assert q.split() == (
        "q 1 0.3 0.750 ≥ 0.500 0.400 2 1.500 3.50 → 6.25 0.500 → 0.200 9 of 12 0".split()
    )
    assert v.split()[0] == "v"
    assert total.split()[6:8] == ["0.400", "4"]  # √(2·8)


def test_a_merged_update_of_zero_has_dashes():
    missing = dict.fromkeys(("alignment", "alignment_min", "effective_rank", "rank_99"))
    printed = lines([], [of_adapter("A", alignment=None)], [of_merged(**missing)])
    assert "– ≥ –" not in printed[-3]  # one dash for a missing half is enough to see it
    assert printed[-3].count("–") >= 3


def test_the_explanation_says_what_the_numbers_do_not_tell():
    for words in (
        "do not tell the accuracy",
        "only an evaluation",
        "seeded sample of 10⁶",
        "average",
    ):
        assert words in " ".join(merging_table.EXPLANATION.split())
