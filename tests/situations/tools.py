"""Adapters of other tools."""

import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from situations import Made, normal, product, situation

IMAGES, LANGUAGE, OWN_CODE = "Tools for images and video", "Tools for language models", "Own code"
B, A = normal(12, 4), normal(4, 10)
FOUR, TWO = np.array(4, "f4"), np.array(2, "f4")


def write(
    out: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> Path:
    """Write a file of safetensors and return its path."""
    save_file(tensors, out / "lora.safetensors", metadata=metadata)
    return out / "lora.safetensors"


def layer(name: str) -> dict[str, np.ndarray]:
    """Return B, A and α = 2 of a layer, under the names of kohya's sd-scripts."""
    return {
        f"{name}.lora_down.weight": A,
        f"{name}.lora_up.weight": B,
        f"{name}.alpha": TWO,
    }


# Images and video


@situation(
    IMAGES, "kohya sd-scripts", "`lora_unet_….lora_down.weight`, `.lora_up.weight`, `.alpha`"
)
def kohya(out: Path) -> Made:
    name = "lora_unet_down_blocks_0_attn1_to_q"
    delta = product(B, A, 2 / 4)
    return Made(write(out, layer(name)), updates={"unet.down_blocks.0.attn1_to_q": delta})


@situation(
    IMAGES, "ComfyUI, musubi, Wan", "`diffusion_model.….lora_down.weight`, `.alpha`, `.diff_b`"
)
def comfy(out: Path) -> Made:
    name = "diffusion_model.blocks.0.self_attn.q"
    tensors = layer(name) | {f"{name}.diff_b": normal(12)}
    return Made(write(out, tensors), updates={"blocks.0.self_attn.q": product(B, A, 2 / 4)})


@situation(IMAGES, "The same names through --factors: .alpha counts", "the same")
def comfy_factors(out: Path) -> Made:
    name = "diffusion_model.blocks.0.self_attn.q"
    patterns = ["--factors", r"(.*)\.lora_down\.weight", r"(.*)\.lora_up\.weight"]
    return Made(write(out, layer(name)), patterns, updates={name: product(B, A, 2 / 4)})


@situation(IMAGES, "LyCORIS LoHa", "`hada_w1_a`, `hada_w1_b`, `hada_w2_a`, `hada_w2_b`, `alpha`")
def loha(out: Path) -> Made:
    w = [normal(12, 4, seed=1), normal(4, 10, seed=1), normal(12, 4, seed=2), normal(4, 10, seed=2)]
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors = {f"lora_unet_q.{name}": x for name, x in zip(names, w, strict=True)}
    tensors["lora_unet_q.alpha"] = TWO
    delta = product(w[0], w[1]) * product(w[2], w[3]) * 2 / 4
    return Made(write(out, tensors), updates={"unet.q": delta})


@situation(IMAGES, "LyCORIS LoKr", "`lokr_w1`, `lokr_w2_a`, `lokr_w2_b`, `alpha`")
def lokr(out: Path) -> Made:
    w1, left, right = normal(3, 2), normal(4, 2), normal(2, 5)
    tensors = {"lokr_w1": w1, "lokr_w2_a": left, "lokr_w2_b": right, "alpha": FOUR}
    named = {f"lora_unet_q.{name}": x for name, x in tensors.items()}
    delta = np.kron(w1.astype(float), product(left, right)) * 4 / 2
    return Made(write(out, named), updates={"unet.q": delta})


@situation(IMAGES, "DoRA of kohya or LyCORIS", "`dora_scale`")
def kohya_dora(out: Path) -> Made:
    tensors = {"lora_down.weight": A, "lora_up.weight": B, "dora_scale": normal(12, 1)}
    named = {f"lora_unet_q.{name}": x for name, x in tensors.items()}
    return Made(write(out, named), refused="--base")


@situation(IMAGES, "The same, with the base", "`dora_scale`, and the base")
def kohya_dora_with_base(out: Path) -> Made:
    (out / "base").mkdir()
    W0 = normal(12, 10, seed=1)
    save_file({"q.weight": W0}, out / "base" / "model.safetensors")
    magnitude = np.arange(1, 13).astype("f4")[:, None]
    tensors = {"lora_down.weight": A, "lora_up.weight": B, "dora_scale": magnitude}
    named = {f"lora_unet_q.{name}": x for name, x in tensors.items()}
    V = W0 + product(B, A)
    delta = V * magnitude / np.linalg.norm(V, axis=1, keepdims=True) - W0
    base = ["--base", str(out / "base")]
    return Made(write(out, named), base, updates={"unet.q": delta})


@situation(IMAGES, "Whole differences", "`….diff`")
def whole_difference(out: Path) -> Made:
    named = {"diffusion_model.blocks.0.q.diff": normal(12, 10)}
    return Made(write(out, named), updates={"blocks.0.q": normal(12, 10).astype(float)})


@situation(IMAGES, "diffusers", "`unet.….lora_A.weight`, `.lora_B.weight`")
def diffusers(out: Path) -> Made:
    tensors = {"unet.to_q.lora_A.weight": A, "unet.to_q.lora_B.weight": B}
    return Made(write(out, tensors), updates={"unet.to_q": product(B, A)})


@situation(
    IMAGES, "diffusers with its metadata, with or without component", "`lora_adapter_metadata`"
)
def diffusers_metadata(out: Path) -> Made:
    tensors = {"blocks.0.to_q.lora_A.weight": A, "blocks.0.to_q.lora_B.weight": B}
    config = {"r": 4, "lora_alpha": 16, "use_rslora": False, "rank_pattern": {}}
    file = write(out, tensors, {"lora_adapter_metadata": json.dumps(config)})
    return Made(file, updates={"blocks.0.to_q": product(B, A, 4)})


@situation(IMAGES, "diffusers' old attention processors", "`….processor.to_q_lora.down.weight`")
def diffusers_old(out: Path) -> Made:
    name = "mid.attn1.processor.to_q_lora"
    tensors = {f"{name}.down.weight": A, f"{name}.up.weight": B}
    return Made(write(out, tensors), updates={"mid.attn1.to_q": product(B, A)})


# Language models


def _mlx(out: Path, save: str = "safetensors", **config: object) -> Path:
    name = "model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_a": normal(16, 4), f"{name}.lora_b": normal(4, 16)}
    if save == "npz":
        np.savez(out / "adapters.npz", **tensors)
    else:
        save_file(tensors, out / "adapters.safetensors")
    if config:
        (out / "adapter_config.json").write_text(json.dumps(config))
    return out


