"""A place parses each of its files once."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import CheckpointError
from analysis.files import tensors
from analysis.files.place import Place


def test_a_json_file_is_parsed_once(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"r": 4}')
    place = Place(tmp_path)
    first = place.json("config.json")
    file.write_text('{"r": 5}')
    assert place.json("config.json") is first
    assert Place(tmp_path).json("config.json") == {"r": 5}  # negative control: a new place


@pytest.mark.parametrize(("content", "words"), [(None, "no such file"), ("[1]", "holds a list")])
def test_a_file_that_is_not_an_object_is_refused_every_time(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    place = Place(tmp_path)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=words):
            place.json("config.json")


def test_a_header_is_parsed_once_and_values_are_read_when_asked_for(tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    save_file({"x": np.array([1.0, 2.0])}, file, metadata={"r": "4"})
    parsed = []
    really = tensors._header
    monkeypatch.setattr(tensors, "_header", lambda path: parsed.append(path) or really(path))
    for place in (Place(file), Place(tmp_path)):
        parsed.clear()
        for _ in range(2):
            np.testing.assert_array_equal(place.tensors(file)["x"].load(), [1.0, 2.0])
        assert parsed == [file]
    place = Place(file)
    assert place.tensors().keys() == {"x"}
    assert place.metadata() == {"r": "4"}
    assert parsed == [file, file]


def test_an_index_is_opened_with_its_shards(tmp_path):
    save_file({"x": np.zeros(3)}, tmp_path / "1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "1.safetensors"}}))
    assert Place(tmp_path).tensors(index)["x"].shape == (3,)


def test_what_lies_below_keeps_what_it_parsed(tmp_path):
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "a.json").write_text("{}")
    place = Place(tmp_path)
    assert place.below("law").path == tmp_path / "law"
    assert place.below("law").json("a.json") is place.below("law").json("a.json")
