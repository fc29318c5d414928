"""A trained model → a checkpoint of ΔW, and back.

Adapters are written by PEFT's own `save_pretrained`; beside a MultiLoRA checkpoint its exact
export to a standard LoRA lies in `lora/`. Task experts are a LoRA each, in directories of their
names, beside `experts.json`. Full fine-tuning is written as ΔW of every trained matrix:
`delta.safetensors` and `delta_config.json`. `load_tuned` turns any of them into a model again.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import ml_dtypes
import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from analysis.floor import noise_floor
from multilora import experts, record
from multilora.config import MultiLoraConfig
from multilora.layers import MultiLoraLinear

VERSION = 1
# All that a checkpoint of either kind consists of.
FILES = (
    *("adapter_config.json", "adapter_model.safetensors", "lora"),
    *("delta_config.json", "delta.safetensors", experts.CONFIG),
)


def load_base(path: str, **options: Any) -> tuple[Any, Any]:
    """(model, tokenizer) of a local directory or hub name; `options` go to from_pretrained."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
    return model, transformers.AutoTokenizer.from_pretrained(path)


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every linear layer but the output head: what full fine-tuning trains."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head:
            yield name, module


def weight_files(path: str) -> dict[str, str]:
    """{file: SHA-256} of a base model's weight files; of a hub name, those in the local cache."""
    directory = Path(path)
    if not directory.is_dir():
        directory = Path(huggingface_hub.snapshot_download(path, local_files_only=True))
    files = record.sha256_of_files(directory)
    return files or record.sha256_of_files(directory, "*.bin")


def save(model: Any, base: str, out: Path) -> None:
    """Write the ΔW checkpoint of a trained model, a PeftModel or a full fine-tune of `base`.

    Files appear in `out` only when each of them is whole; what another checkpoint left there
    under our names goes.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".delta-", dir=out) as temporary:
        if isinstance(model, PeftModel):
            model.save_pretrained(temporary)
            if isinstance(model.active_peft_config, MultiLoraConfig):
                save_as_lora(model, Path(temporary) / "lora")
        else:
            _save_full(model, base, Path(temporary))
        for name in (*FILES, *_experts(out), *_experts(Path(temporary))):
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
        for path in Path(temporary).iterdir():
            path.replace(out / path.name)


def _experts(directory: Path) -> list[str]:
    """The names of a bank's experts, which are those of their directories; [] without a bank."""
    return experts.saved_tasks(directory) if (directory / experts.CONFIG).is_file() else []


def save_as_lora(model: PeftModel, out: Path, adapter: str = "default") -> None:
    """Write a MultiLoRA adapter as a standard PEFT LoRA of rank n·r, exactly.

    B = [diag(s₁)B₁ … diag(sₙ)Bₙ], A = [A₁; …; Aₙ] and lora_alpha' = n·α, with rsLoRA √n·α, so
    that PEFT's own scale is ours: the adapter runs wherever LoRA does, without this package.
    """
    config = model.peft_config[adapter]
    if not isinstance(config, MultiLoraConfig):
        raise ValueError(f"adapter {adapter!r} is {config.peft_type}; expected MULTILORA")
    tensors: dict[str, torch.Tensor] = {}
    fan_in_fan_out = False
    for name, layer in model.named_modules():
        if isinstance(layer, MultiLoraLinear) and adapter in layer.multilora_A:
            left, right = layer.factors(adapter, scaled=False)
            tensors[f"{name}.lora_A.weight"] = right.detach().contiguous()
            tensors[f"{name}.lora_B.weight"] = left.detach().contiguous()
            fan_in_fan_out |= layer.fan_in_fan_out
    lora = LoraConfig(
        r=config.n * config.r,
        lora_alpha=config.lora_alpha * (config.n**0.5 if config.use_rslora else config.n),
        use_rslora=config.use_rslora,
        lora_dropout=config.lora_dropout,
        fan_in_fan_out=fan_in_fan_out,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )
    out.mkdir(parents=True, exist_ok=True)
    tensors |= _saved_modules(model, adapter)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    lora.save_pretrained(str(out))


def _saved_modules(model: PeftModel, adapter: str) -> dict[str, torch.Tensor]:
    """The adapter's modules_to_save, under the names that PEFT's files give them."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=adapter)
    return {k: v.contiguous() for k, v in state.items() if ".multilora_" not in k}


def _save_full(model: Any, base: str, out: Path) -> None:
    """`delta.safetensors`, W_tuned − W0 taken in float64 and stored float32, and its config."""
    untrained = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=model.dtype)
    W0 = dict(untrained.named_parameters())
    deltas: dict[str, torch.Tensor] = {}
    modules: dict[str, dict[str, float]] = {}
    vectors: dict[str, dict[str, float]] = {}
    frozen: list[str] = []
    layers = dict(model.named_modules())
    for name, tuned in model.named_parameters():
        module = name.removesuffix(".weight")
        if not tuned.requires_grad:
            frozen.append(name)
            continue
        before = W0[name].detach().double()
        delta = tuned.detach().cpu().double() - before
        if tuned.ndim != 2:
            vectors[name] = {"frobenius_norm": float(delta.norm())}
            continue
        modules[module] = {
            "floor": noise_floor(as_numpy(tuned)),
            "W0_frobenius": float(before.norm()),
            "W0_rms": float(before.square().mean().sqrt()),
        }
        delta = delta.T if isinstance(layers[module], Conv1D) else delta
        deltas[module] = delta.float().contiguous()
    save_file(deltas, out / "delta.safetensors", metadata={"format": "pt"})
    config = {
        "format": "multilora-delta",
        "version": VERSION,
        "method": "full",
        "base": base,
        "base_sha256": weight_files(base),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tied": sorted(getattr(model, "all_tied_weights_keys", {})),
        "frozen": frozen,
        "modules": modules,
        "vectors": vectors,
    }
    record.write_json(out / "delta_config.json", config)


def as_numpy(W: torch.Tensor) -> np.ndarray:
    """The same numbers in the same dtype; numpy has bfloat16 from ml_dtypes."""
    W = W.detach().cpu()
    if W.dtype == torch.bfloat16:
        return W.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return W.numpy()


def load_tuned(model: Any, checkpoint: Path) -> Any:
    """The base `model` with a checkpoint's ΔW: a PeftModel, or the model with ΔW added in place.

    Raises FileNotFoundError where there is no checkpoint, ValueError where it does not fit.
    """
    if (checkpoint / experts.CONFIG).is_file():
        return experts.ExpertBank.from_pretrained(model, checkpoint)
    if (checkpoint / "adapter_config.json").is_file():
        return PeftModel.from_pretrained(model, checkpoint)
    if not (checkpoint / "delta_config.json").is_file():
        raise FileNotFoundError(
            f"{checkpoint}: neither adapter_config.json nor delta_config.json is there; "
            "expected the directory of a checkpoint"
        )
    config = json.loads((checkpoint / "delta_config.json").read_text(encoding="utf-8"))
    layers = dict(model.named_modules())
    with safe_open(checkpoint / "delta.safetensors", framework="pt") as file:
        for name in config["modules"]:
            if name not in layers:
                raise ValueError(f"{checkpoint}: {name} is not a module of the model")
            layer, delta = layers[name], file.get_tensor(name)
            delta = delta.T if isinstance(layer, Conv1D) else delta
            if delta.shape != layer.weight.shape:
                raise ValueError(
                    f"{checkpoint}: {name} is {tuple(delta.shape)}; "
                    f"the model's weight is {tuple(layer.weight.shape)}"
                )
            layer.weight.data = (layer.weight.double() + delta.double()).to(layer.weight.dtype)
    return model
