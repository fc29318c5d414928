import json
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
        "key,run,method,step,module,layer,kind,part,d_out,d_in,capacity,rank,spectral_norm,"
        "frobenius_norm,nuclear_norm,top_share_1,top_share_4,top_share_16,top_share_1pct,"
        "top_share_10pct,effective_rank,energy_entropy_rank,stable_rank,participation_ratio,gini,"
        "energy_rank_50,energy_rank_90,energy_rank_99,utilisation,democracy,outliers,floor,"
        "above_floor,algorithm,error_bound"
    )
    assert len(lines) == 3
    assert lines[0].startswith("run@20/head,run,lora,20,head,,head,,12,10,4,0,0.0,0.0,0.0,,,,")


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
