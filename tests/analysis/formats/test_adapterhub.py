"""AdapterHub's LoRA; the layout of `adapters` 1.3, whose merged weights gave the same ΔW."""

import json

import numpy as np
import pytest
import torch
from entries import close, reasons, scan, scan_parts
from safetensors.numpy import save_file

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.formats import adapterhub
from analysis.spectrum import main

LORA = {
    "architecture": "lora",
    "r": 3,
    "alpha": 12,
    "attn_matrices": ["q", "v"],
    "composition_mode": "add",
    "use_dora": False,
    "use_gating": False,
    "vera_b": None,
    "vera_d": None,
}
QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def write_hub(tmp_path):
    def write(tensors, config=LORA, safe=False, version="adapters.1.3.0", **changes):
        if safe:
            save_file(tensors, tmp_path / "adapter.safetensors")
        else:
            state = {name: torch.from_numpy(x) for name, x in tensors.items()}
            torch.save(state, tmp_path / "pytorch_adapter.bin")
        if config is not None:
            whole = {"config": config | changes, "model_type": "bert", "name": "task"}
            (tmp_path / "adapter_config.json").write_text(json.dumps(whole | {"version": version}))
        return tmp_path

    return write


def pair(B, A, module=QUERY, adapter="task"):
    return {f"{module}.loras.{adapter}.lora_{f}": x for f, x in (("A", A), ("B", B))}


@pytest.mark.parametrize("safe", [False, True])
def test_the_scale_is_that_of_the_config(write_hub, product, safe, capfd):
    B, A, want = product()
    path = write_hub(pair(B, A), safe=safe)
    for place in (path, path / adapterhub.WEIGHTS[0 if safe else 1]):
        (update,) = scan(place).values()
        close(update, 4 * want)
        assert (update.name, update.part, update.method) == (QUERY, "", "adapterhub")
    assert main([str(path)]) == 0
    capfd.readouterr()


def test_weights_without_their_config_need_a_scale(write_hub, product, capfd):
    B, A, want = product()
    path = write_hub(pair(B, A), config=None)
    for place in (path, path / "pytorch_adapter.bin"):
        assert main([str(place)]) == 2
        err = capfd.readouterr().err
        assert "AdapterHub's weights without their adapter_config.json" in err
        assert "--scale X" in err
        close(scan_parts(place, scale=4.0)[QUERY, ""], 4 * want)


@pytest.mark.parametrize("matrices", [["q", "v"], ["v", "k", "q"], ["q", "v", "o"]])
def test_a_fused_layer_is_cut_into_thirds(write_hub, rng, matrices):
    """LoRAMergedLinear: out_features // 3 rows for each of q, k and v, in that order."""
    names = [name for name in "qkv" if name in matrices]
    m = len(names)
    A, B = rng.standard_normal((3 * m, 5)), rng.standard_normal((4 * m, 3))
    both = torch.nn.functional.conv1d(
        torch.from_numpy(A)[None], torch.from_numpy(B)[..., None], groups=m
    )[0].numpy()
    path = write_hub(pair(B, A, "h.0.attn.c_attn"), attn_matrices=matrices)
    entries = scan_parts(path)
    assert [part for _, part in entries] == names
    for i, name in enumerate(names):
        close(entries["h.0.attn.c_attn", name], 4 * both[4 * i : 4 * i + 4])
        assert entries["h.0.attn.c_attn", name].of_rows
    path = write_hub(pair(B, A, "h.0.attn.c_attn"), attn_matrices=["q"])
    assert "expected 1 blocks of equal rows by attn_matrices" in reasons(path)["h.0.attn.c_attn"]


