"""Results on disk: what is saved is loaded, and half a file is never seen nor taken for whole."""

import csv
import io
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from killed import at_every_call
from matplotlib.figure import Figure
from matplotlib.image import imread

from analysis import CheckpointError, spectrum, store
from analysis.files import exchange
from analysis.results import FUNCTION, Spectra


@pytest.fixture
def spectra(write_adapter, lora_tensors):
    tensors = lora_tensors("model.layers.0.q_proj", "model.layers.1.q_proj", "head")
    tensors["base_model.model.head.lora_B.weight"] *= 0
    tensors["base_model.model.lonely.lora_A.weight"] = np.ones((4, 3), "f4")
    tensors["base_model.model.classifier.bias"] = np.ones(3, "f4")
    return spectrum.analyse(write_adapter(tensors, "run/checkpoint-20"))


def test_what_is_saved_is_loaded(tmp_path, spectra):
    record = {"command": "test", "seed": 0}
    store.save(tmp_path / "deep" / "out", spectra, record)
    loaded, got = store.load(tmp_path / "deep" / "out")
    assert got == record
    assert loaded.rows == spectra.rows
    assert [list(map(type, row.values())) for row in loaded.rows] == [
        list(map(type, row.values())) for row in spectra.rows
    ]
    assert (loaded.skipped, loaded.other) == (spectra.skipped, spectra.other)
    assert spectra.skipped
    assert spectra.other
    assert loaded.s.keys() == spectra.s.keys()
    for key, s in spectra.s.items():
        assert loaded.s[key].dtype == np.float64
        np.testing.assert_array_equal(loaded.s[key], s)


def test_columns_are_those_of_the_design(tmp_path, spectra):
    store.save(tmp_path, spectra, {})
    header, *lines = (tmp_path / "spectrum.csv").read_text().splitlines()
    assert header == (
        "key,run,method,step,module,layer,kind,part,d_out,d_in,r,capacity,rank,spectral_norm,"
        "frobenius_norm,nuclear_norm,top_share_1,top_share_4,top_share_16,top_share_1pct,"
        "top_share_10pct,effective_rank,energy_entropy_rank,stable_rank,participation_ratio,gini,"
        "energy_rank_50,energy_rank_90,energy_rank_99,utilisation,democracy,outliers,floor,"
        "above_floor,algorithm,error_bound,effective_rank_denoised,gini_denoised,"
        "top_share_1_denoised,hill,hill_low,hill_high"
    )
    assert len(lines) == 3
    assert lines[0].startswith("run@20/head,run,lora,20,head,,head,,12,10,4,4,0,0.0,0.0,0.0,,,,")


def test_undefined_numbers_are_refused_not_written(tmp_path, spectra):
    store.save(tmp_path, spectra, {"first": 1})
    table = (tmp_path / "spectrum.csv").stat().st_mtime_ns
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(tmp_path, spectra, {"bad": float("nan")})
    assert (tmp_path / "spectrum.csv").stat().st_mtime_ns == table
    assert json.loads((tmp_path / "record.json").read_text())["first"] == 1


