"""A trained model → a checkpoint of ΔW, and back.

Adapters are written by PEFT's own `save_pretrained`; beside a MultiLoRA checkpoint its exact
export to a standard LoRA lies in `lora/`, beside one of MTL-LoRA each task's in `lora/TASK/`.
R-LoRA has no exact one; `save_as_lora` writes what it is at the mean of its heads, on request, and
`mean_router_error` says how far off that is. Task experts are a LoRA each, in directories of their
names, beside `experts.json`. Full fine-tuning is written as ΔW of every trained matrix:
`delta.safetensors` and `delta_config.json`. `load_tuned` turns any of them into a model again.
"""

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
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

from analysis import UserError
from analysis.numerics.floor import noise_floor
from multilora import record
from multilora.methods import experts
from multilora.methods.config import AdapterConfig, MtlLoraConfig, MultiLoraConfig, RLoraConfig
from multilora.methods.layers import AdapterLinear
from multilora.methods.rlora import RLoraLinear

VERSION = 1
# All that a checkpoint of either kind consists of.
FILES = (
    *("adapter_config.json", "adapter_model.safetensors", "lora"),
    *("delta_config.json", "delta.safetensors", experts.CONFIG),
)


def load_base(path: str, **options: Any) -> tuple[Any, Any]:
    """(model, tokenizer) of a local directory or hub name; `options` go to from_pretrained.

    Raises ValueError where the model is there and its tokenizer is not.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
    try:
        return model, transformers.AutoTokenizer.from_pretrained(path)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path}: no tokenizer can be read ({why}); expected its files, as tokenizer.json, "
            "beside the model"
        ) from error


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
        try:
            directory = Path(huggingface_hub.snapshot_download(path, local_files_only=True))
        except (ValueError, OSError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{path}: not a directory, nor in the hub's cache ({why})") from error
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
            config = model.active_peft_config
            if isinstance(config, MultiLoraConfig):
                save_as_lora(model, Path(temporary) / "lora")
            elif isinstance(config, MtlLoraConfig):
                for task in config.tasks:
                    save_as_lora(model, Path(temporary) / "lora" / task, task=task)
        else:
            _save_full(model, base, Path(temporary))
        for name in (*FILES, *_replaced_experts(out), *_experts(Path(temporary))):
            if (out / name).is_dir() and not (out / name).is_symlink():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
        for path in Path(temporary).iterdir():
            path.replace(out / path.name)


def hashes(out: Path) -> dict[str, str]:
    """{file: SHA-256} of the weights of a saved update; of a bank, those of every expert."""
    found = record.sha256_of_files(out)
    for task in _experts(out):
        found |= {f"{task}/{k}": v for k, v in record.sha256_of_files(out / task).items()}
    return found


def _experts(directory: Path) -> list[str]:
    """The names of a bank's experts, which are those of their directories; [] without a bank."""
    return experts.saved_tasks(directory) if (directory / experts.CONFIG).is_file() else []


def _replaced_experts(out: Path) -> list[str]:
    """Directory names of an earlier bank's experts in `out`; [] if experts.json is broken."""
    try:
        names = _experts(out)
    except (ValueError, AttributeError):
        return []
    # Only a plain name is an expert's directory: nothing outside `out` is ever removed.
    return [name for name in names if Path(name).name == name and name != ".."]


