"""Save a trained model as a checkpoint of ΔW, and load such a checkpoint.

Adapters are written by PEFT's own `save_pretrained`. Next to a MultiLoRA adapter, `lora/` holds its
exact export to a standard LoRA; next to an MTL-LoRA adapter, `lora/TASK/` holds the export of each
task. R-LoRA has no exact export: `save_as_lora` writes an approximation on request, and
`mean_router_error` measures its error. Task experts are one LoRA per task, in directories of their
names, and `experts.json`. Full fine-tuning is written as ΔW of every trained matrix,
`delta.safetensors`, and its `delta_config.json`. `load_tuned` turns any of them into a model.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import ml_dtypes
import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from analysis import CheckpointError, UserError, extras
from analysis.files import exchange
from analysis.files.place import Place
from analysis.formats import experts as bank
from analysis.formats import full
from analysis.numerics.floor import noise_floor
from multilora import checked, record
from multilora.methods import experts, serving
from multilora.methods.config import AdapterConfig, MtlLoraConfig, MultiLoraConfig, RLoraConfig
from multilora.methods.layers import AdapterLinear
from multilora.methods.quantised import plain_layout
from multilora.methods.rlora import RLoraLinear

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LORA = "lora"  # directory of the exports to a standard LoRA
# Files and directories of any checkpoint, other than the directories of experts and adapters.
FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, LORA, full.CONFIG, full.WEIGHTS, experts.CONFIG)


def load_base(path: str, quantised: int = 0, **options: Any) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a local directory or hub name.

    quantised: 4 or 8 to load the linear layers in so many bits, by bitsandbytes (4: NF4); or 0.
    options: passed to the model's `from_pretrained`. Code that lies beside the model is never run.
    Raises UserError if the model cannot be loaded, or has no readable tokenizer or that of another.
    """
    if quantised:
        options["quantization_config"] = _in_bits(quantised)
    checked.model(path)
    safe = {"trust_remote_code": False}
    with checked.loading(path):
        model = transformers.AutoModelForCausalLM.from_pretrained(path, **safe, **options)
    plain_layout(model)
    try:
        with checked.loading(path):
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, **safe)
    except (UserError, OSError) as error:
        raise UserError(
            f"{path}: no readable tokenizer ({_first_line(error)}); expected its files, such as "
            "tokenizer.json, next to the model"
        ) from error
    checked.tokenizer(model, tokenizer, path)
    return model, tokenizer


def _in_bits(bits: int) -> transformers.BitsAndBytesConfig:
    """Settings of bitsandbytes for 4 or 8 bits; UserError if it is not installed."""
    with extras.named():
        import bitsandbytes  # noqa: F401
    if bits == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    four: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return transformers.BitsAndBytesConfig(load_in_4bit=True, **four)


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, layer) of every linear layer except the output head.

    Full fine-tuning trains the weights of these.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head:
            yield name, module


def weight_files(path: str) -> dict[str, str]:
    """{file: SHA-256} of the weight files of a base model: a directory, or a cached hub name."""
    directory = Path(path)
    if not directory.is_dir():
        try:
            directory = Path(huggingface_hub.snapshot_download(path, local_files_only=True))
        except (ValueError, OSError) as error:
            raise UserError(
                f"{path}: neither a directory nor in the hub's cache ({_first_line(error)})"
            ) from error
    files = record.sha256_of_files(directory)
    return files or record.sha256_of_files(directory, "*.bin")


