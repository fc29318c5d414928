"""MTL-LoRA: one update per task, built from factors that the tasks share (arXiv 2410.09437).

Every batch carries the tasks of its rows as `multilora_task_ids`, indices into the config's
`tasks` (see `task_ids`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from multilora.methods.config import AdapterConfig, MtlLoraConfig
from multilora.methods.layers import AdapterLinear, at_least_float32
from multilora.methods.task_ids import KEY, TaskIds, checkpointed, recomputed
from multilora.methods.tuner import AdapterModel


class Current:
    """The task ids of the batch in progress: one object, shared by all layers of a model."""

    def __init__(self) -> None:
        self.ids: TaskIds | None = None

    @contextmanager
    def set(self, ids: TaskIds | None) -> Iterator[None]:
        """Set the task ids within the context and restore the previous ones afterwards."""
        before, self.ids = self.ids, ids
        try:
            yield
        finally:
            self.ids = before


class MtlLoraLinear(AdapterLinear):
    """A Linear or Conv1D with MTL-LoRA adapters.

    A (r, d_in); B (d_out, n·r), whose columns i·r … (i+1)·r are Bᵢ; Λ of all tasks, (tasks, r, r)
    or the diagonals (tasks, r); w of all tasks, (tasks, n).
    """

    prefix = "mtllora_"
    adapter_layer_names = ("mtllora_A", "mtllora_B", "mtllora_lambda", "mtllora_w")
    # fixed: the task that is used for all inputs; None if the batch gives the tasks
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
        A, B = torch.empty(r, self.in_features), torch.zeros(self.out_features, n * r)
        self.start_A(A, config)
        one = torch.ones(r) if config.diagonal else torch.eye(r)
        # With equal weights all Bᵢ would stay equal forever.
        w = torch.empty(tasks, n).uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n))
        if config.init_lora_weights is False:
            for head in B.split(r, dim=1):
                nn.init.kaiming_uniform_(head, a=math.sqrt(5))
        self.mtllora_A[adapter] = nn.Parameter(A)
        self.mtllora_B[adapter] = nn.Parameter(B)
        self.mtllora_lambda[adapter] = nn.Parameter(one.repeat(tasks, *[1] * one.ndim))
        self.mtllora_w[adapter] = nn.Parameter(w)
        self.tasks[adapter], self.temperature[adapter] = list(config.tasks), config.temperature
        self.fixed[adapter] = None

    def added(self, adapter: str, x: torch.Tensor) -> torch.Tensor:
        x = self.mtllora_dropout[adapter](x)
        if self.fixed[adapter] is not None:
            left, right = self.factors(adapter)
            return F.linear(F.linear(x, right), left)
        if self.current.ids is None:
            raise ValueError(
                f"adapter {adapter!r} of MTL-LoRA needs the task of each row; pass {KEY}, indices "
                f"into {self.tasks[adapter]}, with the batch, or choose one task by set_task"
            )
        ids = self.current.ids.for_rows(len(x), tasks=len(self.tasks[adapter])).to(x.device)
        h, L = F.linear(x, self.mtllora_A[adapter]), self.mtllora_lambda[adapter][ids]
        h = torch.einsum("b...r,bsr->b...s" if L.ndim == 3 else "b...r,br->b...r", h, L)
        w = (self.mtllora_w[adapter][ids] / self.temperature[adapter]).softmax(-1)
        mixed = torch.einsum("b...r,bn->b...nr", h, w).flatten(-2)
        return self.scale[adapter] * F.linear(mixed, self.mtllora_B[adapter])

    def factors(
        self, adapter: str, scaled: bool = True, task: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of the ΔW of a task: left (d_out, r), right (r, d_in).

        task: its name; by default the task chosen by `set_task`. Raises ValueError for an unknown
        task, or if none is chosen.
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
        """Factors of the ΔW of every task, by task name."""
        return {task: self.factors(adapter, task=task) for task in self.tasks[adapter]}

    def _index(self, adapter: str, task: str | None) -> int:
        task = self.fixed[adapter] if task is None else task
        if task not in self.tasks[adapter]:
            problem = f"unknown task {task!r}" if task else "it has one update per task"
            raise ValueError(
                f"adapter {adapter!r} of MTL-LoRA: {problem}; expected one of "
                f"{self.tasks[adapter]} (choose by set_task)"
            )
        return self.tasks[adapter].index(task)

    def check_merge(self, adapter: str) -> None:
        self._index(adapter, None)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return self.fixed.get(adapter_name) is not None


class MtlLoraModel(AdapterModel):
    """A model whose target layers are wrapped in `MtlLoraLinear`; get_peft_model builds it.

    `forward` and `generate` take `multilora_task_ids` in addition to the model's own arguments.
    """

    method = "MTL-LoRA"
    prefix = "mtllora_"
    tuner_layer_cls = MtlLoraLinear
    uses_shared_state = True  # PEFT then refuses to inject the layers without this class

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
        """Generate with the model's own method; all beams and sequences of a row have its task."""
        named = [kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds")]
        rows = next((len(prompts) for prompts in (*args[:1], *named) if prompts is not None), None)
        if multilora_task_ids is not None and rows not in (None, len(multilora_task_ids)):
            raise ValueError(
                f"{KEY} has {len(multilora_task_ids)} entries for {rows} rows; expected one per row"
            )
        with self.for_tasks(multilora_task_ids):
            return self.model.generate(*args, **kwargs)

    @contextmanager
    def for_tasks(self, ids: Any, repeat: bool = True) -> Iterator[None]:
        """Set the tasks of the rows of every batch within the context; None changes nothing.

        For code that cannot pass the ids with the batch, such as `generate` of a PeftModel without
        task_type, which calls the method of the base model.

        ids: (batch,), indices into the tasks.
        repeat: allow batches in which k consecutive rows belong to one id.

        Raises ValueError if the ids are not valid, or if `set_task` has already chosen a task.
        """
        if ids is None:
            yield
            return
        layers = [module for module in self.model.modules() if isinstance(module, MtlLoraLinear)]
        chosen = {layer.fixed.get(adapter) for layer in layers for adapter in self.active_adapters}
        if chosen - {None}:
            raise ValueError(
                f"{KEY} is given, but set_task chose {max(chosen - {None})!r} for all inputs; call "
                "set_task(None) first"
            )
        checked = TaskIds.of(ids, repeat)
        again = recomputed(checkpointed(self.model), partial(self.current.set, checked))
        with self.current.set(checked), again:
            yield

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Context of PEFT around a forward pass, even one that does not call `forward`."""
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
        """Choose one task, by name, for all inputs; with None the batch gives the tasks again.

        The update of the chosen task is the one that can be merged. The choice is not saved with
        the adapter. Raises ValueError for an unknown task, and while the adapter is merged.
        """
        layers = self.adapter_layers(adapter)
        if any(adapter in layer.merged_adapters for layer in layers):
            raise ValueError(f"adapter {adapter!r} is merged; call unmerge_adapter first")
        tasks = self.peft_config[adapter].tasks
        if task is not None and task not in tasks:
            raise ValueError(f"unknown task {task!r}; expected one of {tasks}")
        for layer in layers:
            layer.fixed[adapter] = task


def _without_ids(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: remove the task ids from the arguments of a model."""
    return args, {key: value for key, value in kwargs.items() if key != KEY}