def save_as_lora(
    model: PeftModel, out: Path, adapter: str = "default", task: str | None = None
) -> None:
    """Write an adapter as a standard PEFT LoRA, which runs wherever LoRA does.

    MultiLoRA, exactly: B = [diag(s₁)B₁ … diag(sₙ)Bₙ], A = [A₁; …; Aₙ], rank n·r.
    MTL-LoRA, one `task` of it by name, exactly: B = Σᵢ softmax(w_t/τ)ᵢ Bᵢ Λ_t, rank r.
    R-LoRA, approximately, with a warning: its router gives way to the mean of the heads; B and A
    are those of ΔW relative to the start, rank 2r. `mean_router_error` measures what that costs.

    lora_alpha is such that PEFT's own scale is ours.
    """
    config = model.peft_config[adapter]
    if not isinstance(config, AdapterConfig):
        raise UserError(
            f"adapter {adapter!r} is {config.peft_type}; expected MULTILORA, RLORA or MTLLORA"
        )
    if (task is None) == isinstance(config, MtlLoraConfig):
        raise UserError(
            f"adapter {adapter!r} is {config.peft_type} and task {task!r}; expected a task for "
            "MTLLORA, which has an update for each, and none for others"
        )
    if isinstance(config, RLoraConfig):
        warnings.warn(
            "this LoRA approximates R-LoRA: every input gets the mean of the heads, not what the "
            "router gives it; multilora.delta.mean_router_error measures the difference",
            stacklevel=2,
        )
    tensors: dict[str, torch.Tensor] = {}
    fan_in_fan_out = False
    part = {} if task is None else {"task": task}
    for name, layer in model.named_modules():
        if isinstance(layer, AdapterLinear) and adapter in layer.scale:
            left, right = layer.factors(adapter, scaled=False, **part)
            tensors[f"{name}.lora_A.weight"] = right.detach().contiguous()
            tensors[f"{name}.lora_B.weight"] = left.detach().contiguous()
            fan_in_fan_out |= layer.fan_in_fan_out
    lora = LoraConfig(
        **_scale_of_lora(config),
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


def _scale_of_lora(config: AdapterConfig) -> dict[str, Any]:
    """Rank, lora_alpha and dropout of the LoRA that an adapter becomes."""
    if isinstance(config, RLoraConfig):  # its dropout, on each head, has no place in LoRA
        return {"r": 2 * config.r, "lora_alpha": 2**0.5 * config.lora_alpha, "use_rslora": True}
    n, patterns = 1, {}
    if isinstance(config, MultiLoraConfig):
        n = config.n
        alpha = n**0.5 if config.use_rslora else n
        patterns = {
            "rank_pattern": {name: n * r for name, r in config.rank_pattern.items()},
            "alpha_pattern": {name: alpha * a for name, a in config.alpha_pattern.items()},
        }
    return {
        **patterns,
        "r": n * config.r,
        "lora_alpha": config.lora_alpha * (n**0.5 if config.use_rslora else n),
        "use_rslora": config.use_rslora,
        "lora_dropout": config.lora_dropout,
    }


def _saved_modules(model: PeftModel, adapter: str) -> dict[str, torch.Tensor]:
    """The adapter's modules_to_save, under the names that PEFT's files give them."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=adapter)
    return {k: v.contiguous() for k, v in state.items() if f".{model.base_model.prefix}" not in k}


@torch.no_grad()
def mean_router_error(
    model: PeftModel, batches: Iterable[Mapping[str, Any]], adapter: str = "default"
) -> dict[str, dict[str, float]]:
    """How far R-LoRA's layers are from what they give with the router fixed to the mean.

    batches: what the model is called with. For each module, over all rows of all batches, the
    norm of the difference relative to that of the layer's `output` and to that of what the
    adapter adds to it (`update`). Every layer gets the input that it has in the routed model, and
    dropout is off; padding counts as any other token. Raises ValueError without R-LoRA layers,
    where the router is fixed already, where another adapter is active, and without a batch.
    """
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, RLoraLinear) and adapter in layer.scale
    }
    if not layers or any(layer.fixed[adapter] for layer in layers.values()):
        raise UserError(f"adapter {adapter!r}: expected R-LoRA whose router is not fixed")
    if list(model.active_adapters) != [adapter]:
        raise UserError(f"adapter {adapter!r} is not the active one: call set_adapter first")
    squares = {name: torch.zeros(3, dtype=torch.float64) for name in layers}

    def measure(name: str, layer: Any, x: torch.Tensor, output: torch.Tensor) -> None:
        left, right = layer.factors(adapter)
        x = x.to(right.dtype)
        routed = layer.added(adapter, x)
        change = routed - (x @ right.T) @ left.T
        for i, values in enumerate((change, output, routed)):
            squares[name][i] += values.double().square().sum().cpu()

    hooks = [
        layer.register_forward_hook(
            lambda layer, args, output, name=name: measure(name, layer, args[0], output)
        )
        for name, layer in layers.items()
    ]
    training = model.training
    try:
        model.eval()
        for batch in batches:
            model(**batch)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if not all(of[1] > 0 for of in squares.values()):
        raise UserError("no batch gave the layers an output; expected at least one")
    return {
        name: {"output": float((of[0] / of[1]).sqrt()), "update": float((of[0] / of[2]).sqrt())}
        for name, of in squares.items()
    }


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
                raise UserError(f"{checkpoint}: {name} is not a module of the model")
            layer, delta = layers[name], file.get_tensor(name)
            delta = delta.T if isinstance(layer, Conv1D) else delta
            if delta.shape != layer.weight.shape:
                raise UserError(
                    f"{checkpoint}: {name} is {tuple(delta.shape)}; "
                    f"the model's weight is {tuple(layer.weight.shape)}"
                )
            layer.weight.data = (layer.weight.double() + delta.double()).to(layer.weight.dtype)
    return model
