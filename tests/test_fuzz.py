"""500 broken checkpoints, of which `python -m benchmarks.fuzz` breaks 10,000."""

import pytest

from benchmarks import fuzz


def test_nothing_but_a_checkpoint_error_comes_out():
    taken = []
    fuzz.run(500, 1, lambda *case: taken.append(case))
    assert len(taken) >= 500
    assert {family for family, _, _ in taken} == fuzz.checkpoints().keys()


@pytest.mark.parametrize("family", fuzz.checkpoints())
def test_an_unbroken_one_is_read(family, tmp_path):
    """Negative control: what is broken there would be analysed here."""
    from analysis.formats import Options
    from analysis.spectrum import analyse

    files = fuzz.checkpoints()[family]
    fuzz.check(files, tmp_path)
    base = tmp_path / "base"
    found = analyse(tmp_path, options=Options(base=base if base.exists() else None))
    assert found.rows
    assert not found.skipped or family == "dora"  # whose second module has no magnitude


def test_a_reader_that_raises_something_else_is_caught(monkeypatch):
    """Negative control of the check itself."""

    def careless(*arguments, **options):
        raise KeyError("shape")

    monkeypatch.setattr(fuzz, "analyse", careless)
    with pytest.raises(KeyError):
        fuzz.run(5, 0, lambda *case: None)
