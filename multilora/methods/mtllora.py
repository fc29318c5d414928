"""MTL-LoRA: an update for each task, made of factors that the tasks share (arXiv 2410.09437).

Every batch says which task each of its rows belongs to: `multilora_task_ids`, a LongTensor
(batch,) of indices into the config's `tasks`, beside `input_ids`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from multilora.methods.config import AdapterConfig, MtlLoraConfig
from multilora.methods.layers import AdapterLinear, at_least_float32
from multilora.methods.tuner import AdapterModel

KEY = "multilora_task_ids"


@dataclass(frozen=True, eq=False)
class TaskIds:
    """The task of each row of a batch; `repeat`: each may stand for several, as beams, in turn."""

    ids: torch.Tensor
    repeat: bool
    largest: int  # known here, so that no layer has to wait for the device

    @classmethod
    def of(cls, ids: Any, repeat: bool) -> "TaskIds":
        """Raises ValueError where these cannot be indices, one a row."""
        ids = torch.as_tensor(ids)
        integers = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        if ids.ndim != 1 or not len(ids) or not integers:
            raise ValueError(
                f"{KEY} is {ids.dtype}, {tuple(ids.shape)}; expected whole numbers, one a row: a "
                "LongTensor (batch,)"
            )
        smallest, largest = map(int, ids.aminmax())
        if smallest < 0:
            raise ValueError(f"{KEY} holds {smallest}; expected indices into tasks, from 0")
        return cls(ids.long(), repeat, largest)

    def rows(self, x: torch.Tensor, tasks: int) -> torch.Tensor:
        """The ids of the rows of x, on its device; ValueError where they do not fit."""
        if self.largest >= tasks:
            raise ValueError(f"{KEY} holds {self.largest}; the adapter has {tasks} tasks, from 0")
        times, rest = divmod(len(x), len(self.ids))
        if rest or (times != 1 and not self.repeat):
            raise ValueError(
                f"{KEY} has {len(self.ids)} entries; the layer's input has {len(x)} rows, expected "
                "one for each (OPT and others lay the rows of a batch end to end)"
            )
        return self.ids.to(x.device).repeat_interleave(times)


class Current:
    """The tasks of the batch that a model is working on: one object, shared by its layers."""

    def __init__(self) -> None:
        self.tasks: TaskIds | None = None

    @contextmanager
    def set(self, tasks: TaskIds | None) -> Iterator[None]:
        """Within it these are the tasks."""
        before, self.tasks = self.tasks, tasks
        try:
            yield
        finally:
            self.tasks = before

    def kept(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """A checkpointing function whose recomputation, in backward, sees the tasks of now."""
        tasks = self.tasks

        def within(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with self.set(tasks):
                return function(*args, **kwargs)

        def keeping(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return checkpoint(partial(within, function), *args, **kwargs)

        return keeping


class MtlLoraLinear(AdapterLinear):
    """A Linear or Conv1D with MTL-LoRA adapters.

    A (r, d_in); B (d_out, n·r), whose columns i·r … (i+1)·r are Bᵢ; of every task Λ, (tasks, r, r)
    or the diagonals (tasks, r), and w (tasks, n).
    """

    prefix = "mtllora_"
    adapter_layer_names = ("mtllora_A", "mtllora_B", "mtllora_lambda", "mtllora_w")
    # fixed: the name of the one task of all inputs, else None
    setting_names = (*AdapterLinear.setting_names, "tasks", "temperature", "fixed")

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: AdapterConfig,
        current: Current | None = None,
    ) -> None:
        super().__init__(base_layer, adapter_name, config)
        self.current = current or Current()

    def start(self, adapter: str, config: MtlLoraConfig) -> None:
        n, r, tasks = config.n, config.r, len(config.tasks)
        A = torch.empty(r, self.in_features)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        one = torch.ones(r) if config.diagonal else torch.eye(r)
        # Equal weights would keep all Bᵢ equal for ever.
        w = torch.empty(tasks, n).uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n))
        self.mtllora_A[adapter] = nn.Parameter(A)
        self.mtllora_B[adapter] = nn.Parameter(torch.zeros(self.out_features, n * r))
        self.mtllora_lambda[adapter] = nn.Parameter(one.repeat(tasks, *[1] * one.ndim))
        self.mtllora_w[adapter] = nn.Parameter(w)
        self.tasks[adapter], self.temperature[adapter] = list(config.tasks), config.temperature
        self.fixed[adapter] = None

    def added(self, adapter: str, x: torch.Tensor) -> torch.Tensor:
        x = self.mtllora_dropout[adapter](x)
        if self.fixed[adapter] is not None:
            left, right = self.factors(adapter)
            return F.linear(F.linear(x, right), left)
        if self.current.tasks is None:
            raise ValueError(
                f"adapter {adapter!r} of MTL-LoRA needs the task of each row: pass {KEY}, indices "
                f"into {self.tasks[adapter]}, with the batch, or choose one for all by set_task"
            )
        rows = self.current.tasks.rows(x, len(self.tasks[adapter]))
        h, L = F.linear(x, self.mtllora_A[adapter]), self.mtllora_lambda[adapter][rows]
        h = torch.einsum("b...r,bsr->b...s" if L.ndim == 3 else "b...r,br->b...r", h, L)
        w = (self.mtllora_w[adapter][rows] / self.temperature[adapter]).softmax(-1)
        mixed = torch.einsum("b...r,bn->b...nr", h, w).flatten(-2)
        return self.scale[adapter] * F.linear(mixed, self.mtllora_B[adapter])

    def factors(
        self, adapter: str, scaled: bool = True, task: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ΔW of a task = left @ right: left (d_out, r), right (r, d_in).

        task: its name, by default the one that `set_task` chose; ValueError for no such task.
        """
        t = self._index(adapter, task)
        w = (self.mtllora_w[adapter][t] / self.temperature[adapter]).softmax(-1)
        B = self.mtllora_B[adapter].unflatten(1, (self.n[adapter], self.r[adapter]))
        L, A = self.mtllora_lambda[adapter][t], self.mtllora_A[adapter]
        if not scaled:
            w, B, L, A = map(at_least_float32, (w, B, L, A))
        B = (B * w.unsqueeze(-1)).sum(1)
        left = B @ L if L.ndim == 2 else B * L
        return left * self.scale[adapter] if scaled else left, A

    def parts(self, adapter: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """ΔW of every task, as factors."""
        return {task: self.factors(adapter, task=task) for task in self.tasks[adapter]}

    def _index(self, adapter: str, task: str | None) -> int:
        task = self.fixed[adapter] if task is None else task
        if task not in self.tasks[adapter]:
            said = f"task {task!r} is none of its" if task else "it has an update for each of the"
            raise ValueError(
                f"adapter {adapter!r} of MTL-LoRA: {said} tasks {self.tasks[adapter]}; choose one "
                "by set_task"
            )
        return self.tasks[adapter].index(task)

    def check_merge(self, adapter: str) -> None:
        self._index(adapter, None)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return self.fixed.get(adapter_name) is not None


class MtlLoraModel(AdapterModel):
    """A model whose target layers are wrapped in `MtlLoraLinear`; made by get_peft_model.

    Its forward pass and `generate` take `multilora_task_ids` beside what the model takes.
    """

    method = "MTL-LoRA"
    prefix = "mtllora_"
    tuner_layer_cls = MtlLoraLinear
    uses_shared_state = True  # PEFT then refuses to put the layers into a model without this class

    def _pre_injection_hook(self, *args: Any) -> None:
        self.current = Current()

    def _new_layer(
        self, target: nn.Module, adapter_name: str, config: AdapterConfig
    ) -> AdapterLinear:
        return MtlLoraLinear(target, adapter_name, config, self.current)

    def forward(self, *args: Any, multilora_task_ids: Any = None, **kwargs: Any) -> Any:
        with self.for_tasks(multilora_task_ids, repeat=False):
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, multilora_task_ids: Any = None, **kwargs: Any) -> Any:
        """The model's own; of several beams or sequences for a row, each has the row's task."""
        given = [*args[:1], *(kwargs.get(k) for k in ("inputs", "input_ids", "inputs_embeds"))]
        rows = next((len(prompts) for prompts in given if prompts is not None), None)
        if multilora_task_ids is not None and rows not in (None, len(multilora_task_ids)):
            raise ValueError(
                f"{KEY} has {len(multilora_task_ids)} entries; expected one for each of {rows} rows"
            )
        with self.for_tasks(multilora_task_ids):
            return self.model.generate(*args, **kwargs)

    @contextmanager
    def for_tasks(self, ids: Any, repeat: bool = True) -> Iterator[None]:
        """Within it, the rows of every batch belong to the tasks `ids`; None changes nothing.

        For code that cannot pass them with the batch, such as `generate` of a PeftModel without
        task_type, which calls the model's own. With `repeat` a batch may have a multiple of
        their number of rows, those of one after those of the other. Raises ValueError for what
        cannot be indices, and where `set_task` chose the task already.
        """
        if ids is None:
            yield
            return
        layers = [module for module in self.model.modules() if isinstance(module, MtlLoraLinear)]
        chosen = {layer.fixed.get(adapter) for layer in layers for adapter in self.active_adapters}
        if chosen - {None}:
            raise ValueError(
                f"{KEY} is given, but set_task chose {max(chosen - {None})!r} for all inputs: call "
                "set_task(None) first"
            )
        with self.current.set(TaskIds.of(ids, repeat)):
            # Backward runs a checkpointed layer again, when the tasks are gone. The attribute is
            # private to Transformers: hence a test.
            functions = {
                module: module._gradient_checkpointing_func
                for module in self.model.modules()
                if hasattr(module, "_gradient_checkpointing_func")
            }
            for module, function in functions.items():
                module._gradient_checkpointing_func = self.current.kept(function)
            try:
                yield
            finally:
                for module, function in functions.items():
                    module._gradient_checkpointing_func = function

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT enters this before a forward pass, also where it calls the model past `forward`."""
        with super()._enable_peft_forward_hooks(*args, **kwargs):
            if kwargs.get(KEY) is None:
                yield
                return
            hook = self.model.register_forward_pre_hook(_without_ids, with_kwargs=True)
            try:
                with self.for_tasks(kwargs[KEY], repeat=False):
                    yield
            finally:
                hook.remove()

    def set_task(self, task: str | None, adapter: str = "default") -> None:
        """Choose one task for all inputs, by name; None: the batch says it again.

        Its update is then what is merged. It is not saved with the adapter. ValueError for no such
        task, and while the adapter is merged.
        """
        layers = self.adapter_layers(adapter)
        if any(adapter in layer.merged_adapters for layer in layers):
            raise ValueError(f"adapter {adapter!r} is merged: call unmerge_adapter first")
        tasks = self.peft_config[adapter].tasks
        if task is not None and task not in tasks:
            raise ValueError(f"task {task!r} is none of the adapter's: {', '.join(tasks)}")
        for layer in layers:
            layer.fixed[adapter] = task


def _without_ids(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {key: value for key, value in kwargs.items() if key != KEY}
