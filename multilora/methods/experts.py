"""Task experts: one LoRA per task, nothing shared (the isolation of CORAL, arXiv 2603.09298).

bank = ExpertBank(model, LoraConfig(r=8, target_modules="all-linear"), ["law", "medicine"])
bank(input_ids=ids, labels=labels, multilora_task_ids=torch.tensor([0, 1, 1]))
bank.choose("law")  # used for batches without ids
bank.merge("law")  # the layers are now plain layers; bank.unmerge() undoes it
bank.add("chemistry")  # the weights of the other experts do not change
bank.save_pretrained("bank")  # one PEFT LoRA per task, and experts.json
bank = ExpertBank.from_pretrained(model, "bank")
"""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModelForCausalLM
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from multilora import record
from multilora.methods import quantised
from multilora.methods.task_ids import KEY, TaskIds, checkpointed, recomputed

# The file that makes a directory of LoRAs a bank; analysis.formats.experts reads the same format.
CONFIG = "experts.json"
FORMAT = "multilora-experts"
VERSION = 1
_IGNORED = -100  # the label without loss


class ExpertBank(PeftModelForCausalLM):
    """A causal model with one PEFT LoRA per task, each trained as if it were alone.

    A batch carries `multilora_task_ids` (batch,), indices into `tasks`, which take precedence over
    `choose`. In training the rows of every task pass through the model separately, with their
    expert active. The gradient is that of the *sum* over tasks of the mean loss of their labelled
    tokens: each expert gets the gradient that it would get from its rows alone, and an expert
    without rows gets none (None), so that no optimiser of torch moves it. The value of the loss is
    the mean over all labelled tokens of the batch, as for any model. Anything that couples
    parameters beyond the gradient also couples experts: clip with `clip_grad_norm`, as
    multilora.train does, or not at all. When gradients are accumulated over batches or processes,
    `count_labels` makes the means those over all of them.

    Outside training, rows of several tasks pass through together, by PEFT's mixed batches.

    model: the base, with PEFT's usual target modules.
    config: the LoRA settings of every expert; it is copied.
    tasks: their names, which become names of directories.
    """

    # The expert for batches without ids, and the one that is merged; None if there is none.
    chosen: str | None = None
    merged: str | None = None

    def __init__(
        self, model: nn.Module, config: LoraConfig, tasks: Sequence[str], **options: Any
    ) -> None:
        if not tasks:
            raise ValueError("tasks is empty; expected the name of at least one")
        self._before_merge: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._quantised_before: list[tuple[nn.Module, quantised.Kept]] = []
        first = _as_expert(config)
        _check(tasks[0], first, model)
        with _any_name():
            super().__init__(model, first, adapter_name=tasks[0], **options)
        for task in tasks[1:]:
            self.add(task, config)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of their indices."""
        return list(self.peft_config)

    # The experts.

    def choose(self, task: str | None) -> None:
        """Use the expert of `task` for batches without ids; with None, batches need ids."""
        if task is not None:
            self._check_task(task)
            self.set_adapter(task)
        else:
            self.unmerge()
        self.chosen = task

    def add(self, task: str, config: LoraConfig | None = None) -> None:
        """Append an untrained expert, ΔW = 0; by default with the settings of the first."""
        self.add_adapter(task, _as_expert(config or self.peft_config[self.tasks[0]]))

    def remove(self, task: str) -> None:
        """Remove an expert; the indices of the experts after it decrease by one."""
        self._check_task(task)
        if len(self.tasks) == 1:
            raise ValueError(f"{task!r} is the only expert; expected at least one to remain")
        self.delete_adapter(task)

    def merge(self, task: str) -> None:
        """Choose an expert and add its ΔW to the weights, so that its layers cost no more.

        The previous weights are kept, which takes the memory of the adapted layers a second time.
        Raises ValueError, and changes nothing, if a merged weight is not finite.
        """
        self.choose(task)
        layers = [layer for layer in self.modules() if isinstance(layer, LoraLayer)]
        for layer in layers:
            base = layer.get_base_layer()
            if quantised.access(base) is not None:  # a merge replaces the parameter itself
                self._quantised_before.append((base, quantised.Kept.of(base)))
                continue
            for p in base.parameters(recurse=False):
                self._before_merge.append((p, p.data))
        self.merged = task
        try:
            for layer in layers:
                # A safe merge assigns a new tensor, so that the kept one is not modified.
                layer.merge(safe_merge=True, adapter_names=[task])
        except BaseException:
            self.unmerge()
            raise

    def unmerge(self) -> None:
        """Restore the weights from before `merge`, bit for bit."""
        for p, before in self._before_merge:
            p.data = before
        for base, kept in self._quantised_before:
            kept.put_back(base)
        self._before_merge, self._quantised_before = [], []
        for layer in self.modules():
            if self.merged is not None and isinstance(layer, LoraLayer):
                layer.merged_adapters.clear()
        self.merged = None

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Return the base with the chosen expert merged permanently; arguments as in PEFT."""
        if self.chosen is None:
            raise ValueError(f"no expert is chosen; choose one of {self.tasks} to merge")
        kwargs.setdefault("adapter_names", [self.chosen])
        return self.base_model.merge_and_unload(*args, **kwargs)

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        """Yield all parameters that are trained for a task; no other task uses them."""
        self._check_task(task)
        for layer in _switched(self):
            for name in layer.adapter_layer_names:
                of_task = getattr(layer, name)
                if task in of_task:
                    entry = of_task[task]
                    yield from [entry] if isinstance(entry, nn.Parameter) else entry.parameters()

    def clip_grad_norm(self, max_norm: float) -> torch.Tensor:
        """Clip the gradients of each expert by their own norm; return the total norm before."""
        norms = [
            nn.utils.clip_grad_norm_(self.parameters_of(task), max_norm) for task in self.tasks
        ]
        return torch.stack(norms).norm()

    # PEFT's own methods, overridden so that every expert stays trainable.

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Activate an adapter for PEFT's own methods; use `choose` to set it for batches."""
        self.unmerge()
        with self._same_trainable():
            super().set_adapter(adapter_name, inference_mode)

    def add_adapter(self, adapter_name: str, peft_config: LoraConfig, **options: Any) -> None:
        """Add an expert; raise ValueError for a name or settings that an expert cannot have."""
        if adapter_name in self.tasks:
            raise ValueError(f"expert {adapter_name!r} exists already; expected a new name")
        _check(adapter_name, peft_config, self)
        self.unmerge()
        with self._same_trainable(), _any_name():
            super().add_adapter(adapter_name, peft_config, **options)
        for p in self.parameters_of(adapter_name):
            p.requires_grad_(not peft_config.inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an expert; see `remove`."""
        if adapter_name == self.active_adapter:
            self.set_adapter(next(task for task in self.tasks if task != adapter_name))
        self.unmerge()
        with self._same_trainable():
            super().delete_adapter(adapter_name)
        if self.chosen == adapter_name:
            self.chosen = None

    @contextmanager
    def _same_trainable(self) -> Iterator[None]:
        """Restore afterwards which parameters are trained."""
        before = [(p, p.requires_grad) for p in self.parameters()]
        yield
        for p, requires_grad in before:
            p.requires_grad_(requires_grad)

    # Batches.

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        multilora_task_ids: torch.Tensor | None = None,
        multilora_label_counts: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the model's output, with each row computed by the expert of its task.

        input_ids, attention_mask, inputs_embeds, labels: as in transformers.
        multilora_task_ids (batch,): indices into `tasks`; required unless an expert is chosen.
        multilora_label_counts (tasks,): see `count_labels`.

        In training the output has only `loss` and `logits`.
        """
        rows = input_ids if input_ids is not None else inputs_embeds
        experts = self._experts(multilora_task_ids, rows)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        inputs |= {"inputs_embeds": inputs_embeds} | kwargs
        if not experts:
            return super().forward(**inputs)
        if self.training:
            return self._train(experts, multilora_label_counts, inputs)
        with _mixed(self, experts) as names:
            return super().forward(**inputs, **names)

    def generate(
        self, *args: Any, multilora_task_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Continue each row by the expert of its task; other arguments as in transformers."""
        rows = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        rows = kwargs.get("inputs_embeds") if rows is None else rows
        experts = self._experts(multilora_task_ids, rows)
        if not experts:
            return super().generate(*args, **kwargs)
        with _mixed(self, experts) as names:
            return super().generate(*args, **kwargs, **names)

    def _train(
        self, experts: list[str], label_counts: torch.Tensor | None, inputs: dict[str, Any]
    ) -> CausalLMOutput:
        """Loss and logits in training, with the rows of each task passed through separately.

        experts (batch,): the expert of each row. label_counts: see `count_labels`.
        """
        whole = inputs.pop("num_items_in_batch", None)  # Trainer's: labels of all batches of a step
        layers, again, tasks = _switched(self), checkpointed(self), self.tasks
        order: list[int] = []
        logits: list[torch.Tensor] = []
        losses: list[TaskLoss] = []
        for task in dict.fromkeys(experts):
            rows = [i for i, of_row in enumerate(experts) if of_row == task]
            part = {name: _rows(given, rows, len(experts)) for name, given in inputs.items()}
            active = partial(_active, layers, task)
            with active(), recomputed(again, active):
                output = super().forward(**part)
            order += rows
            logits.append(output.logits)
            n = 0 if part["labels"] is None else int((part["labels"][:, 1:] != _IGNORED).sum())
            if n:
                losses.append(TaskLoss(tasks.index(task), n, output.loss))
        together = torch.cat(logits)[torch.tensor(order).argsort()]
        if inputs["labels"] is None:
            return CausalLMOutput(logits=together)
        return CausalLMOutput(loss=_total(losses, whole, label_counts), logits=together)

    def _experts(self, ids: torch.Tensor | None, rows: torch.Tensor | None) -> list[str]:
        """Return the expert of each row; [] if the layers need none: merged or disabled."""
        if rows is None:
            raise ValueError("the batch has neither input_ids nor inputs_embeds; expected one")
        if not self.has_active_enabled_adapter:
            return []
        tasks = self.tasks
        if ids is not None:
            indices = TaskIds.of(ids).for_rows(len(rows), tasks=len(tasks))
            experts = [tasks[i] for i in indices.tolist()]
        elif self.chosen is not None:
            experts = [self.chosen] * len(rows)
        else:
            raise ValueError(
                f"the batch has no {KEY}, and no expert is chosen; expected an index into {tasks} "
                "for each row, or a call of choose(task) before"
            )
        if self.merged is None:
            return experts
        self._check_merged(experts)
        return []

    def _check_merged(self, experts: list[str]) -> None:
        """Raise ValueError if the merged expert cannot compute the rows of a batch."""
        if self.training:
            raise ValueError(f"expert {self.merged!r} is merged; call unmerge() before training")
        other = next((task for task in experts if task != self.merged), None)
        if other is not None:
            raise ValueError(
                f"expert {self.merged!r} is merged and the batch has rows of {other!r}; call "
                "unmerge() first"
            )

    def _check_task(self, task: str) -> None:
        """Raise ValueError if no expert has this name."""
        if task not in self.tasks:
            raise ValueError(f"no expert {task!r}; expected one of {self.tasks}")

    # Files.

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write one PEFT LoRA per task into directories of their names, then experts.json."""
        out = Path(save_directory)
        if options.get("is_main_process", True):
            (out / CONFIG).unlink(missing_ok=True)
        super().save_pretrained(str(out), **options)
        tasks = options.get("selected_adapters") or self.tasks
        if options.get("is_main_process", True):
            listed = {"format": FORMAT, "version": VERSION, "tasks": list(tasks)}
            record.write_json(out / CONFIG, listed)

    @classmethod
    def from_pretrained(
        cls, model: nn.Module, path: str | Path, is_trainable: bool = False, **options: Any
    ) -> "ExpertBank":
        """Load what `save_pretrained` wrote, on the same base; raise ValueError if it is broken.

        Without `is_trainable` the experts are frozen and the model is in evaluation mode.
        """
        tasks = saved_tasks(Path(path))
        configs = {task: _saved_config(Path(path) / task, is_trainable) for task in tasks}
        bank = cls(model, configs[tasks[0]], tasks[:1], **options)
        for task in tasks[1:]:
            bank.add_adapter(task, configs[task])
        for task in tasks:
            keys = bank.load_adapter(str(Path(path) / task), task, is_trainable=is_trainable)
            # PEFT also lists keys of other experts if one name is part of another.
            missing = [key for key in keys.missing_keys if task in key.split(".")]
            if missing or keys.unexpected_keys:
                key = (*missing, *keys.unexpected_keys)[0]
                problem = "is missing" if missing else "does not belong to the model"
                raise ValueError(f"{Path(path) / task}: {key} {problem}")
            for p in bank.parameters_of(task):
                p.requires_grad_(is_trainable)
        return bank


@dataclass(frozen=True)
class TaskLoss:
    """The loss of one task in a batch: index of the task, number of labels, their mean loss."""

    task: int
    labels: int
    mean: torch.Tensor


def _total(
    losses: Sequence[TaskLoss], whole: Any, label_counts: torch.Tensor | None
) -> torch.Tensor:
    """Loss of a batch: its value is the mean over labels, its gradient that of a sum over tasks.

    losses: of the tasks with labels.
    whole: number of labels in all batches of the step; None if this batch is the only one.
    label_counts (tasks,): number of labels of each task in all batches of the step. If it is None,
        the gradient is scaled by the share of the step's labels that this batch holds.

    Raises ValueError if no task has labels.
    """
    count = sum(loss.labels for loss in losses)
    if not count:
        raise ValueError("no token of the batch has a label; expected some with loss")
    whole = count if whole is None else whole
    if label_counts is None:
        gradient = sum(loss.mean for loss in losses) * (count / whole)
    else:
        gradient = sum(loss.mean * (loss.labels / label_counts[loss.task]) for loss in losses)
    value = sum(loss.mean.detach() * loss.labels for loss in losses) / whole
    return gradient + (value - gradient).detach()


def count_labels(batches: Iterable[Mapping[str, torch.Tensor]], tasks: int) -> torch.Tensor:
    """Return the number of labelled tokens of each task in all of `batches`, (tasks,).

    Passed with each of the batches as `multilora_label_counts`, it makes their gradients add up to
    those of one batch with all the rows: the loss of an expert is then the mean over its tokens in
    all of them. With several processes, pass the sum over processes, divided by their number if
    gradients are averaged.
    """
    counts = torch.zeros(tasks, dtype=torch.long)
    for batch in batches:
        of_row = (batch["labels"][:, 1:] != _IGNORED).sum(1).cpu()
        counts.index_add_(0, batch[KEY].cpu(), of_row)
    return counts


def saved_tasks(path: Path) -> list[str]:
    """Return the task names in a saved bank's experts.json; raise ValueError if it is broken."""
    try:
        listed = record.read_json(path / CONFIG)
        tasks = [str(task) for task in listed["tasks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / CONFIG}: not the file of a bank of experts: {error}") from None
    if listed.get("format") != FORMAT or listed.get("version") != VERSION:
        raise ValueError(
            f"{path / CONFIG}: format {listed.get('format')!r}, version {listed.get('version')!r};"
            f" expected {FORMAT!r}, {VERSION}"
        )
    if other := [task for task in tasks if not task or task[0] == "." or set(task) & set("/\\\0")]:
        raise ValueError(f"{path / CONFIG}: task {other[0]!r} cannot name a directory beside it")
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"{path / CONFIG}: tasks are {tasks}; expected at least one, each once")
    return tasks


def _saved_config(path: Path, is_trainable: bool) -> LoraConfig:
    """Read the LoRA settings of a saved expert."""
    if not (path / "adapter_config.json").is_file():
        raise ValueError(f"{path}: no adapter_config.json; {CONFIG} lists this expert")
    config = PeftConfig.from_pretrained(str(path))
    config.inference_mode = not is_trainable
    return config


def _as_expert(config: LoraConfig) -> LoraConfig:
    """Copy the settings of an expert, since PEFT modifies an adapter's config."""
    config = copy.deepcopy(config)
    config.task_type = config.task_type or "CAUSAL_LM"
    return config


# Names that PEFT uses for parts of its layers and wrappers, and "default", an adapter that PEFT
# saves without a directory of its own.
_TAKEN = {
    "default",
    "__base__",
    "base_model",
    "model",
    "base_layer",
    "modules_to_save",
    *LoraLayer.adapter_layer_names,
}


def _check(task: str, config: LoraConfig, model: nn.Module) -> None:
    """Raise ValueError if PEFT's LoRA could not keep such an expert apart from the others."""
    _check_name(task, model)
    if type(config) is not LoraConfig:
        raise ValueError(f"the config is a {type(config).__name__}; expected peft.LoraConfig")
    if config.init_lora_weights not in (True, "gaussian"):
        raise ValueError(
            f"init_lora_weights is {config.init_lora_weights!r}, with which ΔW does not start at 0"
            " on unchanged base weights; expected True or 'gaussian'"
        )
    for field in ("use_dora", "trainable_token_indices", "target_parameters", "layer_replication"):
        if getattr(config, field):
            raise ValueError(f"{field} is set, which mixed batches do not support; expected unset")
    if config.bias != "none":
        raise ValueError(f"bias is {config.bias!r}, which all experts would share; expected 'none'")


def _check_name(task: str, model: nn.Module) -> None:
    """Raise ValueError for a task name that cannot name an adapter of PEFT and a directory.

    PEFT uses the name as a key of its dictionaries of modules and as one component of the names of
    an adapter's tensors, by which it tells adapters apart.
    """
    if not task or task.startswith(".") or set(task) & set("./\\\0"):
        raise ValueError(
            f"an expert cannot be named {task!r}; expected a directory name without dots or slashes"
        )
    parts = {part for name, _ in model.named_parameters() for part in name.split(".")}
    if task in _TAKEN | parts or hasattr(nn.ModuleDict(), task):
        raise ValueError(
            f"an expert cannot be named {task!r}, which is a part of the model; expected another "
            "name"
        )


@contextmanager
def _any_name() -> Iterator[None]:
    """Silence PEFT's warning about names that are part of "lora_"; they save and load well."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Adapter name .* should not be contained in the prefix")
        yield


def _switched(model: nn.Module) -> list[Any]:
    """Return the modules that hold parameters of every expert and use those of the active one."""
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]


@contextmanager
def _active(layers: Sequence[Any], task: str) -> Iterator[None]:
    """Activate one expert in every layer; unlike PEFT's set_adapter, the others stay trainable."""
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = [task]
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


@contextmanager
def _mixed(model: nn.Module, experts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the arguments that give PEFT the expert of each row; none if all rows have the same."""
    if len(set(experts)) > 1:
        yield {"adapter_names": list(experts)}
        return
    with _active(_switched(model), experts[0]):
        yield {}


def _rows(value: Any, rows: list[int], batch: int) -> Any:
    """Select rows of a tensor (batch, …); return anything else unchanged."""
    per_row = isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == batch
    return value[rows] if per_row else value
