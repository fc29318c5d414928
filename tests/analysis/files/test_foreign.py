"""What no family reads: one line that says what it is, and advice that is true."""

import io
import json
import tarfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis import CheckpointError, checkpoint
from analysis.files import foreign
from analysis.formats import Options
from analysis.spectrum import main


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def tar(file, *names):
    with tarfile.open(file, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m.h5", "holds weights of Keras or TensorFlow (HDF5); only tensors of PyTorch and"),
        ("m.keras", "holds a model of Keras"),
        ("flax_model.msgpack", "holds weights of Flax"),
        ("m.onnx", "holds a graph of ONNX"),
        ("m.tflite", "holds a graph of TensorFlow Lite"),
        ("m.ckpt.index", "holds the index of a checkpoint of TensorFlow"),
        ("m.ckpt.data-00000-of-00001", "holds values of a checkpoint of TensorFlow"),
        ("m.pdparams", "holds weights of Paddle"),
        ("m.nemo", "has the name of an archive of NeMo, but is no tar"),
        ("__0_0.distcp", "a piece of a distributed checkpoint whose .metadata is not beside it"),
    ],
)
def test_a_file_of_another_program(tmp_path, capsys, name, words):
    touch(tmp_path / name)
    assert main([str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / name}: " in line
    assert words in line
    assert "--base" not in line
    if "data-" not in name:  # the directory that holds it says so too
        assert main([str(tmp_path)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            ["./model_config.yaml", "./model_weights.ckpt"],
            "unpack it, tar -xf, and pass its model_",
        ),
        (["model_weights/metadata.json"], "without model_weights.ckpt; convert it to safetensors"),
    ],
)
def test_an_archive_of_nemo(tmp_path, members, words):
    tar(tmp_path / "lora.nemo", *members)
    with pytest.raises(CheckpointError, match="is an archive of NeMo"):
        checkpoint.runs([tmp_path / "lora.nemo"])
    assert words in foreign.explain(tmp_path / "lora.nemo")


STATES = ["global_step5/mp_rank_00_model_states.pt",
          "global_step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"]  # fmt: skip


def test_the_states_of_deepspeed(tmp_path):
    touch(*(tmp_path / name for name in STATES))
    for path in (tmp_path, tmp_path / "global_step5"):
        assert foreign.explain(path).endswith("put them together with DeepSpeed's zero_to_fp32.py")
    touch(tmp_path / "zero_to_fp32.py")
    script = tmp_path / "zero_to_fp32.py"
    for path in (tmp_path, tmp_path / "global_step5"):
        assert foreign.explain(path).endswith(f"python {script} {tmp_path} OUT; pass OUT")
        with pytest.raises(CheckpointError, match=r"is a checkpoint of DeepSpeed, whose weights"):
            checkpoint.scan(path)


def test_empty_tensors_of_zero_3_are_named(tmp_path, rng):
    for name, shape in (("base", (4, 3)), ("tuned", (0,))):
        (tmp_path / name).mkdir()
        weights = {"a.q.weight": np.ones(shape, "f4"), "a.k.weight": np.ones((4, 3), "f4")}
        save_file(weights, tmp_path / name / "model.safetensors")
    entries = checkpoint.scan(tmp_path / "tuned", Options(base=tmp_path / "base"))
    reasons = [entry.reason for entry in entries if entry.name == "a.q"]
    assert "a.q: is (0,), in the base (4, 3); was a sharded model saved ungathered?" in reasons[0]


@pytest.mark.parametrize(
    "files", [["latest_checkpointed_iteration.txt"], ["mp_rank_00/model_optim_rng.pt"]]
)
def test_a_checkpoint_of_megatron(tmp_path, files):
    touch(*(tmp_path / name for name in files))
    assert "is a checkpoint of Megatron, whose weights are cut over ranks" in foreign.explain(
        tmp_path
    )


def test_models_of_several_parts_name_them(tmp_path):
    pipeline, sentences = tmp_path / "pipeline", tmp_path / "sentences"
    touch(pipeline / "model_index.json", pipeline / "unet/diffusion_pytorch_model.safetensors")
    touch(pipeline / "text_encoder/model.safetensors", pipeline / "scheduler/config.json")
    assert foreign.explain(pipeline).endswith("pass one of them: text_encoder, unet")
    touch(sentences / "modules.json", sentences / "0_Transformer/model.safetensors")
    assert foreign.explain(sentences).endswith(f"its weights, {sentences / '0_Transformer'}")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "model.safetensors"])
def test_a_pointer_of_git_lfs(tmp_path, name):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    if name == "model.safetensors":
        (tmp_path / "adapter_config.json").unlink()
        save_file({"q.weight": np.ones((2, 2), "f4")}, tmp_path / "base.safetensors")
    with pytest.raises(CheckpointError, match="is a pointer of Git LFS, not the file itself; run"):
        list(checkpoint.scan(tmp_path, Options(base=tmp_path / "base.safetensors")))


def test_what_is_not_known_is_not_explained(tmp_path):
    touch(tmp_path / "notes.txt")
    assert foreign.explain(tmp_path) == foreign.explain(tmp_path / "notes.txt") == ""
    assert foreign.explain(tmp_path / "nowhere") == ""
    with pytest.raises(CheckpointError, match="no checkpoint here; expected adapter_config"):
        checkpoint.scan(tmp_path)