@pytest.mark.parametrize(
    ("version", "scale"),
    [
        ("adapters.0.2.1", 1),
        ("adapters.1.0.1", 1),
        ("adapters.1.1.0.dev0", 1),
        ("adapters.1.1.0", 4),
        ("adapters.1.10.0", 4),
        ("3.2.1", 4),  # adapter-transformers
        (None, 4),
    ],
)
def test_versions_that_ignored_alpha_have_scale_one(write_hub, product, rng, version, scale):
    B, A, want = product()
    path = write_hub(pair(B, A), version=version)
    close(scan_parts(path)[QUERY, ""], scale * want)
    A, B = rng.standard_normal((6, 5)), rng.standard_normal((8, 3))
    path = write_hub(pair(B, A, "c_attn"), version=version)
    close(scan_parts(path)["c_attn", "q"], 4 * B[:4] @ A[:3])  # fused layers never ignored it


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": None}, "of architecture 'bottleneck'; expected 'lora'.*has no ΔW"),
        ({"architecture": "prefix_tuning"}, "of architecture 'prefix_tuning'"),
        ({"composition_mode": "scale"}, r"composition_mode is 'scale'.*\(IA\)³"),
        ({"use_gating": True}, "its gate depends on the input"),
        ({"vera_d": 0.1}, "VeRA"),
        ({"use_dora": True}, "--direction-only"),
        ({"r": 0}, "r is 0; expected at least 1"),
        ({"alpha": None}, "alpha is None; expected a number"),
    ],
)
def test_what_is_not_plain_lora_is_refused(write_hub, product, changes, words):
    B, A, _ = product()
    path = write_hub(pair(B, A), **changes)
    for place in (path, path / "pytorch_adapter.bin"):
        with pytest.raises(CheckpointError, match=rf"adapter_config\.json: .*{words}"):
            scan(place)


def test_a_union_holds_lora_among_others(write_hub, product):
    B, A, want = product()
    other = {"architecture": "prefix_tuning"}
    tensors = pair(B, A) | {"bert.prefix_tunings.task.w": A}
    path = write_hub(tensors, config={"architecture": "union", "configs": [other, LORA]})
    entries = scan_parts(path)
    close(entries[QUERY, ""], 4 * want)
    assert len(entries) == 2
    path = write_hub(tensors, config={"architecture": "union", "configs": [LORA, LORA]})
    with pytest.raises(CheckpointError, match="holds 2 configs of LoRA; expected one"):
        scan(path)
    path = write_hub(tensors, config={"architecture": "union", "configs": []})
    with pytest.raises(CheckpointError, match="expected 'lora'"):
        scan(path)


def test_direction_only_of_dora_and_another_rank(write_hub, product):
    B, A, want = product()
    tensors = pair(B, A) | {f"{QUERY}.loras.task.m.weight": np.ones((6, 1), "f4")}
    path = write_hub(tensors, use_dora=True)
    close(scan_parts(path, direction_only=True)[QUERY, ""], 4 * want)
    assert "m.weight is not read next to A and B" in reasons(write_hub(tensors))[QUERY]
    path = write_hub(pair(B, A), r=4)
    assert reasons(path)[QUERY].startswith(f"{path / 'pytorch_adapter.bin'}: {QUERY}: has r = 3")


def test_several_adapters_are_parts_and_a_broken_config_is_told(write_hub, product):
    B, A, want = product()
    path = write_hub(pair(B, A) | pair(2 * B, A, adapter="other"))
    entries = scan_parts(path)
    close(entries[QUERY, "task"], 4 * want)
    close(entries[QUERY, "other"], 8 * want)
    (path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        scan(path)


def test_other_adapters_are_not_taken_for_it(write_adapter, lora_tensors, tmp_path):
    """Negative control: PEFT's directory, and one with nothing."""
    assert not adapterhub.recognise(Place(write_adapter(lora_tensors("q"))))
    (tmp_path / "empty").mkdir()
    assert not adapterhub.recognise(Place(tmp_path / "empty"))
    (tmp_path / "empty" / "adapter_config.json").write_text("{")
    assert not adapterhub.recognise(Place(tmp_path / "empty"))
    (tmp_path / "empty" / "adapter_config.json").write_text('{"config": {}, "version": "1"}')
    with pytest.raises(CheckpointError, match=r"expected adapter\.safetensors or pytorch_adapter"):
        scan(tmp_path / "empty")
