"""Record the spectrum of every update ΔW during training, every N steps.

    from multilora.callback import SpectrumCallback
    trainer.add_callback(SpectrumCallback(trainer, every=100))

`trainer` is any transformers.Trainer (TRL's are), with a model that has adapters of PEFT or of
this package. The rows, those of `python -m analysis.spectrum`, are appended to spectrum_steps.csv
in the output directory; their medians are logged to the loggers of `report_to`.

A layer gives its update by one of two methods: `factors(adapter)` -> (left, right) with
ΔW = left @ right, or `parts(adapter)` -> {part: (left, right)} if it has several updates. PEFT's
LoRA and AdaLoRA have neither and are handled here.
"""

import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.numpy import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from analysis import CheckpointError, UserError, results, spectrum, store
from analysis.checkpoint import Run
from analysis.formats import factors, starts
from analysis.formats.peft import PREFIX, WRAPPING
from analysis.numerics.floor import noise_floor
from analysis.tables import spectrum as spectrum_table
from analysis.update import DenseUpdate, Entry, LowRankUpdate, Skipped
from multilora import delta
from multilora.methods.config import MethodType
from multilora.methods.experts import ExpertBank

TABLE, SPECTRA = "spectrum_steps.csv", "spectra_steps"
# Measures whose medians over modules are logged.
LOGGED = (
    "spectral_norm",
    "frobenius_norm",
    "top_share_1",
    "top_share_4",
    "effective_rank",
    "stable_rank",
    "utilisation",
    "democracy",
)
# Variants of PEFT's LoRA that change its training but not ΔW = scale · B A.
PLAIN_VARIANTS = ("ALora", "MiCA", "Velora")
# Methods without factors whose `get_delta_weight` is ΔW; that of other methods may not be.
ADDITIVE = tuple(f"peft:{name}" for name in "LOHA LOKR VERA VBLORA RANDLORA FOURIERFT".split())
NAMED = 8  # modules named in one warning

Start = dict[tuple[str, str], LowRankUpdate]


