"""PEFT's state dicts without a config: a scale that nothing gives is never assumed."""

import json

import numpy as np
import pytest
import torch
from entries import close, reasons, scan_parts
from safetensors.numpy import save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import stated
from analysis.spectrum import main
from analysis.update import Other

MODULES = ("layers.0.q_proj", "layers.1.q_proj")


@pytest.fixture
def state(product):
    """The state dict of a PEFT model by prefix and infix, and ΔW / scale by module."""

    def made(prefix, infix=".default", base=True):
        tensors, wants = {}, {}
        for module in MODULES:
            B, A, wants[module] = product(d_out=6, r=3, d_in=5)
            tensors[f"{prefix}{module}.lora_A{infix}.weight"] = A
            tensors[f"{prefix}{module}.lora_B{infix}.weight"] = B
            if base:
                tensors[f"{prefix}{module}.base_layer.weight"] = np.ones((6, 5), "f4")
        return tensors, wants

    return made


def save(path, tensors, **more):
    torch.save(
        {"state_dict": {name: torch.from_numpy(x) for name, x in tensors.items()}} | more, path
    )
    return path


@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.",
        "model.base_model.model.",
        "_orig_mod.base_model.model.",
        "module.base_model.model.",
        "net.encoder.base_model.model.",
        "",  # layers put into a model without PEFT's own class
    ],
)
@pytest.mark.parametrize("infix", [".default", ""])
def test_a_scale_that_nothing_gives_is_asked_for(tmp_path, state, prefix, infix, capfd):
    tensors, wants = state(prefix, infix)
    path = save(tmp_path / "last.ckpt", tensors, epoch=3, global_step=99)
    assert main([str(path)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "--scale" in err
    assert "adapter_config.json" in err
    assert main([str(path), "--json"]) == 2
    capfd.readouterr()
    assert main([str(path), "--scale", "8", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert {(row["module"], row["method"]) for row in rows} == {(m, "lora") for m in MODULES}
    entries = scan_parts(path, scale=8.0)
    for module, want in wants.items():
        close(entries[module, ""], 8.0 * want)
    others = [name for (name, _), entry in entries.items() if isinstance(entry, Other)]
    assert len(others) == 2
    assert all(name.endswith("base_layer.weight") for name in others)


def test_hyper_parameters_give_the_scale(tmp_path, state):
    tensors, wants = state("model.base_model.model.")
    path = tmp_path / "last.ckpt"
    save(path, tensors, hyper_parameters={"lora_alpha": 12, "lora_r": 3, "lr": 0.1})
    entries = scan_parts(path)
    for module, want in wants.items():
        close(entries[module, ""], 4.0 * want)
    assert "α = 12 and r = 3" in entries[path.name, ""].what
    save(path, tensors, hyper_parameters={"lora_alpha": 12, "lora_r": 4})  # of other factors
    with pytest.raises(CheckpointError, match="--scale"):
        scan_parts(path)


def test_metadata_of_safetensors_give_the_scale(tmp_path, state):
    tensors, wants = state("", "", base=False)
    path = tmp_path / "own.safetensors"
    save_file(tensors, path, {"lora_alpha": "6", "r": "3"})
    close(scan_parts(path)[MODULES[0], ""], 2.0 * wants[MODULES[0]])


def test_a_config_in_the_same_directory_is_used(tmp_path, state):
    tensors, wants = state("model.base_model.model.")
    path = save(tmp_path / "last.ckpt", tensors)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 12, "alpha_pattern": {"1.q_proj": 6}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    entries = scan_parts(path)
    close(entries[MODULES[0], ""], 4.0 * wants[MODULES[0]])
    close(entries[MODULES[1], ""], 2.0 * wants[MODULES[1]])
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LOHA"}))
    with pytest.raises(CheckpointError, match="expected the weights as adapter_model"):
        scan_parts(path, base=tmp_path)


def test_an_alpha_of_each_module_gives_the_scale(tmp_path, state):
    tensors, wants = state("base_model.model.", "", base=False)
    for module in MODULES:
        tensors[f"base_model.model.{module}.alpha"] = np.array([6.0], "f4")
    entries = scan_parts(save(tmp_path / "a.pt", tensors))
    assert len(entries) == 2
    close(entries[MODULES[0], ""], 2.0 * wants[MODULES[0]])


def test_two_models_in_one_file_keep_their_names(tmp_path, state):
    student, wants = state("student.base_model.model.", base=False)
    teacher, _ = state("teacher.base_model.model.", base=False)
    entries = scan_parts(save(tmp_path / "a.ckpt", student | teacher), scale=1.0)
    assert {name for name, _ in entries} == {
        f"{who}.{module}" for who in ("student", "teacher") for module in MODULES
    }
    close(entries[f"student.{MODULES[0]}", ""], wants[MODULES[0]])


def test_adapters_are_parts_and_variants_are_not_read(tmp_path, state, product):
    tensors, wants = state("base_model.model.")
    for name in list(tensors):
        if "lora_" in name:
            tensors[name.replace("default", "other")] = 2 * tensors[name]
    entries = scan_parts(save(tmp_path / "a.ckpt", tensors), scale=1.0)
    close(entries[MODULES[0], "default"], wants[MODULES[0]])
    close(entries[MODULES[0], "other"], 4 * wants[MODULES[0]])
    tensors, wants = state("base_model.model.", base=False)
    key = f"base_model.model.{MODULES[0]}.lora_magnitude_vector.default.weight"
    tensors |= {key: np.ones(6, "f4")}
    tensors |= {f"base_model.model.{MODULES[1]}.lora_B.default.bias": np.ones(6, "f4")}
    path = save(tmp_path / "b.ckpt", tensors)
    assert "lora_magnitude_vector.weight is not read" in reasons(path, scale=1.0)[MODULES[0]]
    entries = scan_parts(path, scale=1.0, direction_only=True)
    close(entries[MODULES[0], ""], wants[MODULES[0]])
    close(entries[MODULES[1], ""], wants[MODULES[1]])


def test_embeddings_convolutions_and_x_a_b(tmp_path, product):
    B, A, want = product(d_out=4, r=2, d_in=9)
    B2, A2, want2 = product(d_out=4, r=2, d_in=3, kernel=(3, 3))
    prefix = "model.base_model.model."
    tensors = {
        f"{prefix}emb.lora_embedding_A.default": A,
        f"{prefix}emb.lora_embedding_B.default": B,
        f"{prefix}conv.lora_A.default.weight": A2,
        f"{prefix}conv.lora_B.default.weight": B2,
    }
    entries = scan_parts(save(tmp_path / "a.ckpt", tensors), scale=3.0)
    close(entries["emb", ""], 3 * want)
    close(entries["conv", ""], 3 * want2)
    turned = {
        f"{prefix}q.lora_A.weight": np.ascontiguousarray(A.T),
        f"{prefix}q.lora_B.weight": np.ascontiguousarray(B.T),
    }
    close(scan_parts(save(tmp_path / "b.ckpt", turned), scale=1.0)["q", ""], want)


@pytest.mark.parametrize("component", ["unet", "transformer", "text_encoder_2", "diffusion_model"])
def test_files_of_diffusers_keep_their_own_rule(write_file, product, component):
    """Negative control: there α = r where no file says it."""
    B, A, want = product()
    tensors = {f"{component}.to_q.lora_A.weight": A, f"{component}.to_q.lora_B.weight": B}
    (update,) = checkpoint.read(write_file(tensors))
    close(update, want)
    assert update.method in ("diffusers", "kohya")  # names of ComfyUI are read by kohya
    for name in ("transformer.h.0.q", "transformer.encoder.layers.0.query_key_value"):
        llm = {f"{name}.lora_{f}.weight": x for f, x in (("A", A), ("B", B))}
        with pytest.raises(CheckpointError, match="--scale"):
            scan_parts(write_file(llm, "llm.safetensors"))


def test_patterns_still_read_such_a_file(tmp_path, state):
    tensors, wants = state("base_model.model.", "", base=False)
    path = save(tmp_path / "a.bin", tensors)
    patterns = (r"(.*)\.lora_A\.weight", r"(.*)\.lora_B\.weight")
    entries = scan_parts(path, factors=patterns)
    assert entries[path.name, ""].what == stated.UNSCALED
    close(entries[f"base_model.model.{MODULES[0]}", ""], wants[MODULES[0]])


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_directory_without_its_config_is_read_with_a_scale(tmp_path, state, name, capfd):
    tensors, wants = state("base_model.model.", "", base=False)
    if name.endswith(".bin"):
        torch.save({key: torch.from_numpy(x) for key, x in tensors.items()}, tmp_path / name)
    else:
        save_file(tensors, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        assert main([str(path)]) == 2
        assert "without their adapter_config.json" in capfd.readouterr().err
        entries = scan_parts(path, scale=2.0)
        close(entries[MODULES[0], ""], 2.0 * wants[MODULES[0]])


@pytest.mark.parametrize("part", ["hada_w1_a", "multilora_A", "lora_E", "vera_lambda_b"])
def test_other_methods_without_their_config_are_told_from_lora(write_file, part):
    path = write_file({f"base_model.model.q.{part}": np.ones((3, 2), "f4")})
    with pytest.raises(CheckpointError, match="of a type whose ΔW they alone do not give"):
        scan_parts(path, scale=1.0)


def test_blocks_of_diffusers_without_a_component(write_file, product):
    B, A, want = product()
    stem = "transformer_blocks.0.attn.to_q"
    path = write_file({f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B})
    close(scan_parts(path)[stem, ""], want)