def _first_line(error: Exception) -> str:
    """First line of an error's message, or the name of its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


# Writing.


def save(model: Any, base: str, out: Path) -> None:
    """Write the ΔW checkpoint of a trained model, replacing an earlier checkpoint in `out`.

    model: a PeftModel, all of whose adapters are saved, or a full fine-tuning of `base`.
    base: directory or hub name of the model before training.
    out: directory, created if needed.

    Everything is written apart and then exchanged. If writing fails or the process ends, the
    earlier checkpoint stays as it was.
    """
    with exchange.replacing(out, stale=earlier(out)) as new:
        write(model, base, new)


def write(model: Any, base: str, new: Path) -> None:
    """Write the ΔW checkpoint of a trained model into an empty directory; arguments as `save`."""
    if isinstance(model, PeftModel):
        _save_adapters(model, new)
    else:
        _save_full(model, base, new)


def earlier(out: Path) -> list[str]:
    """Return the names in `out` that any checkpoint may have, which a new one replaces.

    Warns, and leaves out the directories of earlier experts, if experts.json is broken.
    """
    return [*FILES, *_replaced_experts(out)]


def hashes(out: Path) -> dict[str, str]:
    """{file: SHA-256} of the weights of a saved checkpoint, including those of every expert."""
    files = record.sha256_of_files(out)
    place = Place(out)
    for expert in bank.directories(place) if bank.recognise(place) else ():
        of_expert = record.sha256_of_files(expert.path)
        files |= {f"{expert.path.name}/{name}": value for name, value in of_expert.items()}
    return files


def _replaced_experts(out: Path) -> list[str]:
    """Directory names of an earlier bank's experts in `out`, which a new checkpoint replaces.

    Warns and returns [] if experts.json is broken.
    """
    place = Place(out)
    if not bank.recognise(place):
        return []
    try:
        # Only directories of `out` itself: nothing outside it is ever moved.
        return [e.path.name for e in bank.directories(place) if e.path.parent == out]
    except CheckpointError as error:
        warnings.warn(
            f"{error}; the file is replaced, and directories of earlier experts in {out} remain",
            stacklevel=3,
        )
        return []


def _save_adapters(model: PeftModel, out: Path) -> None:
    """Write every adapter as PEFT does, with its exact exports to LoRA in `lora/` next to it."""
    model.save_pretrained(str(out))
    for adapter, config in model.peft_config.items():
        directory = (out if adapter == "default" else out / adapter) / LORA
        if isinstance(config, MultiLoraConfig):
            save_as_lora(model, directory, adapter)
        elif isinstance(config, MtlLoraConfig):
            for task in config.tasks:
                save_as_lora(model, directory / task, adapter, task)


def save_as_lora(
    model: PeftModel,
    out: Path,
    adapter: str = "default",
    task: str | None = None,
    padded: bool = False,
) -> None:
    """Write an adapter as a standard PEFT LoRA, which runs wherever LoRA does.

    MultiLoRA, exact: B = [diag(s₁)B₁ … diag(sₙ)Bₙ], A = [A₁; …; Aₙ], rank n·r.
    MTL-LoRA, one task, exact: B = Σᵢ softmax(w_t/τ)ᵢ Bᵢ Λ_t, rank r.
    R-LoRA, approximate, with a warning: the mean of the heads replaces the router; B and A are
    those of ΔW relative to the start, rank 2r. `mean_router_error` measures the error.

    lora_alpha is set so that PEFT's scale equals the adapter's.

    model: the model with the adapter.
    out: directory, created if needed.
    adapter: name of the adapter.
    task: name of a task, for MTL-LoRA only.
    padded: write the same update by the rules of vLLM: one rank for all modules, padded with zeros
        to one that it allows, and the scale within B.

    Raises UserError for an adapter of another method, or a task that is missing or not expected;
    if `padded`, ValueError for what vLLM does not serve.
    """
    config = model.peft_config[adapter]
    if not isinstance(config, AdapterConfig):
        raise UserError(
            f"adapter {adapter!r} is of type {config.peft_type}; expected MULTILORA, RLORA or "
            "MTLLORA"
        )
    if (task is None) == isinstance(config, MtlLoraConfig):
        raise UserError(
            f"adapter {adapter!r} is of type {config.peft_type} and task is {task!r}; expected a "
            "task for MTLLORA, which has one update per task, and no task for other types"
        )
    if isinstance(config, RLoraConfig):
        warnings.warn(
            "this LoRA approximates R-LoRA: the mean of the heads replaces the router; "
            "multilora.delta.mean_router_error measures the error",
            stacklevel=2,
        )
    part = {} if task is None else {"task": task}
    layers = _layers(model, adapter)
    tensors = _saved_modules(model, adapter)
    factors = {name: layer.factors(adapter, scaled=False, **part) for name, layer in layers.items()}
    turned = any(isinstance(layer.get_base_layer(), Conv1D) for layer in layers.values())
    settings = _lora_config(config, fan_in_fan_out=turned)
    if padded:
        serving.check(config)
        r = serving.rank(len(right) for _, right in factors.values())
        for name, (left, right) in factors.items():
            factors[name] = serving.padded(left * layers[name].scale[adapter], right, r)
        one = {"r": r, "lora_alpha": r, "use_rslora": False}
        none: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}
        settings = dataclasses.replace(settings, **one, **none)
    for name, (left, right) in factors.items():
        of_ids = isinstance(layers[name].get_base_layer(), nn.Embedding)
        A, B = (f"lora_embedding_{f}" if of_ids else f"lora_{f}.weight" for f in "AB")
        tensors[f"{name}.{A}"] = right.detach().contiguous()
        tensors[f"{name}.{B}"] = left.detach().contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    settings.save_pretrained(str(out))


def _layers(model: PeftModel, adapter: str) -> dict[str, AdapterLinear]:
    """The layers of an adapter, by their names in `model`."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, AdapterLinear) and adapter in layer.scale
    }


