"""Results on disk: what is saved is loaded, and half a file is never seen nor taken for whole."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from analysis import CheckpointError, spectrum, store


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
        "top_share_1_denoised"
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


# One file at a time


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