def test_a_failed_write_leaves_what_was_there(tmp_path, spectra, monkeypatch):
    store.save(tmp_path, spectra, {})
    before = (tmp_path / "spectra.safetensors").read_bytes()

    def half(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        store.save(tmp_path, spectra, {})
    assert (tmp_path / "spectra.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        *("record.json", "spectra.safetensors", "spectrum.csv")
    ]


def test_load_refuses_what_is_not_all_there(tmp_path, spectra):
    with pytest.raises(CheckpointError, match="not the results of an analysis"):
        store.load(tmp_path / "nowhere")
    store.save(tmp_path, spectra, {})
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(CheckpointError, match="not the results of an analysis"):
        store.load(tmp_path)


def cut_inside_a_line(text):
    return text[: text.rindex(",lora,") + 8]


def cut_inside_the_last_cell(text):
    return text.rstrip("\n")[:-1]


def cut_after_a_line(text):
    return "".join(text.splitlines(keepends=True)[:-1])


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (cut_inside_a_line, "spectrum.csv: line 4: is cut short before module"),
        (cut_inside_the_last_cell, "spectrum.csv: line 4: is cut short"),
        (cut_after_a_line, "spectrum.csv has 2 rows, spectra.safetensors has 3 spectra"),
        (lambda text: text[:30], "spectrum.csv: has no column layer"),
        (lambda text: "", "spectrum.csv: has no column key"),
        (lambda text: text.replace(",12,10,", ",12,ten,", 1), "spectrum.csv: line 2: .*'ten'"),
    ],
)
def test_load_refuses_a_table_that_is_cut_short(tmp_path, spectra, cut, words):
    store.save(tmp_path, spectra, {})
    table = tmp_path / "spectrum.csv"
    whole = table.read_text()
    table.write_text(cut(whole))
    with pytest.raises(CheckpointError, match=f"^{tmp_path}: not the results .*: {words}"):
        store.load(tmp_path)
    table.write_text(whole)  # the negative control
    assert store.load(tmp_path)[0].rows == spectra.rows


@pytest.mark.parametrize("record", ["[]", "3", "null", "{}"])
def test_load_refuses_a_record_of_another_kind(tmp_path, spectra, record):
    store.save(tmp_path, spectra, {})
    (tmp_path / "record.json").write_text(record)
    with pytest.raises(CheckpointError, match=r"record\.json: is not the record of spectra"):
        store.load(tmp_path)


def test_load_refuses_arrays_that_are_cut_short(tmp_path, spectra):
    store.save(tmp_path, spectra, {})
    file = tmp_path / "spectra.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="not the results of an analysis"):
        store.load(tmp_path)


# A whole or not at all


def scaled(spectra, factor):
    """Other results with the same keys."""
    rows = [row | {"spectral_norm": row["spectral_norm"] * factor} for row in spectra.rows]
    s = {key: factor * values for key, values in spectra.s.items()}
    return Spectra(rows, s, spectra.skipped, spectra.other)


@pytest.mark.parametrize("full", [False, True])
def test_killed_or_full_at_any_moment_the_old_or_the_new_result_is_loaded(tmp_path, spectra, full):
    out, others = tmp_path / "out", scaled(spectra, 100)
    found = []

    def save_others():
        store.save(out, others, {"command": "new"}, {"dominance.csv": "a\n"})

    store.save(out, spectra, {"command": "old"})
    for _ in at_every_call(save_others, out, full):
        loaded, record = store.load(out)
        want = spectra if record["command"] == "old" else others
        assert loaded.rows == want.rows
        assert all(np.array_equal(loaded.s[key], s) for key, s in want.s.items())
        found.append(record["command"])
        store.save(out, spectra, {"command": "old"})
    assert set(found) == {"old", "new"}
    assert store.load(out)[1] == {"command": "new"}
    assert sorted(path.name for path in out.iterdir()) == [
        *("dominance.csv", "record.json", "spectra.safetensors", "spectrum.csv")
    ]


@pytest.mark.parametrize("old", [["spectrum.csv"], ["spectrum.csv", "record.json"]])
def test_load_refuses_a_mixture(tmp_path, spectra, old):
    store.save(tmp_path, spectra, {})
    before = {name: (tmp_path / name).read_bytes() for name in old}
    store.save(tmp_path, scaled(spectra, 100), {})
    assert store.load(tmp_path)[0].s.keys() == spectra.s.keys()
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not the file that record\.json describes"):
        store.load(tmp_path)