def _lora_config(config: AdapterConfig, fan_in_fan_out: bool) -> LoraConfig:
    """Settings of the LoRA that an adapter is exported to."""
    return LoraConfig(
        **_scale_of_lora(config),
        fan_in_fan_out=fan_in_fan_out,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        modules_to_save=config.modules_to_save,
        bias="lora_only" if config.bias.endswith("_only") else config.bias,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )


def _scale_of_lora(config: AdapterConfig) -> dict[str, Any]:
    """Rank, lora_alpha and dropout of the LoRA that an adapter is exported to."""
    if isinstance(config, RLoraConfig):  # LoRA has no counterpart of its dropout on each head
        return {"r": 2 * config.r, "lora_alpha": 2**0.5 * config.lora_alpha, "use_rslora": True}
    n = config.n if isinstance(config, MultiLoraConfig) else 1
    alpha = n**0.5 if config.use_rslora else n
    settings = {
        "r": n * config.r,
        "lora_alpha": config.lora_alpha * alpha,
        "use_rslora": config.use_rslora,
        "lora_dropout": config.lora_dropout,
    }
    if isinstance(config, MultiLoraConfig):
        settings["rank_pattern"] = {name: n * r for name, r in config.rank_pattern.items()}
        settings["alpha_pattern"] = {name: alpha * a for name, a in config.alpha_pattern.items()}
    return settings


def _saved_modules(model: PeftModel, adapter: str) -> dict[str, torch.Tensor]:
    """The adapter's modules_to_save, under the names that PEFT uses in its files."""
    state = get_peft_model_state_dict(model, adapter_name=adapter)
    return {k: v.contiguous() for k, v in state.items() if f".{model.base_model.prefix}" not in k}


def _save_full(model: Any, base: str, out: Path) -> None:
    """Write ΔW = W_tuned − W0, taken in float64 and stored in float32, and its config."""
    untrained = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=model.dtype)
    W0 = dict(untrained.named_parameters())
    layers = dict(model.named_modules())
    deltas: dict[str, torch.Tensor] = {}
    modules: dict[str, dict[str, float]] = {}
    vectors: dict[str, dict[str, float]] = {}
    frozen: list[str] = []
    for name, tuned in model.named_parameters():
        if not tuned.requires_grad:
            frozen.append(name)
            continue
        before = W0[name].detach().double()
        delta = tuned.detach().cpu().double() - before
        if tuned.ndim != 2:
            vectors[name] = {"frobenius_norm": float(delta.norm())}
            continue
        module = name.removesuffix(".weight")
        modules[module] = {
            "floor": noise_floor(as_numpy(tuned)),
            "W0_frobenius": float(before.norm()),
            "W0_rms": float(before.square().mean().sqrt()),
        }
        delta = delta.T if isinstance(layers[module], Conv1D) else delta
        deltas[module] = delta.float().contiguous()
    save_file(deltas, out / full.WEIGHTS, metadata={"format": "pt"})
    config = {
        "format": full.FORMAT,
        "version": full.VERSION,
        "method": "full",
        "base": base,
        "base_sha256": weight_files(base),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tied": sorted(getattr(model, "all_tied_weights_keys", {})),
        "frozen": frozen,
        "modules": modules,
        "vectors": vectors,
    }
    record.write_json(out / full.CONFIG, config)


def as_numpy(W: torch.Tensor) -> np.ndarray:
    """Return the numbers of a tensor in the same dtype; bfloat16 is that of ml_dtypes."""
    W = W.detach().cpu()
    if W.dtype == torch.bfloat16:
        return W.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return W.numpy()


