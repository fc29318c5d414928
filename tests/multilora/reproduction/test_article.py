"""What the notebooks show of a reproduction: its tables, and verdicts on claims."""

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis import UserError
from multilora.reproduction import article
from multilora.reproduction.pictures.styles import STYLES

ROOT = Path(__file__).resolve().parents[3]


def claim(number, **changes):
    """A claim as claims.json has it, with one part that was measured."""
    measured = {"mean": 0.25, "low": 0.1, "high": 0.4, "n": 4}
    part = {"what": "top-1", "direction": 1, "delta": 0.02, "outcome": "supported"}
    facts = {"number": number, "words": "it holds", "outcome": "supported", "disagree": []}
    facts |= {"result": "", "notes": [], "beside": [], "parts": [{**part, "measured": measured}]}
    return facts | changes


@pytest.fixture
def shown(monkeypatch):
    """What a call displays in a notebook, as text."""

    def call(function, *arguments):
        seen = []
        monkeypatch.setattr("IPython.display.display", seen.append)
        function(*arguments)
        return [getattr(output, "data", None) or str(output) for output in seen]

    return call


def test_a_claim_is_a_verdict_in_words_and_a_table(shown):
    claims = [claim("1a"), claim("1b", result="2 of 3"), claim("2", disagree=["eff_rank", "gini"])]
    first, second, table = shown(article.show_claims, claims, "1a", "1b")
    assert first == "**Claim 1a**, “it holds”: **supported**."
    assert second.endswith("**supported**. 2 of 3.")
    assert "above +0.02" in table
    (words, _) = shown(article.show_claims, claims, "2")
    assert words.endswith("surely say the opposite: eff rank, gini.")


def test_what_was_measured_has_its_bound_and_side():
    below = claim("4a")
    below["parts"][0] |= {"direction": -1, "measured": None}
    table = article.measured([claim("1a"), below])
    assert list(table.index) == ["1a", "4a"]
    assert list(table["claimed"]) == ["above +0.02", "below -0.02"]
    assert list(table["n"]) == [4, 0]
    assert table["mean"].isna().tolist() == [False, True]
    assert article.measured([]) is None
    assert article.measured([claim("5", parts=[])]) is None


def test_a_claim_that_is_not_there_is_said_so(shown):
    (words,) = shown(article.show_claims, [claim("1a")], "9")
    assert words == "*Not judged here: there is no `claims.json` with this claim.*"


def test_tables_beside_a_claim_have_their_titles(shown):
    beside = {"title": "By rate", "cells": [["method", "0.1"], ["lora", "3"]]}
    title, table = shown(article.show_beside, [claim("3a", beside=[beside]), claim("3b")], "3a")
    assert title == "By rate:"
    assert "lora" in table
    assert shown(article.show_beside, [claim("3a", beside=[beside])], "3b") == []


def test_published_results_are_those_of_the_checkout(tmp_path):
    assert article.published(start=ROOT / "notebooks") == ROOT / "figures"
    assert article.published("smollm2", ROOT) == ROOT / "figures" / "smollm2"
    with pytest.raises(UserError, match="expected pyproject"):
        article.published(start=tmp_path)


def test_bases_are_compared_claim_by_claim(shown):
    other = claim("2", outcome="contradicted")
    other["parts"][0] |= {"outcome": "contradicted", "what": "top-1 of the other"}
    claims_of = {"large": [claim("1a"), claim("2")], "small": [other]}
    table = article.compared(claims_of, "2", "1a")
    assert list(table.index) == [("2", "large"), ("2", "small"), ("1a", "large")]
    assert list(table["outcome"]) == ["supported", "contradicted", "supported"]
    assert list(table["what"]) == ["top-1", "top-1 of the other", "top-1"]
    (seen,) = shown(article.compare_claims, claims_of, "2")
    assert "top-1 of the other" in seen


def test_bases_without_the_claim_are_left_out(shown):
    assert article.compared({"large": [claim("1a")], "small": []}, "2") is None
    (words,) = shown(article.compare_claims, {"large": [], "small": []}, "1a")
    assert words == "*Not judged on either base.*"


def test_tables_and_claims_are_read(tmp_path):
    (tmp_path / "methods.csv").write_text("method,seed\nlora,1\n")
    assert article.claims(tmp_path) == []
    (tmp_path / "claims.json").write_text(json.dumps({"claims": [claim("1a")]}))
    assert article.claims(tmp_path) == [claim("1a")]
    (name, table), = article.tables(tmp_path).items()  # fmt: skip
    assert name == "methods"
    pd.testing.assert_frame_equal(table, pd.DataFrame({"method": ["lora"], "seed": [1]}))


def test_methods_have_a_colour_each():
    methods = ("full", "lora", "multilora", "mtllora", "rlora", "expert")
    assert len({article.COLOR[method] for method in methods}) == len(methods)
    assert all(STYLES[method]["color"] == colour for method, colour in article.COLOR.items())