MLX = {"model.layers.0.self_attn.q_proj": product(normal(16, 4), normal(4, 16), 20).T}


@situation(
    LANGUAGE, "mlx-lm", "`adapter_config.json`, `adapters.safetensors` with `lora_a` (d_in, r)"
)
def mlx(out: Path) -> Made:
    parameters = {"rank": 4, "scale": 20.0, "dropout": 0.0}
    path = _mlx(out, fine_tune_type="lora", num_layers=1, lora_parameters=parameters)
    return Made(path, updates=MLX)


@situation(LANGUAGE, "mlx-lm, old", "`adapters.npz`")
def mlx_npz(out: Path) -> Made:
    parameters = {"rank": 4, "scale": 20.0, "dropout": 0.0}
    return Made(_mlx(out, "npz", lora_layers=1, lora_parameters=parameters), updates=MLX)


@situation(LANGUAGE, "mlx-lm, the file alone", "`adapters.safetensors`")
def mlx_file(out: Path) -> Made:
    return Made(_mlx(out) / "adapters.safetensors", refused="--scale")


@situation(LANGUAGE, "mlx-lm, the file alone, scale known", "the same")
def mlx_file_with_scale(out: Path) -> Made:
    return Made(_mlx(out) / "adapters.safetensors", ["--scale", "20"], updates=MLX)


@situation(
    LANGUAGE, "torchtune", "`adapter_config.json`, `adapter_0.pt`: `….lora_a.weight` (r, d_in)"
)
def torchtune(out: Path) -> Made:
    import torch

    name = "layers.0.attn.q_proj"
    tensors = {f"{name}.lora_a.weight": A, f"{name}.lora_b.weight": B}
    torch.save({k: torch.from_numpy(x) for k, x in tensors.items()}, out / "adapter_0.pt")
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "peft_type": "LORA"}
    (out / "adapter_config.json").write_text(json.dumps(config))
    return Made(out, updates={name: product(B, A, 2)})


@situation(
    LANGUAGE, "AdapterHub", "`adapter_config.json`, `pytorch_adapter.bin`: `….loras.NAME.lora_A`"
)
def adapterhub(out: Path) -> Made:
    import torch

    name = "encoder.layer.0.output.dense"
    tensors = {f"{name}.loras.mine.lora_A": A, f"{name}.loras.mine.lora_B": B}
    torch.save({k: torch.from_numpy(x) for k, x in tensors.items()}, out / "pytorch_adapter.bin")
    config = {"architecture": "lora", "r": 4, "alpha": 8, "composition_mode": "add"}
    about = {"config": config, "name": "mine", "model_type": "bert"}
    (out / "adapter_config.json").write_text(json.dumps(about))
    return Made(out, updates={name: product(B, A, 2)})


def _litgpt(out: Path) -> Path:
    import torch

    name = "transformer.h.0.attn.qkv"
    tensors = {f"{name}.lora_A": normal(8, 16), f"{name}.lora_B": normal(20, 4)}
    file = out / "lit_model.pth.lora"
    torch.save({"model": {k: torch.from_numpy(x) for k, x in tensors.items()}}, file)
    return file