def test_results_of_version_0_1_are_loaded(tmp_path, spectra):
    store.save(tmp_path, spectra, {"command": "analysis.spectrum"})
    record = json.loads((tmp_path / "record.json").read_text())
    assert sorted(record.pop("files")) == ["spectra.safetensors", "spectrum.csv"]
    (tmp_path / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    loaded, got = store.load(tmp_path)
    assert (loaded.rows, got) == (spectra.rows, {"command": "analysis.spectrum"})
    store.save(tmp_path, scaled(spectra, 2), {"command": "analysis.spectrum"})  # replaced by ours
    assert store.load(tmp_path)[0].rows == scaled(spectra, 2).rows


def test_an_old_result_is_read_until_the_new_one_is_committed(tmp_path, spectra, monkeypatch):
    """By a reader in a directory that it cannot write to, after a kill."""
    store.save(tmp_path, spectra, {"command": "old"})
    monkeypatch.setattr(exchange, "_complete", lambda directory, old: None)
    store.save(tmp_path, scaled(spectra, 2), {"command": "new"})
    tmp_path.chmod(0o500)
    try:
        assert store.load(tmp_path)[1] == {"command": "new"}
    finally:
        tmp_path.chmod(0o700)


def test_what_an_earlier_result_of_the_command_left_is_removed(tmp_path, spectra):
    for name in ("mine.csv", "theirs.csv"):
        (tmp_path / name).write_text("mine\n")
    further = {"dominance.csv": "a\n", "edited.csv": "a\n"}
    store.save(tmp_path, spectra, {"command": "one"}, further)
    (tmp_path / "edited.csv").write_text("b\n")
    store.save(tmp_path, spectra, {"command": "one"})
    kept = ["edited.csv", "mine.csv", "theirs.csv"]
    own = ["record.json", "spectra.safetensors", "spectrum.csv"]
    found = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert found == sorted(kept + own)
    store.save(tmp_path, spectra, {"command": "one"}, further)
    store.write(tmp_path, {}, {"similarity.csv": "a\n"}, {"command": "two"})
    assert (tmp_path / "dominance.csv").exists()  # of another command
    with pytest.raises(CheckpointError, match=r"is not the record of|is the record of another"):
        store.load(tmp_path)


@pytest.mark.parametrize(
    "files",
    [[], 3, None, "x", {}, {"../precious": 1}, {"spectrum.csv": 3}, {"spectrum.csv": {"a": []}}],
)
def test_a_record_with_other_hashes_is_refused_and_replaced(tmp_path, spectra, files):
    out = tmp_path / "out"
    (tmp_path / "precious").write_text("mine")
    store.save(out, spectra, {"command": "one"})
    record = json.loads((out / "record.json").read_text())
    (out / "record.json").write_text(json.dumps(record | {"files": files}))
    if files is not None:
        with pytest.raises(CheckpointError, match=r"record\.json"):
            store.load(out)
    store.save(out, spectra, {"command": "one"})
    assert store.load(out)[0].rows == spectra.rows
    assert (tmp_path / "precious").read_text() == "mine"


def test_load_reads_no_fifo(tmp_path, spectra):
    store.save(tmp_path, spectra, {})
    (tmp_path / "spectrum.csv").unlink()
    os.mkfifo(tmp_path / "spectrum.csv")
    with pytest.raises(CheckpointError, match=r"spectrum\.csv is not a file"):
        store.load(tmp_path)


# Cells that a spreadsheet takes for formulas

FORMULAS = ["=1+1", "+1", "-1", "@sum", "\t=1", "\r=1", "\n=1", "'=1", "''=1"]
WORDS = ["q_proj", "'quoted", "a=b", "", "'", "0.5", " =1", "−1"]


@pytest.mark.parametrize("text", FORMULAS + WORDS)
def test_text_is_no_formula_and_is_read_back_exactly(tmp_path, spectra, text):
    (cell,) = list(csv.reader(io.StringIO(store.csv_text([{"a": text}], ["a"]), newline="")))[1:]
    assert cell == [f"'{text}" if text in FORMULAS else text]
    row = spectra.rows[0] | {"module": text or None, "layer": -1, "gini": -0.5}
    file = tmp_path / "t.csv"
    store.write_text(file, store.csv_text([row]))
    assert store.rows(file) == [row]
    assert ",-0.5," in file.read_text()  # a number stays one


# One file at a time


def test_what_a_killed_writer_left_behind_is_removed(tmp_path):
    file = tmp_path / "table.csv"

    def write():
        store.write_text(file, "new")

    left = 0
    for _ in at_every_call(write, tmp_path):
        left += len([path for path in tmp_path.iterdir() if path.name.startswith(".")])
        store.write_text(file, "old")
        assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert left
    assert file.read_text() == "new"


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")

    def half(temporary):
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.replace(file, half)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(FileNotFoundError):
        store.replace(file, lambda temporary: None)  # a writer that writes nothing
    assert file.read_text() == "old"
    with pytest.raises(FileNotFoundError):
        store.write_text(tmp_path / "absent" / "table.csv", "new")


def test_the_old_file_is_read_until_the_new_one_is_whole(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")

    def write(temporary):
        temporary.write_text("new")
        assert temporary.parent == file.parent
        assert temporary.name.startswith(".")
        assert temporary.suffix != file.suffix  # so that no reader takes it for a table
        assert file.read_text() == "old"

    store.replace(file, write)
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_threads_that_write_one_file_do_not_share_a_temporary_one(tmp_path):
    file, both = tmp_path / "table.csv", threading.Barrier(2, timeout=30)
    names = []

    def write(temporary, text):
        names.append(temporary.name)
        temporary.write_text(text)
        both.wait()
        assert temporary.read_text() == text

    def replace(text):
        store.replace(file, lambda temporary: write(temporary, text))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(replace, ["one", "two"]))
    assert len(set(names)) == 2
    assert file.read_text() in ("one", "two")
    assert list(tmp_path.iterdir()) == [file]


def test_processes_that_write_one_file_do_not_share_a_temporary_one(tmp_path):
    """A forked process has the thread identity of its parent, and another process identity."""
    code = (
        "import os, sys; from pathlib import Path; from analysis import store;"
        "forked = os.fork();"
        "os.waitpid(forked, 0) if forked else None;"
        "write = lambda file: (file.touch(), print(file.name, flush=True));"
        "store.replace(Path(sys.argv[1]), write)"
    )
    root = Path(__file__).resolve().parents[2]
    argv = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True)
    assert len(set(done.stdout.splitlines())) == 2


