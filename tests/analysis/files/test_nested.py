"""The state dict in a pickled checkpoint: the one dict of matrices, wherever it is."""

import pytest
import torch
from entries import close, scan_parts

from analysis import CheckpointError
from analysis.files import nested
from analysis.files.place import Place
from analysis.spectrum import main

W, v = torch.ones(2, 3), torch.ones(3)


def axes(value):
    return value.ndim if isinstance(value, torch.Tensor) else -1


def found(saved):
    return nested.state_dict(saved, axes, "f.pt")


@pytest.mark.parametrize(
    "saved",
    [
        {"a.w": W, "b": v},
        {"a.w": W, "b": v, "epoch": 3, "args": {"lr": 0.1}},
        *(
            {key: {"a.w": W, "b": v}, "epoch": 3, "loss": torch.tensor(0.5)}
            for key in (
                "state_dict",
                "model_state_dict",
                "model",
                "module",
                "net",
                "lora_state_dict",
            )
        ),
        {"checkpoint": {"model": {"a.w": W, "b": v}, "step": 1}},
        {"model": {"a.w": W, "b": v}, "rng_state": v, "best": {"score": torch.tensor(1.0)}},
        {"model": {"a.w": W, "b": v}, "optimizer": {"state": {0: {"exp_avg": W}}}},
        {"model": {"a.w": W, "b": v}, "optimizer_state": {"a.w": W}},
    ],
)
def test_the_one_dict_of_matrices_is_opened(saved):
    state = {name: value for name, value in found(saved).items() if axes(value) >= 0}
    assert {"a.w", "b"} <= state.keys()
    assert state["a.w"] is W


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"model": {"a.w": W}, "ema": {"a.w": W}}, "2 dicts of tensors, model and ema; expected"),
        ({"a.w": W, "ema": {"a.w": W}}, "2 dicts of tensors, the top level and ema"),
        ({x: {"a.w": W} for x in "abc"}, "3 dicts of tensors, a and b and others"),
        ({"a": {"b": {"c": {"a.w": W}}}}, "its tensors are under a.b.c; expected them at most 2"),
    ],
)
def test_what_cannot_be_told_is_refused(saved, words):
    with pytest.raises(CheckpointError, match=f"f.pt: .*{words}"):
        found(saved)


def test_a_tree_is_read_by_its_paths():
    saved = {"weights": {"h": {"q": {"A": W, "B": W}, "v": {"A": W}}}, "step": 1}
    assert found(saved).keys() == {"q.A", "q.B", "v.A"}
    assert found({"q": {"A": W, "B": W}}).keys() == {"A", "B"}


def test_what_has_no_tensors_stays_as_it_is_and_cycles_end():
    saved = {"epoch": 3}
    assert found(saved) is saved
    saved["self"] = saved
    assert found(saved) is saved
    assert found({"m": {"b": v}}).keys() == {"b"}


def test_settings_are_the_numbers_and_strings_by_path():
    saved = {
        "epoch": 3,
        "hyper_parameters": {"lora_alpha": 32, "lora": {"r": 4}, "text": "x" * 20_000, 1: 2},
        "state_dict": {"w": W},
        "optimizer": {"lr": 1.0},
    }
    assert nested.settings(saved) == {
        "": {"epoch": 3},
        "hyper_parameters": {"lora_alpha": 32},
        "hyper_parameters.lora": {"r": 4},
    }


@pytest.mark.parametrize("key", ["model_state_dict", "model", "module", "net"])
def test_a_training_loops_checkpoint_is_read(tmp_path, product, key, capfd):
    state, wants = {}, {}
    for i in range(2):
        B, A, wants[f"layers.{i}.q"] = product()
        state |= {f"layers.{i}.q.lora_A": A, f"layers.{i}.q.lora_B": B}
    state = {name: torch.from_numpy(x) for name, x in state.items()}
    path = tmp_path / "w.pth"
    torch.save({key: state, "epoch": 1, "optimizer": {"state": {}}}, path)
    entries = scan_parts(path)
    for name, want in wants.items():
        close(entries[name, ""], want)
    assert Place(path).metadata() == {"": {"epoch": 1}}
    assert main([str(path)]) == 0
    capfd.readouterr()
    torch.save({key: state, "ema": {name: 2 * x for name, x in state.items()}}, path)
    assert main([str(path)]) == 2
    assert f"2 dicts of tensors, {key} and ema" in capfd.readouterr().err


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "module.module."])
def test_wrappers_are_taken_from_names(tmp_path, product, prefix):
    B, A, want = product()
    state = {f"{prefix}h.q.lora_{f}": torch.from_numpy(x) for f, x in (("A", A), ("B", B))}
    torch.save(state, tmp_path / "w.pt")
    close(scan_parts(tmp_path / "w.pt")["h.q", ""], want)
