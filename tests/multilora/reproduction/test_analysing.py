"""Which runs are analysed together, how they are read, and what is left out."""

from pathlib import Path

import pytest
from finished import run_of

from analysis import UserError
from analysis.results import Similarity, Spectra
from multilora.methods import peft as peft_methods
from multilora.reproduction import analysing

MODEL = Path("model")


def row_of(method, part=None, key="k"):
    return {"key": key, "method": method, "part": part}


@pytest.fixture
def calls(monkeypatch):
    """The paths and options of every comparison, which finds nothing."""
    seen = []

    def analyse(paths, *, options, parts):
        seen.append(([path.name for path in paths], options, parts))
        return Similarity()

    monkeypatch.setattr(analysing.similarity, "analyse", analyse)
    return seen


def test_runs_are_compared_method_by_method_without_those_that_have_updates_by_task(
    tmp_path, calls
):
    names = [("lora", 0), ("full", 0), ("mtllora", 0), ("expert", 0), ("lora", 1)]
    runs = [run_of(tmp_path / f"{method}-s{seed}", method, seed) for method, seed in names]
    analysing.similarity_of(runs, MODEL)
    ((paths, options, parts),) = calls
    assert paths == ["lora-s0", "lora-s1", "full-s0"]
    assert (options.base, parts) == (None, False)


def test_one_of_pefts_own_methods_makes_all_be_read_with_the_base(tmp_path, calls):
    runs = [run_of(tmp_path / name, name, 0) for name in ("lora", "peft:DORA")]
    analysing.similarity_of(runs, MODEL)
    assert calls[0][1].base == MODEL


def test_heads_of_rlora_are_left_out(tmp_path, monkeypatch):
    rows = [
        row_of("rlora", part="head1", key="a"),
        row_of("rlora", part="mean", key="b"),
        row_of("multilora", part=None, key="c"),
    ]
    spectra = Spectra(rows, dict(zip("abc", (1, 2, 3), strict=True)))
    monkeypatch.setattr(analysing.spectrum, "analyse", lambda *_, **__: spectra)
    every = analysing.spectra_of([run_of(tmp_path, "rlora", 0)], MODEL)
    assert [row["key"] for row in every.rows] == ["b", "c"]
    assert every.s == {"b": 2, "c": 3}
    pairs = [
        {"method_a": "rlora", "part_a": part, "method_b": "lora", "part_b": None}
        for part in ("mean", "head1")
    ]
    monkeypatch.setattr(analysing.similarity, "analyse", lambda *_, **__: Similarity(rows=pairs))
    assert analysing.similarity_of([], MODEL).rows == pairs[:1]


def test_pefts_own_methods_are_read_with_their_base_and_start(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        analysing.spectrum, "analyse", lambda *_, options, **__: given.append(options) or Spectra()
    )
    (tmp_path / "pissa" / peft_methods.INITIAL).mkdir(parents=True)
    runs = [
        run_of(tmp_path / name, method, 0)
        for name, method in (("lora", "lora"), ("dora", "peft:DORA"), ("pissa", "peft:PISSA"))
    ]
    analysing.spectra_of(runs, MODEL)
    assert [(options.base, options.initial) for options in given] == [
        (None, None),
        (MODEL, None),
        (MODEL, tmp_path / "pissa" / peft_methods.INITIAL),
    ]


def test_a_module_that_cannot_be_analysed_is_an_error(tmp_path, monkeypatch):
    skipped = Spectra(skipped=[{"run": "x", "module": "q", "reason": "not finite"}])
    monkeypatch.setattr(analysing.spectrum, "analyse", lambda *_, **__: skipped)
    with pytest.raises(UserError, match="lora-s0: not finite"):
        analysing.spectra_of([run_of(tmp_path / "lora-s0", "lora", 0)], MODEL)