# The error of R-LoRA's export.


@torch.no_grad()
def mean_router_error(
    model: PeftModel, batches: Iterable[Mapping[str, Any]], adapter: str = "default"
) -> dict[str, dict[str, float]]:
    """Return the error of replacing R-LoRA's router by the mean of the heads, per module.

    batches: keyword arguments of the model's calls.

    For each module, over all rows of all batches, the norm of the difference in the layer's output
    relative to the norm of that output (`output`) and relative to the norm of what the adapter adds
    (`update`). Every layer gets its input from the routed model, without dropout; padding counts
    like any other token. Raises UserError if the adapter is not an active R-LoRA adapter with its
    router in use, or if there is no batch.
    """
    layers = _routed(model, adapter)
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
    if not all(output > 0 for _, output, _ in squares.values()):
        raise UserError("no batch gave the layers an output; expected at least one batch")
    return {
        name: {
            "output": float((change / output).sqrt()),
            "update": float((change / routed).sqrt()),
        }
        for name, (change, output, routed) in squares.items()
    }


def _routed(model: PeftModel, adapter: str) -> dict[str, RLoraLinear]:
    """The layers of an active R-LoRA adapter, by module; UserError unless all use their router."""
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in _layers(model, adapter).items()
        if isinstance(layer, RLoraLinear)
    }
    if not layers or any(layer.fixed[adapter] for layer in layers.values()):
        raise UserError(f"adapter {adapter!r}: expected R-LoRA whose router is not fixed")
    if list(model.active_adapters) != [adapter]:
        raise UserError(f"adapter {adapter!r} is not the active one; call set_adapter first")
    return layers


# Loading.


def load_tuned(model: Any, checkpoint: Path) -> Any:
    """Return the base `model` with the ΔW of a checkpoint.

    The result is a PeftModel for an adapter, or `model` itself with ΔW added in place for a full
    fine-tuning. Raises FileNotFoundError if there is no checkpoint, UserError or ValueError if it
    does not fit the model.
    """
    if (checkpoint / experts.CONFIG).is_file():
        return experts.ExpertBank.from_pretrained(model, checkpoint)
    if (checkpoint / ADAPTER_CONFIG).is_file():
        return PeftModel.from_pretrained(model, checkpoint)
    if not (checkpoint / full.CONFIG).is_file():
        raise FileNotFoundError(
            f"{checkpoint}: neither {ADAPTER_CONFIG} nor {full.CONFIG} is there; expected the "
            "directory of a checkpoint"
        )
    names = _modules(checkpoint / full.CONFIG)
    try:
        _add(model, names, checkpoint)
    except SafetensorError as error:
        raise UserError(f"{checkpoint / full.WEIGHTS}: {error}") from None
    return model


def _modules(config: Path) -> list[str]:
    """Return the modules that a delta_config.json lists; UserError if it is not such a file."""
    facts = record.read_json(config)
    if (facts.get("format"), facts.get("version")) != (full.FORMAT, full.VERSION):
        raise UserError(
            f"{config}: format {facts.get('format')!r}, version {facts.get('version')!r};"
            f" expected {full.FORMAT!r}, version {full.VERSION}"
        )
    modules = facts.get("modules")
    if not isinstance(modules, dict):
        raise UserError(f"{config}: modules is a {type(modules).__name__}; expected an object")
    return list(modules)


def _add(model: Any, names: Iterable[str], checkpoint: Path) -> None:
    """Add ΔW of these modules to the weights of `model`."""
    layers = dict(model.named_modules())
    with safe_open(checkpoint / full.WEIGHTS, framework="pt") as file:
        for name in names:
            if not isinstance(getattr(layers.get(name), "weight", None), nn.Parameter):
                raise UserError(f"{checkpoint}: {name} is not a module of the model")
            layer, delta = layers[name], file.get_tensor(name)
            delta = delta.T if isinstance(layer, Conv1D) else delta
            if delta.shape != layer.weight.shape:
                raise UserError(
                    f"{checkpoint}: {name} is {tuple(delta.shape)}; "
                    f"the model's weight is {tuple(layer.weight.shape)}"
                )
            layer.weight.data = (layer.weight.double() + delta.double()).to(layer.weight.dtype)
