"""Advice: the ranks that are needed, what they save, and what could be dropped."""

import json
import shlex

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import advise, checkpoint
from analysis.tables import advise as table


@pytest.fixture
def adapter(write_adapter, rng):
    """A module dominated by one direction, an even one, and a negligible one."""
    tensors = {}
    for name, s in (
        ("l.0.q_proj", [9.0, 0.1, 0.1, 0.1]),
        ("l.0.v_proj", [1.0, 1.0, 1.0, 1.0]),
        ("l.1.q_proj", [0.01, 0.01, 0.0, 0.0]),
    ):
        U = np.linalg.qr(rng.standard_normal((50, 4)))[0]
        V = np.linalg.qr(rng.standard_normal((60, 4)))[0]
        factors = {"A": V.T, "B": U * s}
        for factor, M in factors.items():
            tensors[f"base_model.model.{name}.lora_{factor}.weight"] = M.astype(np.float32)
    return write_adapter(tensors, lora_alpha=4)


def test_rows_say_what_each_module_needs(adapter):
    rows, skipped = advise.of_run(checkpoint.at(adapter))
    assert not skipped
    needed = {row["module"]: (row["rank_90"], row["rank_99"], row["beyond_chance"]) for row in rows}
    assert needed["l.0.q_proj"] == (1, 1, 1)
    assert needed["l.0.v_proj"] == (4, 4, 0)
    assert needed["l.1.q_proj"][:2] == (2, 2)
    assert [row["bytes"] for row in rows] == [4 * 110 * 4] * 3
    assert [row["bytes_95"] for row in rows] == [4 * 110 * n for n in (1, 4, 2)]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert all(set(row) <= set(table.COLUMNS) for row in rows)


def test_negligible_modules_could_be_dropped(adapter):
    rows, _ = advise.of_run(checkpoint.at(adapter))
    assert table.droppable(rows) == ["l.1.q_proj"]


def test_the_command_says_it_in_words_and_names_the_next_one(adapter, capsys):
    assert advise.main([str(adapter)]) == 0
    out = capsys.readouterr().out
    words = " ".join(out.split())
    assert "In the median of 3 modules, 2 of 4 directions hold 95 % of the energy" in words
    assert f"python -m analysis.truncate {adapter} --energy 0.95" in words
    assert "python -m multilora.cuts" in words
    assert "Energy is not accuracy" in words


@pytest.mark.parametrize(
    ("change", "out", "command"),
    [
        ({}, "smaller/", "analysis.truncate a --energy 0.95 --out smaller/"),
        ({}, "b.safetensors", "analysis.truncate a --energy 0.95 --out b.safetensors"),
        ({"part": "slice0"}, "smaller/", "analysis.extract a --energy 0.95 --out smaller/"),
        ({"r": None}, "smaller/", "analysis.extract a --energy 0.95 --out smaller/"),
        ({}, "", "analysis.extract a --energy 0.95 --out smaller/"),
    ],
)
def test_the_next_command_is_one_that_works(adapter, change, out, command):
    rows, _ = advise.of_run(checkpoint.at(adapter))
    text = list(table.lines([row | change for row in rows], "a", out))
    assert f"  python -m {command}" in text
    measured = "  python -m multilora.cuts smaller/ --base MODEL --text FILE"
    assert (measured in text) == (out != "b.safetensors")


def test_the_next_command_has_the_options_of_this_one(tmp_path, rng, capsys):
    """For factors of unknown names, which nothing but extract can write."""
    tensors = {"w_a_0": rng.standard_normal((4, 10)), "w_b_0": rng.standard_normal((8, 4))}
    save_file(tensors, tmp_path / "f.safetensors")
    words = [str(tmp_path / "f.safetensors"), "--factors", r"w_a_(\d+)", r"w_b_(\d+)"]
    assert advise.main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    named = f"python -m analysis.extract {shlex.join(words)} --energy 0.95 --out smaller/"
    assert named.replace(" ", "") in out.replace(" ", "")


def test_results_are_written_and_printed(adapter, tmp_path, capsys):
    assert advise.main([str(adapter), "--out", str(tmp_path / "o"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["modules"]
    written = (tmp_path / "o" / "advice.csv").read_text().splitlines()
    assert written[0].split(",") == list(table.COLUMNS)
    assert len(written) == 1 + len(rows) == 4
    assert json.loads((tmp_path / "o" / "record.json").read_text())["command"] == "analysis.advise"


def test_what_cannot_be_read_is_said(adapter, tmp_path, capsys):
    assert advise.main(["--explain"]) == 0
    assert "Beyond chance" in capsys.readouterr().out
    assert advise.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
