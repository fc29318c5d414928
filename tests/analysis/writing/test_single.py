"""Single files that are written anew: names, α and metadata of their own format."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from analysis import CheckpointError, UserError, checkpoint
from analysis.files.place import Place
from analysis.numerics import compress
from analysis.writing import single

F32 = np.dtype(np.float32)


@pytest.fixture
def normal(rng):
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def kohya(tmp_path, normal):
    """A linear layer, a convolution, a layer without α, a bias, and metadata."""
    linear, conv, plain = "lora_unet_a_0_to_q", "lora_unet_a_1_conv", "lora_te_b_0_fc1"
    tensors = {
        f"{linear}.lora_down.weight": normal(4, 10),
        f"{linear}.lora_up.weight": normal(8, 4),
        f"{linear}.alpha": np.array(2, np.float32),
        f"{conv}.lora_down.weight": normal(3, 5, 3, 3),
        f"{conv}.lora_up.weight": normal(6, 3, 1, 1),
        f"{conv}.alpha": np.array(3, np.float32),
        f"{plain}.lora_down.weight": normal(4, 10),
        f"{plain}.lora_up.weight": normal(8, 4),
    }
    metadata = {
        "ss_network_dim": "4",
        "ss_network_alpha": "2",
        "sshs_model_hash": "ab",
        "ss_epoch": "3",
    }
    save_file(tensors, tmp_path / "k.safetensors", metadata=metadata)
    return tmp_path / "k.safetensors"


@pytest.fixture
def diffusers(tmp_path, normal):
    """New names, α in the metadata."""
    tensors = {
        f"unet.{module}.{name}.weight": normal(*shape)
        for module in ("a.to_q", "a.to_k")
        for name, shape in (("lora_A", (4, 10)), ("lora_B", (8, 4)))
    }
    config = {"unet.r": 4, "unet.lora_alpha": 2, "unet.target_modules": ["to_q", "to_k"]}
    metadata = {"lora_adapter_metadata": json.dumps(config), "format": "pt"}
    save_file(tensors, tmp_path / "d.safetensors", metadata=metadata)
    return tmp_path / "d.safetensors"


def cut_to(path, r):
    return [compress.best(update, r) for update in checkpoint.read(path)]


@pytest.mark.parametrize("made", ["kohya", "diffusers"])
def test_the_file_reads_as_the_cut_updates(request, made, tmp_path):
    path = request.getfixturevalue(made)
    cut = cut_to(path, 2)
    single.write(tmp_path / "new.safetensors", Place(path), cut, F32)
    read = {update.name: update for update in checkpoint.read(tmp_path / "new.safetensors")}
    assert read.keys() == {update.name for update in cut}
    for update in cut:
        np.testing.assert_allclose(read[update.name].dense(), update.dense(), atol=1e-5)
        assert read[update.name].r == 2


def test_names_shapes_and_metadata_stay(kohya, tmp_path):
    single.write(tmp_path / "new.safetensors", Place(kohya), cut_to(kohya, 2), F32)
    with safe_open(tmp_path / "new.safetensors", "np") as new, safe_open(kohya, "np") as old:
        assert sorted(new.keys()) == sorted(old.keys())
        assert new.get_slice("lora_unet_a_1_conv.lora_down.weight").get_shape() == [2, 5, 3, 3]
        assert new.get_slice("lora_unet_a_1_conv.lora_up.weight").get_shape() == [6, 2, 1, 1]
        assert new.get_tensor("lora_unet_a_0_to_q.alpha") == 2
        assert new.get_tensor("lora_unet_a_1_conv.alpha") == 3
        metadata = {"ss_network_dim": "2", "ss_network_alpha": "2", "ss_epoch": "3"}
        assert new.metadata() == metadata


def test_alpha_stays_and_the_factors_make_up_for_it(kohya, tmp_path):
    """Loaders that take one α for all modules then read the new file as they read the old one."""
    single.write(tmp_path / "new.safetensors", Place(kohya), cut_to(kohya, 1), F32)
    scales = {u.name: u.scale for u in checkpoint.read(tmp_path / "new.safetensors")}
    assert sorted(scales.values()) == [1.0, 2.0, 3.0]


def test_diffusers_needs_no_alpha(diffusers, tmp_path):
    """It takes α for the rank, so that a scale belongs into the factors."""
    single.write(tmp_path / "new.safetensors", Place(diffusers), cut_to(diffusers, 3), F32)
    with safe_open(tmp_path / "new.safetensors", "np") as new:
        assert new.metadata() == {"format": "pt"}


def test_factors_that_are_not_cut_keep_their_scale(kohya, tmp_path):
    exact = list(checkpoint.read(kohya))
    single.write(tmp_path / "new.safetensors", Place(kohya), exact, F32)
    for update, read in zip(exact, checkpoint.read(tmp_path / "new.safetensors"), strict=True):
        assert np.array_equal(update.B, read.B)
        assert update.scale == read.scale


def test_modules_without_an_update_are_left_out(kohya, tmp_path):
    single.write(tmp_path / "new.safetensors", Place(kohya), cut_to(kohya, 2)[:1], F32)
    assert len(list(checkpoint.read(tmp_path / "new.safetensors"))) == 1


def test_other_kinds_of_layers_are_refused(tmp_path, normal):
    tensors = {f"lora_unet_a.hada_w{i}_{f}": normal(4, 4) for i in (1, 2) for f in "ab"}
    save_file(tensors, tmp_path / "loha.safetensors")
    with pytest.raises(CheckpointError, match=r"hada_w1_a.*expected a pair of factors alone"):
        single.names(Place(tmp_path / "loha.safetensors"))


def test_outputs_are_checked(kohya, tmp_path):
    cut = cut_to(kohya, 2)
    with pytest.raises(UserError, match=r"expected a name that ends with \.safetensors"):
        single.write(tmp_path / "new", Place(kohya), cut, F32)
    before = kohya.read_bytes()
    with pytest.raises(UserError, match="exists"):
        single.write(kohya, Place(kohya), cut, F32)
    assert kohya.read_bytes() == before
