"""Adapters of PEFT and of this project."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from situations import Made, normal, product, situation

PEFT, OWN = "PEFT", "This project"
MODULE = "layers.0.q_proj"
B, A = normal(12, 4), normal(4, 10)
LORA = {f"{MODULE}.lora_A.weight": A, f"{MODULE}.lora_B.weight": B}


def write_config(directory: Path, **config: Any) -> Path:
    """Write adapter_config.json of a LoRA of r = 4 and α = 8 with changes; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def write_adapter(directory: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    """Write tensors, without the prefix of their names, and config as PEFT does."""
    named = {f"base_model.model.{name}": x for name, x in tensors.items()}
    save_file(named, write_config(directory, **config) / "adapter_model.safetensors")
    return directory


@situation(PEFT, "LoRA", "`adapter_config.json`, `adapter_model.safetensors`")
def lora(out: Path) -> Made:
    return Made(write_adapter(out, LORA), updates={MODULE: product(B, A, 2)})


@situation(PEFT, "LoRA with rsLoRA, rank and alpha patterns", "the same")
def patterns(out: Path) -> Made:
    wide = {"layers.1.q_proj.lora_A.weight": normal(9, 10)}
    wide["layers.1.q_proj.lora_B.weight"] = normal(12, 9)
    changes = {"use_rslora": True, "rank_pattern": {"1.q_proj": 9}, "alpha_pattern": {"1.q_.*": 6}}
    updates = {
        MODULE: product(B, A, 8 / 2),
        "layers.1.q_proj": product(normal(12, 9), normal(9, 10), 6 / 3),
    }
    return Made(write_adapter(out, LORA | wide, **changes), updates=updates)


@situation(PEFT, "LoRA in a pickle", "`adapter_config.json`, `adapter_model.bin`")
def lora_bin(out: Path) -> Made:
    import torch

    named = {f"base_model.model.{name}": torch.from_numpy(x) for name, x in LORA.items()}
    torch.save(named, write_config(out) / "adapter_model.bin")
    return Made(out, updates={MODULE: product(B, A, 2)})


@situation(PEFT, "LoRA in shards", "`adapter_model.safetensors.index.json` and its files")
def lora_sharded(out: Path) -> Made:
    write_config(out)
    index = {}
    for i, (name, x) in enumerate(LORA.items()):
        index[f"base_model.model.{name}"] = f"adapter_model-{i}.safetensors"
        save_file({f"base_model.model.{name}": x}, out / f"adapter_model-{i}.safetensors")
    (out / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return Made(out, updates={MODULE: product(B, A, 2)})


@situation(PEFT, "Component whose name begins with lora_", "`lora_tower.….lora_A.weight`")
def module_called_lora(out: Path) -> Made:
    named = {f"lora_tower.{name}": x for name, x in LORA.items()}
    return Made(write_adapter(out, named), updates={f"lora_tower.{MODULE}": product(B, A, 2)})


@situation(PEFT, "Pattern equal to a module's name", "`rank_pattern`, `alpha_pattern`")
def literal_pattern(out: Path) -> Made:
    """A key that is the name, and matches nothing as an expression: PEFT takes it."""
    name = "layers.0.q[0]+"
    named = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    written = write_adapter(out, named, alpha_pattern={name: 400})
    return Made(written, updates={name: product(B, A, 100)})


@situation(PEFT, "LoRA weights without their config", "`adapter_model.safetensors`")
def lora_without_config(out: Path) -> Made:
    (write_adapter(out, LORA) / "adapter_config.json").unlink()
    return Made(
        out, refused="put adapter_config.json into the same directory, or pass α/r, --scale X"
    )


@situation(PEFT, "LoRA weights without their config, scale known", "one file of PEFT's names")
def lora_with_scale(out: Path) -> Made:
    file = write_adapter(out, LORA) / "weights.safetensors"
    (out / "adapter_model.safetensors").rename(file)
    return Made(file, ["--scale", "2"], updates={MODULE: product(B, A, 2)})


@situation(
    PEFT,
    "State dict of a PEFT model, with any prefix",
    "`last.ckpt` of Lightning, `model.base_model.model.….lora_A.default.weight`",
)
def lightning(out: Path) -> Made:
    return Made(_lightning(out), refused="--scale")


@situation(PEFT, "State dict of a PEFT model, scale known", "the same")
def lightning_with_scale(out: Path) -> Made:
    return Made(_lightning(out), ["--scale", "8"], updates={f"model.{MODULE}": product(B, A, 8)})


def _lightning(out: Path) -> Path:
    import torch

    wrapped = f"model.base_model.model.model.{MODULE}"
    tensors = {"base_layer": normal(12, 10), "lora_A.default": A, "lora_B.default": B}
    state = {f"{wrapped}.{name}.weight": torch.from_numpy(x) for name, x in tensors.items()}
    torch.save({"state_dict": state, "epoch": 3, "global_step": 99}, out / "last.ckpt")
    return out / "last.ckpt"


@situation(PEFT, "AdaLoRA", "`lora_A`, `lora_B`, `lora_E`")
def adalora(out: Path) -> Made:
    E = normal(4, 1)
    tensors = {f"{MODULE}.lora_A": A, f"{MODULE}.lora_B": B, f"{MODULE}.lora_E": E}
    written = write_adapter(out, tensors, peft_type="ADALORA", init_r=4)
    return Made(written, updates={MODULE: product(B * E.T.astype(float), A, 8 / (4 + 1e-5))})


@situation(PEFT, "DoRA", "`lora_magnitude_vector` beside A and B")
def dora(out: Path) -> Made:
    return Made(_dora(out), refused="--base DIR, or look at B·A alone, --direction-only")


@situation(PEFT, "DoRA, B·A alone", "the same")
def dora_direction(out: Path) -> Made:
    return Made(_dora(out), ["--direction-only"], updates={MODULE: product(B, A, 2)})


@situation(PEFT, "DoRA with its base", "the same, and the base")
def dora_with_base(out: Path) -> Made:
    W0 = normal(12, 10, seed=1)
    (out / "base").mkdir()
    save_file({f"{MODULE}.weight": W0}, out / "base" / "model.safetensors")
    V = W0 + product(B, A, 2)
    V *= np.arange(1.0, 13)[:, None] / np.linalg.norm(V, axis=1, keepdims=True)
    base = ["--base", str(out / "base")]
    return Made(_dora(out / "adapter"), base, updates={MODULE: V - W0})


def _dora(directory: Path) -> Path:
    magnitude = {f"{MODULE}.lora_magnitude_vector": np.arange(1, 13).astype("f4")}
    return write_adapter(directory, LORA | magnitude, use_dora=True)


@situation(
    PEFT, "Start that changes the base: PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA", "`init_lora_weights`"
)
def pissa(out: Path) -> Made:
    return Made(write_adapter(out, LORA, init_lora_weights="pissa"), refused="--initial DIR")


@situation(PEFT, "The same, with the adapter before its training", "two adapters")
def pissa_with_initial(out: Path) -> Made:
    first = {f"{MODULE}.lora_A.weight": normal(4, 10, seed=1)}
    first[f"{MODULE}.lora_B.weight"] = normal(12, 4, seed=1)
    start = write_adapter(out / "initial", first, init_lora_weights="pissa")
    delta = product(B, A, 2) - product(normal(12, 4, seed=1), normal(4, 10, seed=1), 2)
    trained = write_adapter(out / "trained", LORA, init_lora_weights="pissa")
    return Made(trained, ["--initial", str(start)], updates={MODULE: delta})


@situation(PEFT, "MergedLinear of PEFT 0.2", "`enable_lora`, B (m·d_out/n, r, 1)")
def merged_linear(out: Path) -> Made:
    tensors = {"qkv.lora_A.weight": normal(8, 10), "qkv.lora_B.weight": normal(24, 4, 1)}
    written = write_adapter(out, tensors, enable_lora=[True, False, True])
    Bq, Bv = np.split(normal(24, 4, 1)[:, :, 0], 2)
    Aq, Av = np.split(normal(8, 10), 2)
    return Made(
        written, updates={"qkv#slice0": product(Bq, Aq, 2), "qkv#slice2": product(Bv, Av, 2)}
    )


@situation(PEFT, "LoRA on stacked experts (target_parameters)", "B (out, r·E), A (E·r, in)")
def target_parameters(out: Path) -> Made:
    E, r, d_out, d_in = 3, 2, 12, 10
    left, right = normal(d_out, r * E), normal(E * r, d_in)
    tensors = {"mlp.experts.lora_A.weight": right, "mlp.experts.lora_B.weight": left}
    config = {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": [],
        "target_parameters": ["mlp.experts.down_proj"],
    }
    blocks = left.reshape(d_out, r, E), right.reshape(E, r, d_in)
    updates = {
        f"mlp.experts.down_proj#expert{e}": product(blocks[0][:, :, e], blocks[1][e], 2)
        for e in range(E)
    }
    return Made(write_adapter(out, tensors, **config), updates=updates)


@situation(
    PEFT, "LoHa, LoKr, VeRA, IA³, OFT and every other type that changes weights", "`peft_type`"
)
def other_type(out: Path) -> Made:
    return Made(write_adapter(out, {"q.hada_w1_a": B}, peft_type="LOHA"), refused="--base DIR")


@situation(PEFT, "The same with the base", "the same, and the base")
def other_type_with_base(out: Path) -> Made:
    from peft import LoHaConfig
    from tiny_models import layers, llama, trained

    llama().save_pretrained(out / "base")
    model = trained(llama(), LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(out / "adapter")
    updates = {
        name: layer.get_delta_weight("default").detach().double().numpy()
        for name, layer in layers(model).items()
    }
    return Made(out / "adapter", ["--base", str(out / "base")], updates=updates)


@situation(PEFT, "Prompt methods: prompt tuning, P-tuning, prefix tuning, …", "`peft_type`")
def prompt_tuning(out: Path) -> Made:
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8, "token_dim": 32}
    return Made(
        write_adapter(out, {"prompt_embeddings": normal(8, 32)}, **config), refused="no weight"
    )


@situation(PEFT, "X-LoRA, Poly", "`peft_type`")
def xlora(out: Path) -> Made:
    return Made(write_adapter(out, LORA, peft_type="XLORA"), refused="no single ΔW")


@situation(OWN, "MultiLoRA", "`peft_type` MULTILORA")
def multilora(out: Path) -> Made:
    right, left, s = normal(6, 10), normal(12, 6), normal(12, 3)
    parts = {"A": right, "B": left, "s": s}
    tensors = {f"{MODULE}.multilora_{part}": x for part, x in parts.items()}
    written = write_adapter(out, tensors, peft_type="MULTILORA", n=3, r=2, lora_alpha=4)
    delta = sum(
        s[:, [i]] * product(left[:, 2 * i : 2 * i + 2], right[2 * i : 2 * i + 2], 2)
        for i in range(3)
    )
    return Made(written, updates={MODULE: np.asarray(delta)})


@situation(OWN, "Bank of task experts", "`experts.json`, one LoRA per task")
def experts(out: Path) -> Made:
    bank = {"format": "multilora-experts", "version": 1, "tasks": ["law", "sums"]}
    (out / "experts.json").write_text(json.dumps(bank))
    for task in bank["tasks"]:
        write_adapter(out / str(task), LORA)
    delta = product(B, A, 2)
    return Made(out, updates={f"{MODULE}#law": delta, f"{MODULE}#sums": delta})


@situation(OWN, "Bank whose experts.json names other directories", "`experts.json`")
def experts_outside(out: Path) -> Made:
    bank = {"format": "multilora-experts", "version": 1, "tasks": ["../precious"]}
    (out / "experts.json").write_text(json.dumps(bank))
    return Made(out, refused="expected the names of directories next to it")


@situation(OWN, "Full fine-tuning as ΔW", "`delta_config.json`, `delta.safetensors`")
def delta(out: Path) -> Made:
    config = {"format": "multilora-delta", "version": 1, "modules": {MODULE: {"floor": 1e-9}}}
    (out / "delta_config.json").write_text(json.dumps(config))
    save_file({MODULE: normal(12, 10)}, out / "delta.safetensors")
    return Made(out, updates={MODULE: normal(12, 10).astype(float)})
