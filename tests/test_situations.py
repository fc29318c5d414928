"""Every situation of `situations`, through the command; and the table that is made of them."""

from pathlib import Path

import numpy as np
import pytest
from situations import SITUATIONS, table

DOCS = Path(__file__).resolve().parents[1] / "docs" / "formats.md"


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_it_is_read_right_or_refused_in_words_that_help(situation, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    made = situation.make(tmp_path / "checkpoint")
    status, s, errors = table.outcome(made, tmp_path / "results")
    assert (status, sorted(s)) == (made.expected, sorted(made.updates)), errors
    assert made.refused in "\n".join(errors)
    assert made.remark in "\n".join(errors)
    assert bool(errors) == bool(made.refused or made.remark)
    for name, delta in made.updates.items():
        want = np.linalg.svd(np.asarray(delta, float), compute_uv=False)
        got = np.zeros_like(want)
        got[: len(s[name])] = s[name]
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * want[0])


def test_the_table_in_the_docs_is_what_comes_out():
    assert DOCS.read_text(encoding="utf-8") == table.text(), "run make formats"