def _litgpt_updates(scale: float) -> dict[str, np.ndarray]:
    left, right = normal(20, 4), normal(8, 16)
    name = "transformer.h.0.attn.qkv"
    query, value = product(left[:16], right[:4], scale), product(left[16:], right[4:], scale)
    return {f"{name}#block0": query, f"{name}#block1": value}


@situation(LANGUAGE, "LitGPT: query and value of unequal size in one B", "`lit_model.pth.lora`")
def litgpt_alone(out: Path) -> Made:
    return Made(_litgpt(out), refused="--blocks")


@situation(LANGUAGE, "LitGPT with the rows of each block", "the same")
def litgpt_blocks(out: Path) -> Made:
    options = ["--blocks", "16,4", "--scale", "2"]
    return Made(_litgpt(out), options, updates=_litgpt_updates(2))


@situation(
    LANGUAGE, "GGUF LoRA of llama.cpp", "`lora.gguf`: `blk.0.attn_q.weight.lora_a`, `.lora_b`"
)
def gguf(out: Path) -> Made:
    facts = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    tensors = {"blk.0.attn_q.weight.lora_a": A, "blk.0.attn_q.weight.lora_b": B}
    (out / "lora.gguf").write_bytes(_gguf({"general.architecture": "llama"} | facts, tensors))
    return Made(out / "lora.gguf", updates={"blk.0.attn_q": product(B, A, 2)})


@situation(LANGUAGE, "GGUF of a whole model", "`model.gguf`")
def gguf_model(out: Path) -> Made:
    facts: dict[str, str | float] = {"general.type": "model", "general.architecture": "llama"}
    (out / "model.gguf").write_bytes(_gguf(facts, {"token_embd.weight": A}))
    return Made(out / "model.gguf", refused="whole model")


def _gguf(facts: dict[str, str | float], tensors: dict[str, np.ndarray]) -> bytes:
    """Return a GGUF file, version 3, of float32 matrices."""

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words)) + words.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts))
    for key, value in facts.items():
        is_text = isinstance(value, str)
        head += text(key) + struct.pack("<I", 8 if is_text else 6)
        head += text(value) if is_text else struct.pack("<f", value)
    data = b""
    for name, x in tensors.items():
        head += text(name) + struct.pack("<I2QIQ", 2, *x.shape[::-1], 0, len(data))
        data += x.tobytes() + bytes(-x.nbytes % 32)
    return head + bytes(-len(head) % 32) + data


# Own code


@situation(OWN_CODE, "loralib", "`….lora_A` (r, d_in), `….lora_B` (d_out, r)")
def loralib(out: Path) -> Made:
    tensors = {"h.0.q.lora_A": A, "h.0.q.lora_B": B}
    return Made(write(out, tensors), ["--scale", "2"], updates={"h.0.q": product(B, A, 2)})


@situation(OWN_CODE, "State dict under another key", "`model_state_dict`, `model`, `state_dict`, …")
def nested(out: Path) -> Made:
    import torch

    tensors = {"h.0.q.lora_A": torch.from_numpy(A), "h.0.q.lora_B": torch.from_numpy(B)}
    torch.save({"model_state_dict": tensors, "epoch": 1}, out / "w.pth")
    return Made(out / "w.pth", ["--scale", "2"], updates={"h.0.q": product(B, A, 2)})


@situation(
    OWN_CODE,
    "x @ A @ B, seen by the shapes of all modules",
    "`lora_A` (d_in, r), `lora_B` (r, d_out)",
)
def reversed_factors(out: Path) -> Made:
    tensors = {"q.lora_A": normal(16, 4), "q.lora_B": normal(4, 16)}
    delta = product(normal(16, 4), normal(4, 16)).T
    return Made(
        write(out, tensors), ["--scale", "1"], updates={"q": delta}, remark="read as x @ A @ B"
    )


@situation(OWN_CODE, "Factors of either orientation", "`lora_A`, `lora_B`, all square")
def square_factors(out: Path) -> Made:
    tensors = {"q.lora_A": normal(4, 4), "q.lora_B": normal(4, 4, seed=1)}
    return Made(write(out, tensors), refused="--transposed")


@situation(OWN_CODE, "The same, orientation known", "the same")
def square_transposed(out: Path) -> Made:
    tensors = {"q.lora_A": normal(4, 4), "q.lora_B": normal(4, 4, seed=1)}
    delta = product(normal(4, 4), normal(4, 4, seed=1)).T
    return Made(write(out, tensors), ["--transposed", "--scale", "1"], updates={"q": delta})


@situation(OWN_CODE, "Any names, by their patterns", "`w_a_000`, `w_b_000`")
def by_patterns(out: Path) -> Made:
    tensors = {"w_a_000": A, "w_b_000": B}
    patterns = ["--factors", r"w_a_(\d+)", r"w_b_(\d+)", "--scale", "2"]
    return Made(write(out, tensors), patterns, updates={"000.w": product(B, A, 2)})