class SpectrumCallback(transformers.TrainerCallback):
    """Trainer callback that measures ΔW at step 0, every `every` steps and at the last step.

    trainer: the trainer that the callback is added to, which logs the medians. If None (for
        `callbacks=[…]`, before a trainer exists), nothing is logged; all else is the same.
    every: number of steps between measurements, at least 1.
    full: also measure dense updates, by their eigenvalues (seconds per matrix): adapters without
        factors, and every trained 2-D weight outside the adapters, whose W0 is kept on the CPU.
    singular_values: also write all singular values, by the rows' keys, to
        spectra_steps/step-N.safetensors.

    A new training starts new files. A resumed training continues after the step from which it
    resumes, so that every step is in the table exactly once. Only the first process measures and
    writes. Training stays the same bit for bit. Updates that cannot be measured are named in one
    warning. Raises UserError if `every` is not a positive whole number.
    """

    def __init__(
        self,
        trainer: Any = None,
        *,
        every: int = 100,
        full: bool = False,
        singular_values: bool = False,
    ) -> None:
        if not isinstance(every, int) or every < 1:
            raise UserError(f"every is {every!r}; expected a whole number of steps, at least 1")
        self.trainer, self.every = trainer, every
        self.full, self.singular_values = full, singular_values
        self.W0: dict[str, torch.Tensor] | None = None
        self.starts: Start | None = None
        self.last = -1  # the last step in the table
        self._warned: set[str] = set()
        if trainer is not None and trainer.is_world_process_zero():
            self._remember(trainer.model)

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        """Keep the weights before training; they are those of the base even when it is resumed."""
        if state.is_world_process_zero:
            self._remember(model)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any
    ) -> None:
        """Start or continue the files, and measure the first step."""
        if not state.is_world_process_zero:
            return
        if self.W0 is None and state.global_step == 0:
            self._remember(model)
        if self.W0 is None and self.full:
            raise UserError(
                "SpectrumCallback(full=True) was added when the weights before training were gone; "
                "pass it the trainer, SpectrumCallback(trainer, full=True), before train()"
            )
        self.last = _cut(Path(args.output_dir), state.global_step)
        if state.global_step % self.every == 0:
            self._measure(args, state, control, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        """Measure every `every`-th step and the last."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(args, state, control, model)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        """Measure the last step if another callback ends training early."""
        # (At on_train_end the loggers are already closed.)
        if control.should_training_stop:
            self._measure(args, state, control, model)

    def _remember(self, model: Any) -> None:
        """Keep copies of W0 and of the initial factors, from which ΔW is taken."""
        trained = _trained(model) if self.full else ()
        self.W0 = {name: p.detach().cpu().clone() for name, p in trained if p.ndim == 2}
        self.starts = {
            (update.name, update.part): replace(update, B=update.B.copy(), A=update.A.copy())
            for update in updates(model, None, starting=True)
            if isinstance(update, LowRankUpdate)
        }

    def _measure(self, args: Any, state: Any, control: Any, model: Any) -> None:
        """Measure this step, unless it is in the table already, and write and log the result."""
        step, out = int(state.global_step), Path(args.output_dir)
        if not state.is_world_process_zero or step <= self.last:
            return
        run = Run(out, out.resolve().name, step)
        W0 = self.W0 if self.full else None
        spectra = spectrum.of_updates(updates(model, self.starts, W0), run)
        self._warn([*spectra.skipped, *self._left_out(model)])
        if not spectra.rows and not self._warned:
            self._warned.add("")
            warnings.warn(
                "no spectra: the model has no adapter layer and no trained matrix in this process",
                stacklevel=2,
            )
        if self.singular_values and spectra.s:
            (out / SPECTRA).mkdir(parents=True, exist_ok=True)
            file = out / SPECTRA / f"step-{step}.safetensors"
            store.replace(file, partial(save_file, spectra.s))
        _append(out / TABLE, spectra.rows)
        self.last = step
        if spectra.rows:
            self._log(spectra.rows, control)

    def _log(self, rows: list[results.Row], control: Any) -> None:
        """Log the medians of the rows through the trainer."""
        if self.trainer is None:
            return
        median = spectrum_table.summary(rows)[-1]  # the last row is over all kinds
        logs = {f"spectrum/{c}": median[c] for c in LOGGED if median[c] is not None}
        # Logging clears should_log, which the trainer needs at this step. Trainer's own `log` is
        # called because a subclass may do more: TRL's adds its running means and resets them.
        should_log = control.should_log
        transformers.Trainer.log(self.trainer, logs)
        control.should_log = should_log

    def _left_out(self, model: Any) -> list[dict[str, str]]:
        """Name the trained weights outside adapters, which are measured with `full` only."""
        reason = "trained without an adapter; pass full=True to SpectrumCallback to measure it"
        names = () if self.full else (name for name, _ in _trained(model))
        return [{"module": _module_of(name), "reason": reason} for name in names]

    def _warn(self, skipped: list[dict[str, str]]) -> None:
        """Warn of modules that were not measured, by reason; of each module only once."""
        modules: dict[str, list[str]] = {}
        for skip in skipped:
            name = skip["module"]
            if name not in self._warned:
                self._warned.add(name)
                modules.setdefault(skip["reason"].removeprefix(f"{name}: "), []).append(name)
        for reason, names in modules.items():
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            warnings.warn(f"no spectra of {', '.join(names[:NAMED])}{more}: {reason}", stacklevel=2)


def updates(
    model: nn.Module,
    start: Start | None,
    W0: Mapping[str, torch.Tensor] | None = None,
    starting: bool = False,
) -> Iterator[Entry]:
    """Yield ΔW of every adapter in a model, by layer, and of other trained weights if W0 is given.

    start: initial B·A of adapters whose initialisation moves part of W0 into their factors (PiSSA,
        …), by (module, part); it is subtracted from theirs.
    W0: weights before training, by parameter name. If given, also yield ΔW of every trained 2-D
        weight, and of adapters without factors, as matrices.
    starting: yield only the current B·A of adapters that need `start`.

    The factors may share memory with the model's parameters: use them before training continues.
    """
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    several = len({adapter for _, layer in layers for adapter in _adapters(layer)}) > 1
    configs = getattr(model, "peft_config", {})
    for key, layer in layers:
        name = key.removeprefix(PREFIX)
        for adapter in _adapters(layer):
            config = configs.get(adapter)
            moved = _moves_base(config)
            if starting and not moved:
                continue
            part = adapter if several else ""
            method = "expert" if isinstance(model, ExpertBank) else _method(config)
            try:
                for update in _of_layer(layer, adapter, name, part, method, W0 is not None):
                    if moved and not starting and isinstance(update, LowRankUpdate):
                        yield _since(update, start)
                    else:
                        yield update
            except CheckpointError as error:
                yield Skipped(name, str(error))
    if W0 is not None:
        for name, p in _trained(model):
            yield _difference(model, name, p, W0.get(name))


def _adapters(layer: Any) -> list[str]:
    """Names of the adapters in a layer, in the order in which they were added."""
    tables: list[Any] = [getattr(layer, name, ()) for name in layer.adapter_layer_names]
    return list(dict.fromkeys(key for t in tables if hasattr(t, "keys") for key in t))


def _method(config: Any) -> str:
    """Return the name that tables use for the method of an adapter."""
    kind = getattr(config, "peft_type", None)
    if kind is None:
        return ""
    if isinstance(kind, MethodType) or kind.value == "LORA":
        return str(kind.value).lower()
    return f"peft:{kind.value}"


def _moves_base(config: Any) -> bool:
    """Return whether an adapter's initialisation changes the base weights, so that ΔW ≠ B·A."""
    kind = getattr(config, "init_lora_weights", True)
    return (kind.lower() if isinstance(kind, str) else kind) not in starts.PLAIN


def _since(update: LowRankUpdate, start: Start | None) -> LowRankUpdate:
    """Subtract an adapter's initial B·A; raise CheckpointError if it is not known."""
    if start is None or (update.name, update.part) not in start:
        raise CheckpointError(
            "its initialisation changed the base weights and is not known; pass the callback the "
            "trainer, SpectrumCallback(trainer), before train()"
        )
    return starts.subtract(update, start[update.name, update.part])


def _of_layer(
    layer: Any, adapter: str, name: str, part: str, method: str, dense: bool
) -> Iterator[LowRankUpdate | DenseUpdate]:
    """Yield the updates of one adapter in one layer; raise CheckpointError if ΔW is not known.

    layer: the adapter layer.
    adapter: name of the adapter.
    name: name of the module.
    part: part of the updates, to which a layer with several updates adds its own.
    method: name of the method in tables.
    dense: give ΔW as a matrix if the method has no factors.
    """
    if isinstance(layer, LoraLayer):
        B, A, scale = _lora(layer, adapter)
        yield LowRankUpdate(name, *factors.matrices(B, A), scale, part, method)
    elif hasattr(layer, "parts") or hasattr(layer, "factors"):
        try:
            with torch.no_grad():
                several = hasattr(layer, "parts")
                pairs = layer.parts(adapter) if several else {"": layer.factors(adapter)}
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        for of, (left, right) in pairs.items():
            piece = ".".join(filter(None, (part, of)))
            yield LowRankUpdate(name, _array(left), _array(right), 1.0, piece, method)
    elif method not in ADDITIVE:
        raise CheckpointError(f"factors of the ΔW of {method.removeprefix('peft:')} are not known")
    elif not dense:
        raise CheckpointError(
            f"{method} has ΔW as a matrix only; pass full=True to SpectrumCallback to measure it"
        )
    else:
        yield _matrix(layer, adapter, name, part, method)


def _lora(layer: Any, adapter: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Return B, A and scale of a LoRA or AdaLoRA layer of PEFT; B and A may be kernels."""
    variant = getattr(layer, "lora_variant", {}).get(adapter)
    kind = type(variant).__name__
    if isinstance(layer, ParamWrapper):
        raise CheckpointError(
            "LoRA on parameters (target_parameters) stacks several updates, which is not supported"
        )
    if variant is not None and not kind.startswith(PLAIN_VARIANTS):
        raise CheckpointError(f"ΔW of {kind.removesuffix('Variant')} is not scale · B A")
    scale = float(layer.scaling[adapter])
    if isinstance(layer, AdaLoraLayer):
        with torch.no_grad():
            B = layer.lora_B[adapter] * layer.lora_E[adapter].T
            scale /= float(layer.ranknum[adapter]) + 1e-5
        return _array(B), _array(layer.lora_A[adapter]), scale
    if adapter in layer.lora_embedding_A:
        B, A = layer.lora_embedding_B[adapter], layer.lora_embedding_A[adapter]
    else:
        B, A = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
    return _array(B), _array(A), scale


def _matrix(layer: Any, adapter: str, name: str, part: str, method: str) -> DenseUpdate:
    """Return ΔW of an adapter without factors, computed on demand."""
    base = layer.get_base_layer()
    if not base.weight.is_floating_point():
        raise CheckpointError(
            f"base weight is quantised ({base.weight.dtype}); expected floating-point weights"
        )
    turned = isinstance(base, Conv1D)
    shape = base.weight.shape[::-1] if turned else base.weight.shape

    def load() -> np.ndarray:
        with torch.no_grad():
            W = layer.get_delta_weight(adapter).detach()
        return _array((W.T if turned else W.flatten(1)).float())

    return DenseUpdate(name, (shape[0], math.prod(shape[1:])), load, part=part, method=method)


def _trained(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, parameter) of the trained weights of 2 or more dimensions outside adapters."""
    in_adapters = {
        id(p)
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
        for name, p in layer.named_parameters()
        if name.split(".")[0] in layer.adapter_layer_names
    }
    for name, p in model.named_parameters():
        if p.requires_grad and p.ndim > 1 and id(p) not in in_adapters:
            yield name, p


def _module_of(parameter: str) -> str:
    """Return the module that tables name for a parameter of a model."""
    return WRAPPING.sub("", parameter).removesuffix(".weight")


def _difference(
    model: nn.Module, key: str, tuned: torch.Tensor, before: torch.Tensor | None
) -> DenseUpdate | Skipped:
    """Return W_tuned − W0 of one parameter, computed on demand."""
    owner, _, leaf = key.rpartition(".")
    name = _module_of(key)
    if tuned.ndim != 2:
        return Skipped(name, f"is {tuple(tuned.shape)}; expected a matrix")
    if before is None or before.shape != tuned.shape:
        return Skipped(name, "was not trained, or was sharded, when W0 was kept")
    turned = leaf == "weight" and isinstance(model.get_submodule(owner), Conv1D)

    def load() -> np.ndarray:
        W = tuned.detach().cpu().double() - before.double()
        return _array((W.T if turned else W).float())

    def floor() -> float:
        return noise_floor(delta.as_numpy(tuned))

    d_out, d_in = reversed(tuned.shape) if turned else tuned.shape
    return DenseUpdate(name, (d_out, d_in), load, floor, method="full")


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's numbers; raise CheckpointError if this process does not have them."""
    if tensor.is_meta or tensor.numel() == 0 or hasattr(tensor, "placements"):
        raise CheckpointError("is sharded or not loaded; expected whole weights in this process")
    if not tensor.is_floating_point():
        raise CheckpointError(f"is quantised ({tensor.dtype}); expected floating-point weights")
    return delta.as_numpy(tensor)


def _append(path: Path, rows: list[results.Row]) -> None:
    """Append rows to the table; a reader sees either all of them or none."""
    header, lines = store.csv_text(rows).split("\n", 1)

    def write(temporary: Path) -> None:
        if path.exists():
            shutil.copyfile(path, temporary)
        else:
            temporary.write_text(f"{header}\n", encoding="utf-8")
        with temporary.open("a", encoding="utf-8") as file:
            file.write(lines)

    path.parent.mkdir(parents=True, exist_ok=True)
    store.replace(path, write)


def _cut(out: Path, step: int) -> int:
    """Remove from an earlier training's files all after `step`; return the last step that remains.

    At step 0 everything is removed and -1 is returned. Raises UserError if the table is broken.
    """
    for file in (out / SPECTRA).glob("step-*.safetensors"):
        if step == 0 or int(file.stem.removeprefix("step-")) > step:
            file.unlink()
    path = out / TABLE
    if step == 0 or not path.exists():
        path.unlink(missing_ok=True)
        return -1
    try:
        rows = [row for row in store.rows(path) if row["step"] <= step]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a table of this callback: {error}") from None
    store.write_text(path, store.csv_text(rows))
    return max((row["step"] for row in rows), default=-1)
