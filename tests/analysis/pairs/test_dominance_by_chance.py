"""Verdicts on random, truncated and planted updates: what capacity alone must not decide."""

import functools

import numpy as np
import pytest

from analysis.checkpoint import Run
from analysis.formats import Options
from analysis.numerics import metrics
from analysis.pairs import dominance
from analysis.pairs.dominance import Agreement, Finding
from analysis.results import Spectra
from analysis.spectrum import analyse, of_updates
from analysis.update import DenseUpdate, LowRankUpdate

A, B = ("a", None), ("b", None)
WITHOUT_VERDICT = {Agreement.NONE, Agreement.EXPLAINED, Agreement.CAPACITY}
SHAPES = ((24, 40), (48, 48), (64, 40), (96, 64))
PLANTED = SHAPES[1:] * 3
RANKS = (2, 4, 8, 16, 24, 40, 64, 128, None)  # None: dense
REAL = {
    "sam-lora-ranks/rank8": Options(factors=(r"w_a_(\d+)", r"w_b_(\d+)")),
    "roberta-portuguese-run/checkpoint-8610": None,
}


def compared(a, b) -> Finding:
    """Judge two lists of updates."""
    found = Spectra()
    for name, updates in (("a", a), ("b", b)):
        of_one = of_updates(updates, Run(name, name, None))
        found.rows.extend(of_one.rows)
        found.s.update(of_one.s)
    return dominance.judge(dominance.pair_spectra(found, A, B))


def untrained(rng, shapes, r):
    """Gaussian factors of rank r, or Gaussian matrices for None, one per shape."""
    updates = []
    for i, (d_out, d_in) in enumerate(shapes):
        if r is None:
            W = rng.standard_normal((d_out, d_in))
            updates.append(DenseUpdate(f"q{i}", W.shape, functools.partial(np.copy, W)))
        else:
            B, A = rng.standard_normal((d_out, r)), rng.standard_normal((r, d_in))
            updates.append(LowRankUpdate(f"q{i}", B, A))
    return updates


def power_law(rng, shapes, r, exponent):
    """Updates whose singular values fall as a power, with 10 % of noise."""
    updates = []
    for i, shape in enumerate(shapes):
        k = r or min(shape)
        s = np.arange(1.0, k + 1) ** -exponent * np.exp(0.1 * rng.standard_normal(k))
        U, V = (np.linalg.qr(rng.standard_normal((d, k)))[0] for d in shape)
        if r is None:
            W = (U * s) @ V.T
            updates.append(DenseUpdate(f"q{i}", W.shape, functools.partial(np.copy, W)))
        else:
            updates.append(LowRankUpdate(f"q{i}", U * s, V.T))
    return updates


def truncated(spectra, share):
    """Return the spectra with a second run "b" of the fewest values that hold `share` of each."""
    for row in list(spectra.rows):
        s = spectra.s[row["key"]]
        k = int(metrics.energy_rank(s, share))
        row["run"], row["step"] = A
        other = row | {"key": f"b/{row['key']}", "run": "b", "r": k, "capacity": k}
        other["rank"] = min(k, row["rank"])
        spectra.rows.append(other)
        spectra.s[other["key"]] = s[:k]
    return spectra


def random_pairs(count, modules):
    """Yield the findings of `count` pairs of untrained updates of any ranks and kinds."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        drawn = rng.integers(*modules, endpoint=True)
        shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=drawn)]
        r_a, r_b = (RANKS[i] for i in rng.integers(len(RANKS), size=2))
        yield compared(untrained(rng, shapes, r_a), untrained(rng, shapes, r_b))


@pytest.mark.parametrize("modules", [(1, 2), (3, 24)])
def test_random_pairs_of_any_ranks_get_no_verdict(modules):
    findings = list(random_pairs(200, modules))
    verdicts = [f.sentence for f in findings if f.agreement not in WITHOUT_VERDICT]
    assert len(verdicts) <= 10, verdicts
    # Negative control: by the raw differences alone nearly every pair would have one.
    raw = [any(r.more or r.by_capacity for r in f.readings.values()) for f in findings]
    assert sum(raw) > 150


@pytest.mark.parametrize(("r_a", "r_b"), [(8, 64), (64, 8), (16, 24), (8, None)])
def test_untrained_adapters_of_a_real_size_differ_by_capacity_only(rng, r_a, r_b):
    shapes = [(768, 768)] * (24 if r_b else 3)
    got = compared(untrained(rng, shapes, r_a), untrained(rng, shapes, r_b))
    assert (got.agreement, got.more) == (Agreement.EXPLAINED, None)
    assert got.sentence.startswith("a and b differ by top-1, top-4")
    assert got.sentence.endswith(": the capacities explain the difference.")
    top = got.readings["top_share_1"]
    assert max(top.more_a, top.more_b) == len(shapes)
    assert abs(top.beyond) < 0.01 < abs(top.difference)


@pytest.mark.parametrize("r", [32, None])
@pytest.mark.parametrize("exponent", [0.25, 0.5, 1, 1.5, 2, 3])
def test_an_update_against_its_own_truncation_gets_no_verdict(rng, r, exponent):
    whole = of_updates(power_law(rng, PLANTED, r, exponent), Run("a", "a", None))
    found = truncated(whole, 0.999)
    for a, b in ((A, B), (B, A)):
        got = dominance.judge(dominance.pair_spectra(found, a, b))
        assert got.agreement in WITHOUT_VERDICT, got.sentence
    if exponent == 2:
        # Negative control: beyond chance alone, the longer one would be far more dominated.
        assert got.readings["top_share_1"].beyond < -0.1


@pytest.mark.parametrize("name", REAL)
def test_a_real_update_against_its_own_truncation_gets_no_verdict(real_adapter, name):
    found = truncated(analyse(real_adapter(name), options=REAL[name]), 0.999)
    shorter = [row for row in found.rows if row["run"] == "b" and row["r"] < 8]
    assert shorter
    for a, b in ((A, B), (B, A)):
        got = dominance.judge(dominance.pair_spectra(found, a, b))
        assert got.agreement in WITHOUT_VERDICT, got.sentence


@pytest.mark.parametrize(
    ("steep", "flat"), [(8, 32), (32, 8), (16, 24), (24, 16), (8, None), (None, 8)]
)
def test_a_more_dominated_update_of_another_rank_gets_the_verdict(rng, steep, flat):
    more = power_law(rng, PLANTED, steep, 1.5)
    less = power_law(rng, PLANTED, flat, 0.3)
    for got, side in ((compared(more, less), "a"), (compared(less, more), "b")):
        assert (got.agreement, got.more) == (Agreement.ALL, side), got.sentence
        assert {r.by_capacity for r in got.readings.values()} == {None}