def test_store_imports_no_formats_and_no_large_package():
    code = (
        "import sys, analysis.store;"
        "large = {'torch', 'pandas', 'matplotlib', 'scipy', 'analysis.checkpoint'};"
        "print(large & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_saved_figures_are_whole_and_the_same_again(tmp_path, monkeypatch):
    figure = Figure()
    figure.subplots().plot([1, 3, 2], label="line")
    stem = tmp_path / "deep" / "figure"
    contents = []
    for _ in range(2):
        store.save_figure(figure, stem)
        files = sorted(stem.parent.iterdir())
        assert [file.name for file in files] == ["figure.pdf", "figure.png"]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    assert contents[0][0].startswith(b"%PDF")
    assert imread(files[1]).std() > 0.01  # not a blank page

    def half(path, **_):
        path.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        store.save_figure(figure, stem)
    assert [file.read_bytes() for file in sorted(stem.parent.iterdir())] == contents[1]


def test_a_table_of_before_the_exponents_is_read_and_further_columns_are_kept(tmp_path, spectra):
    text = store.csv_text(spectra.rows)
    header, *lines = text.splitlines()
    older = [line.removesuffix(",,,") for line in lines]
    assert header.endswith(",hill,hill_low,hill_high")
    file = tmp_path / "spectrum.csv"
    file.write_text("\n".join([header.removesuffix(",hill,hill_low,hill_high"), *older, ""]))
    assert store.rows(file) == spectra.rows
    more = [row | dict.fromkeys(FUNCTION, 0.5) for row in spectra.rows]
    store.save(tmp_path / "out", Spectra(more, spectra.s), {"command": "test"})
    assert store.load(tmp_path / "out")[0].rows == more
