"""Whole models with their base, and files that hold no update."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from situations import Made, normal, situation

MODELS, NOTHING = "Whole models", "Files that hold no update of a weight"
W0 = {"model.embed_tokens.weight": normal(20, 8), "model.layers.0.q_proj.weight": normal(8, 8)}
DELTA = 0.01 * normal(8, 8, seed=1)
TUNED = W0 | {"model.layers.0.q_proj.weight": normal(8, 8) + DELTA}


def write_model(directory: Path, tensors: dict[str, np.ndarray], **config: object) -> Path:
    """Write a model as Transformers does and return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    return directory


def difference(name: str, tuned: dict[str, np.ndarray] = TUNED) -> np.ndarray:
    """Return ΔW of a tensor as the command takes it, in float32."""
    return tuned[name] - W0[name]


def compared(out: Path, tuned: dict[str, np.ndarray]) -> tuple[Path, list[str]]:
    """Write a tied base and a tuned model; return the path and the options of the command."""
    base = write_model(out / "base", W0, tie_word_embeddings=True)
    return write_model(out / "tuned", tuned), ["--base", str(base)]


def updates(tuned: dict[str, np.ndarray] = TUNED) -> dict[str, np.ndarray]:
    """Return ΔW of the two matrices that are in both models."""
    return {name.removesuffix(".weight"): difference(name, tuned) for name in W0}


@situation(MODELS, "Transformers model without its base", "`model.safetensors`, `config.json`")
def model_alone(out: Path) -> Made:
    return Made(write_model(out, TUNED), refused="--base DIR")


@situation(MODELS, "Transformers model", "the same, in one file or in shards, and the base")
def model(out: Path) -> Made:
    path, options = compared(out, TUNED)
    return Made(path, options, updates=updates())


@situation(MODELS, "Head untied from the embedding", "`lm_head.weight`, not in the base")
def untied_head(out: Path) -> Made:
    head = W0["model.embed_tokens.weight"] + 0.01 * normal(20, 8, seed=2)
    path, options = compared(out, TUNED | {"lm_head.weight": head})
    delta = head - W0["model.embed_tokens.weight"]
    return Made(path, options, updates=updates() | {"lm_head": delta})


@situation(MODELS, "Grown vocabulary", "`embed_tokens` with more rows than in the base")
def grown(out: Path) -> Made:
    rows = np.vstack([W0["model.embed_tokens.weight"] + 0.01 * normal(20, 8, seed=3), normal(3, 8)])
    path, options = compared(out, TUNED | {"model.embed_tokens.weight": rows})
    delta = rows[:20] - W0["model.embed_tokens.weight"]
    return Made(path, options, updates=updates() | {"model.embed_tokens": delta})


@situation(MODELS, "Matrix that is not in the base", "`score.weight`")
def new_matrix(out: Path) -> Made:
    path, options = compared(out, TUNED | {"score.weight": normal(2, 8)})
    return Made(path, options, updates=updates(), refused="score")


@situation(MODELS, "Bare file of a model", "`tuned.pth`")
def bare_file(out: Path) -> Made:
    import torch

    base = write_model(out / "base", W0)
    torch.save({name: torch.from_numpy(x) for name, x in TUNED.items()}, out / "tuned.pth")
    return Made(out / "tuned.pth", ["--base", str(base)], updates=updates())


@situation(MODELS, "Distributed checkpoint of FSDP", "`.metadata`, `__0_0.distcp`")
def distributed(out: Path) -> Made:
    import torch
    from torch.distributed.checkpoint.state_dict_saver import save

    base = write_model(out / "base", W0)
    state = {name: torch.from_numpy(x) for name, x in TUNED.items()}
    save(state, checkpoint_id=out / "tuned", no_dist=True)
    return Made(out / "tuned", ["--base", str(base)], updates=updates())


@situation(NOTHING, "DeepSpeed ZeRO-3", "`global_step10/…model_states.pt`, `zero_to_fp32.py`")
def zero3(out: Path) -> Made:
    import torch

    (out / "zero_to_fp32.py").write_text("")
    (out / "latest").write_text("global_step10")
    (out / "global_step10").mkdir()
    states = out / "global_step10" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({"module": {"model.layers.0.q_proj.weight": torch.zeros(0)}}, states)
    return Made(out, refused="zero_to_fp32.py")


@situation(NOTHING, "Megatron", "`latest_checkpointed_iteration.txt`, `mp_rank_00/`")
def megatron(out: Path) -> Made:
    import torch

    (out / "latest_checkpointed_iteration.txt").write_text("10")
    (out / "iter_0000010" / "mp_rank_00").mkdir(parents=True)
    weights = {"language_model": {"encoder": {"q.weight": torch.zeros(4, 4)}}}
    states = out / "iter_0000010" / "mp_rank_00" / "model_optim_rng.pt"
    torch.save({"model": weights, "iteration": 10}, states)
    return Made(out, refused="Megatron")


@situation(NOTHING, "NeMo archive", "`model.nemo`")
def nemo(out: Path) -> Made:
    import tarfile

    (out / "model_weights.ckpt").write_bytes(b"")
    with tarfile.open(out / "model.nemo", "w") as archive:
        archive.add(out / "model_weights.ckpt", "model_weights.ckpt")
    return Made(out / "model.nemo", refused="tar -xf")


@situation(NOTHING, "Keras or TensorFlow weights", "`weights.h5`")
def keras(out: Path) -> Made:
    (out / "weights.h5").write_bytes(b"\x89HDF\r\n")
    return Made(out / "weights.h5", refused="HDF5")


@situation(NOTHING, "Pointer of Git LFS", "`model.safetensors` of 130 bytes")
def pointer(out: Path) -> Made:
    words = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
    path, options = compared(out, TUNED)
    (path / "model.safetensors").write_text(words)
    return Made(path, options, refused="git lfs pull")


@situation(NOTHING, "Flax, ONNX, TensorFlow, Paddle, Core ML, TensorRT", "`flax_model.msgpack`, …")
def flax(out: Path) -> Made:
    (out / "flax_model.msgpack").write_bytes(b"\x80")
    return Made(out, refused="weights of Flax")


@situation(NOTHING, "Quantised base", "`quantization_config` in its `config.json`")
def quantised(out: Path) -> Made:
    path, options = compared(out, TUNED)
    quantisation = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    write_model(out / "base", W0, quantization_config=quantisation)
    return Made(path, options, refused="quantised (bitsandbytes)")
