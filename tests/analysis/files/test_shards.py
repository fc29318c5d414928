"""Weights in several files, which an index lists."""

import json

import numpy as np
import pytest
import torch
from entries import updates
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint
from analysis.files import shards


def shard(path, stem="adapter_model", suffix="safetensors", names=None):
    """Split the one file of a directory into two with an index."""
    tensors = load_file(path / f"{stem}.safetensors")
    (path / f"{stem}.safetensors").unlink()
    halves = [sorted(tensors)[::2], sorted(tensors)[1::2]]
    names = names or [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    for half, file in zip(halves, names, strict=True):
        part = {name: tensors[name] for name in half}
        if suffix == "safetensors":
            save_file(part, path / file)
        else:
            torch.save({k: torch.from_numpy(v) for k, v in part.items()}, path / file)
    index = {name: file for half, file in zip(halves, names, strict=True) for name in half}
    (path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
    return path / f"{stem}.{suffix}.index.json"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_sharded_adapter_is_the_whole_one(write_adapter, lora_tensors, suffix):
    tensors = lora_tensors("q", "layers.2.v", "layers.10.v")
    whole = updates(write_adapter(tensors, "whole"))
    path = write_adapter(tensors, "sharded")
    shard(path, suffix=suffix)
    found = updates(path)
    assert list(found) == list(whole)
    for key, update in found.items():
        np.testing.assert_array_equal(update.dense(), whole[key].dense())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside.safetensors", "expected a plain file name"),
        ("/etc/passwd", "expected a plain file name"),
        ("sub/shard.safetensors", "expected a plain file name"),
        ("", "expected a plain file name"),
        (7, "expected a plain file name"),
        ("nul\0.safetensors", "no such file"),
        ("missing.safetensors", "no such file"),
        ("link.safetensors", "a link out of the directory"),
        ("loop.safetensors", "no such file"),
        ("adapter_model-00001-of-00002.safetensors", "where the index puts it"),
    ],
)
def test_a_shard_index_cannot_lead_astray(write_adapter, lora_tensors, name, words):
    path = write_adapter(lora_tensors("q", "v"))
    index = shard(path)
    save_file({"x": np.ones(3)}, path.parent / "outside.safetensors")
    (path / "link.safetensors").symlink_to(path.parent / "outside.safetensors")
    (path / "loop.safetensors").symlink_to(path / "loop.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map[max(weight_map)] = name
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=words):
        list(checkpoint.scan(path))


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", "{"])
def test_a_broken_index_is_refused(write_adapter, lora_tensors, content):
    path = write_adapter(lora_tensors("q", "v"))
    shard(path).write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        list(checkpoint.scan(path))


def test_links_inside_the_hubs_cache_are_followed(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("q", "v"), "models--x/snapshots/abc")
    shard(path)
    blobs = path.parent.parent / "blobs"
    blobs.mkdir()
    for file in path.glob("*.safetensors"):
        file.rename(blobs / file.name)
        file.symlink_to(blobs / file.name)
    assert len(updates(path)) == 2


def test_a_tensor_that_the_index_leaves_out_is_read_with_its_shard(tmp_path):
    save_file(
        {"a.weight": np.ones((2, 2)), "b.weight": np.ones((2, 3))}, tmp_path / "1.safetensors"
    )
    save_file(
        {"c.weight": np.ones((2, 4)), "a.weight": np.zeros((5, 5))}, tmp_path / "2.safetensors"
    )
    index = {"weight_map": {"a.weight": "1.safetensors", "c.weight": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    opened = shards.open_located(tmp_path / "model.safetensors.index.json").tensors
    shapes = {name: tensor.shape for name, tensor in opened.items()}
    assert shapes == {"a.weight": (2, 2), "b.weight": (2, 3), "c.weight": (2, 4)}
