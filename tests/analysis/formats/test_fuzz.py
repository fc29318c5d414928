"""500 broken inputs, of which `python -m benchmarks.fuzz` breaks 10,000."""

import pytest

from analysis.spectrum import main
from benchmarks import fuzz
from multilora.tasks.public import sources


def test_nothing_but_a_checkpoint_error_comes_out():
    taken = []
    fuzz.run(500, 1, lambda *case: taken.append(case))
    assert len(taken) >= 500
    kinds = fuzz.inputs().keys()
    never = kinds - {family for family, _, _ in taken}
    assert 4 * len(never) < len(kinds)  # they are drawn at random, by what Hypothesis likes


def test_unbroken_results_and_data_sets_are_read(tmp_path):
    """Negative control, as below."""
    for family, files in fuzz.inputs().items():
        place = tmp_path / family
        for name, data in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        if family == "results":
            assert len(list(fuzz._results_read(place))) > 1
        elif family in fuzz.data_sets():
            assert sources.load(fuzz.spec(family, place)).examples


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


@pytest.mark.parametrize("family", fuzz.checkpoints())
def test_a_truncated_file_of_each_family_is_one_line(family, tmp_path, capfd):
    for name, data in fuzz.checkpoints()[family].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        is_weights = not name.endswith((".json", ".yaml", ".metadata")) and "base/" not in name
        (tmp_path / name).write_bytes(data[:-7] if is_weights else data)
    base = ["--base", str(tmp_path / "base")] if (tmp_path / "base").exists() else []
    assert main([str(tmp_path), *base]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith("analysis.spectrum: ")
    cut_short = ("not a readable", "not a GGUF", "cut short", "is damaged", "holds fewer")
    assert any(words in err for words in cut_short)


def test_a_reader_that_raises_something_else_is_caught(monkeypatch):
    """Negative control of the check itself."""

    def careless(*arguments, **options):
        raise KeyError("shape")

    monkeypatch.setattr(fuzz, "analyse", careless)
    with pytest.raises(KeyError):
        fuzz.run(5, 0, lambda *case: None)
