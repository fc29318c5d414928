"""Task experts: one LoRA a task, nothing shared (the isolation of CORAL, arXiv 2603.09298).

bank = ExpertBank(model, LoraConfig(r=8, target_modules="all-linear"), ["law", "medicine"])
bank(input_ids=ids, labels=labels, multilora_task_ids=torch.tensor([0, 1, 1]))
bank.choose("law")  # for all batches without ids
bank.merge("law")  # the layers are plain layers now; bank.unmerge() undoes it
bank.add("chemistry")  # the other experts keep their bits
bank.save_pretrained("bank")  # a PEFT LoRA a task, and experts.json
bank = ExpertBank.from_pretrained(model, "bank")
"""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

CONFIG = "experts.json"
FORMAT = "multilora-experts"
VERSION = 1
_IGNORED = -100  # the label without loss


class ExpertBank(PeftModelForCausalLM):
    """A causal model with one PEFT LoRA a task, each trained as if it were alone.

    A batch says by `multilora_task_ids` (batch,), indices into `tasks`, which expert each of its
    rows is for; the ids come before what `choose` has set. In training the rows of every task pass
    through the model on their own, with their expert active, and the gradient of the loss is that
    of the *sum* over tasks of the mean loss of their labelled tokens: each expert gets what it
    would get alone from its rows, and an expert without rows gets no gradient at all (None), so
    that no optimiser of torch moves it. The loss's value is the mean over all tokens of the batch,
    as for any model. What couples parameters beyond the gradient couples experts too: clip with
    `clip_grad_norm`, as multilora.train does, or not at all. When gradients are accumulated over
    batches or processes, `count_labels` lets the mean be over all of them.

    Otherwise rows of several tasks pass through together, by PEFT's mixed batches.

    model: with PEFT's usual target modules. config: of every expert, copied. tasks: their names,
    which become names of directories.
    """

    # The expert for batches without ids, and the one that is merged.
    chosen: str | None = None
    merged: str | None = None

    def __init__(
        self, model: nn.Module, config: LoraConfig, tasks: Sequence[str], **options: Any
    ) -> None:
        if not tasks:
            raise ValueError("no tasks; expected the name of at least one")
        self._before_merge: list[tuple[nn.Parameter, torch.Tensor]] = []
        first = _as_expert(config)
        _check(tasks[0], first, model)
        super().__init__(model, first, adapter_name=tasks[0], **options)
        for task in tasks[1:]:
            self.add(task, config)

    @property
    def tasks(self) -> list[str]:
        """The tasks' names, in the order of their indices."""
        return list(self.peft_config)

    # The experts.

    def choose(self, task: str | None) -> None:
        """Use the expert of `task` for batches that bring no ids; with None, ids are needed."""
        if task is not None:
            self._check_task(task)
            self.set_adapter(task)
        else:
            self.unmerge()
        self.chosen = task

    def add(self, task: str, config: LoraConfig | None = None) -> None:
        """Add an expert at its start, ΔW = 0, after the others; with the first one's settings."""
        self.add_adapter(task, _as_expert(config or self.peft_config[self.tasks[0]]))

    def remove(self, task: str) -> None:
        """Take an expert away; the indices of those behind it move down."""
        self._check_task(task)
        if len(self.tasks) == 1:
            raise ValueError(f"{task!r} is the only expert; expected one to be left")
        self.delete_adapter(task)

    def merge(self, task: str) -> None:
        """Choose an expert and add its ΔW to the weights: its layers then cost what the base's do.

        The weights as they were are kept, and take the memory of the adapted layers once more.
        Raises ValueError, and leaves everything as it was, where a merged weight is not finite.
        """
        self.choose(task)
        layers = [layer for layer in self.modules() if isinstance(layer, LoraLayer)]
        for layer in layers:
            for p in layer.get_base_layer().parameters(recurse=False):
                self._before_merge.append((p, p.data))
        self.merged = task
        try:
            for layer in layers:
                # A safe merge puts a new tensor in the place of the old one, which is kept.
                layer.merge(safe_merge=True, adapter_names=[task])
        except BaseException:
            self.unmerge()
            raise

    def unmerge(self) -> None:
        """Put the weights back as they were before `merge`, to the last bit."""
        for p, before in self._before_merge:
            p.data = before
        self._before_merge = []
        for layer in self.modules():
            if self.merged is not None and isinstance(layer, LoraLayer):
                layer.merged_adapters.clear()
        self.merged = None

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The base with the chosen expert in its weights, for good; arguments as those of PEFT."""
        if self.chosen is None:
            raise ValueError(f"no expert is chosen; choose one of {self.tasks} to be merged")
        return self.base_model.merge_and_unload(*args, **{"adapter_names": [self.chosen]} | kwargs)

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        """All that is trained for a task, and for no other."""
        self._check_task(task)
        for layer in _switched(self):
            for name in layer.adapter_layer_names:
                of_task = getattr(layer, name)
                if task in of_task:
                    entry = of_task[task]
                    yield from [entry] if isinstance(entry, nn.Parameter) else entry.parameters()

    def clip_grad_norm(self, max_norm: float) -> torch.Tensor:
        """Clip the gradients of each expert by their own norm; the norm of all, before."""
        norms = [
            nn.utils.clip_grad_norm_(self.parameters_of(task), max_norm) for task in self.tasks
        ]
        return torch.stack(norms).norm()

    # PEFT's own ways to the same: they keep what is trainable, which PEFT's would not.

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Activate an adapter for what PEFT does with the active one; `choose` is for batches."""
        self.unmerge()
        with self._same_trainable():
            super().set_adapter(adapter_name, inference_mode)

    def add_adapter(self, adapter_name: str, peft_config: LoraConfig, **options: Any) -> None:
        """Add an expert; ValueError for a name or settings that cannot be one's."""
        if adapter_name in self.tasks:
            raise ValueError(f"there is an expert {adapter_name!r} already")
        _check(adapter_name, peft_config, self)
        self.unmerge()
        with self._same_trainable():
            super().add_adapter(adapter_name, peft_config, **options)
        for p in self.parameters_of(adapter_name):
            p.requires_grad_(not peft_config.inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an expert away."""
        if adapter_name == self.active_adapter:
            self.set_adapter(next(task for task in self.tasks if task != adapter_name))
        self.unmerge()
        with self._same_trainable():
            super().delete_adapter(adapter_name)
        if self.chosen == adapter_name:
            self.chosen = None

    @contextmanager
    def _same_trainable(self) -> Iterator[None]:
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
        """The model's output, each row by its task's expert.

        multilora_task_ids (batch,): indices into `tasks`; needed unless an expert is chosen.
        multilora_label_counts (tasks,): see `count_labels`. In training with ids, only `loss` and
        `logits` are given.
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
        """Continue each row by its task's expert; arguments as those of transformers."""
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
        """Loss and logits, the rows of each task on their own."""
        whole = inputs.pop("num_items_in_batch", None)  # Trainer's: labels of an accumulated batch
        layers, checkpointed, tasks = _switched(self), _checkpointed(self), self.tasks
        order: list[int] = []
        logits: list[torch.Tensor] = []
        losses: list[tuple[int, int, torch.Tensor]] = []  # task, number of labels, their mean
        for task in dict.fromkeys(experts):
            rows = [i for i, of_row in enumerate(experts) if of_row == task]
            part = {name: _rows(given, rows, len(experts)) for name, given in inputs.items()}
            with _active(layers, task), _recomputed(checkpointed, layers, task):
                output = super().forward(**part)
            order += rows
            logits.append(output.logits)
            n = 0 if part["labels"] is None else int((part["labels"][:, 1:] != _IGNORED).sum())
            if n:
                losses.append((tasks.index(task), n, output.loss))
        together = torch.cat(logits)[torch.tensor(order).argsort()]
        if inputs["labels"] is None:
            return CausalLMOutput(logits=together)
        count = sum(n for _, n, _ in losses)
        if not count:
            raise ValueError("no token of the batch has a label; expected some with loss")
        whole = count if whole is None else whole
        if label_counts is None:
            gradient = sum(loss for _, _, loss in losses) * (count / whole)
        else:
            gradient = sum(loss * (n / label_counts[i]) for i, n, loss in losses)
        value = sum(loss.detach() * n for _, n, loss in losses) / whole
        # The value of one, the gradient of the other.
        return CausalLMOutput(loss=gradient + (value - gradient).detach(), logits=together)

    def _experts(self, ids: torch.Tensor | None, rows: torch.Tensor | None) -> list[str]:
        """The expert of each row; [] where the layers as they are do it: merged or disabled."""
        if rows is None:
            raise ValueError("a batch without input_ids and inputs_embeds")
        tasks = self.tasks
        if not self.has_active_enabled_adapter:
            return []
        if ids is None:
            if self.chosen is None:
                raise ValueError(
                    "the batch has no multilora_task_ids, and no expert is chosen; expected an"
                    f" index into {tasks} for each row, or choose(task) before"
                )
            experts = [self.chosen] * len(rows)
        else:
            ids = torch.as_tensor(ids)
            if ids.is_floating_point() or ids.dtype == torch.bool or ids.shape != rows.shape[:1]:
                raise ValueError(
                    f"multilora_task_ids is {tuple(ids.shape)}, {ids.dtype}; expected a whole"
                    f" number for each of {len(rows)} rows"
                )
            wrong = [i for i in ids.tolist() if not 0 <= i < len(tasks)]
            if wrong:
                raise ValueError(
                    f"multilora_task_ids holds {wrong[0]}; expected 0 to {len(tasks) - 1}, indices"
                    f" into {tasks}"
                )
            experts = [tasks[i] for i in ids.tolist()]
        if self.merged is None:
            return experts
        if self.training:
            raise ValueError(f"the expert {self.merged!r} is merged; unmerge() before training")
        other = next((task for task in experts if task != self.merged), None)
        if other is not None:
            raise ValueError(
                f"the expert {self.merged!r} is merged and the batch has rows of {other!r};"
                " unmerge() first"
            )
        return []

    def _check_task(self, task: str) -> None:
        if task not in self.tasks:
            raise ValueError(f"no expert {task!r}; expected one of {self.tasks}")

    # Files.

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write a PEFT LoRA a task into directories of their names, and at last experts.json."""
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
        """The bank that `save_pretrained` wrote, on the same base; ValueError where it is broken.

        Without `is_trainable` the experts are frozen and the model is in evaluation.
        """
        tasks = saved_tasks(Path(path))
        configs = {task: _saved_config(Path(path) / task, is_trainable) for task in tasks}
        bank = cls(model, configs[tasks[0]], tasks[:1], **options)
        for task in tasks[1:]:
            bank.add_adapter(task, configs[task])
        for task in tasks:
            found = bank.load_adapter(str(Path(path) / task), task, is_trainable=is_trainable)
            # PEFT counts what other experts have, where one's name is a part of theirs.
            missing = [key for key in found.missing_keys if task in key.split(".")]
            if missing or found.unexpected_keys:
                key = (*missing, *found.unexpected_keys)[0]
                what = "is missing" if missing else "has no place in the model"
                raise ValueError(f"{Path(path) / task}: {key} {what}")
            for p in bank.parameters_of(task):
                p.requires_grad_(is_trainable)
        return bank


def count_labels(batches: Iterable[Mapping[str, torch.Tensor]], tasks: int) -> torch.Tensor:
    """Labelled tokens of each task in all of `batches`, (tasks,).

    Put into each of the batches as `multilora_label_counts`, it makes the gradients add up to those
    of one batch with all the rows: an expert's loss is then the mean over its tokens in all of
    them. Over several processes it must be the sum over these, divided by their number where
    gradients are averaged.
    """
    counts = torch.zeros(tasks, dtype=torch.long)
    for batch in batches:
        of_row = (batch["labels"][:, 1:] != _IGNORED).sum(1).cpu()
        counts.index_add_(0, batch["multilora_task_ids"].cpu(), of_row)
    return counts


def saved_tasks(path: Path) -> list[str]:
    """The names in a saved bank's experts.json; ValueError where it is broken."""
    try:
        listed = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        tasks = [str(task) for task in listed["tasks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / CONFIG}: not readable as a bank's: {error}") from None
    if listed.get("format") != FORMAT or listed.get("version") != VERSION:
        raise ValueError(
            f"{path / CONFIG}: format {listed.get('format')!r}, version {listed.get('version')!r};"
            f" expected {FORMAT!r}, {VERSION}"
        )
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"{path / CONFIG}: tasks are {tasks}; expected some, each once")
    return tasks


def _saved_config(path: Path, is_trainable: bool) -> LoraConfig:
    if not (path / "adapter_config.json").is_file():
        raise ValueError(f"{path}: no adapter_config.json; {CONFIG} beside it names this expert")
    config = PeftConfig.from_pretrained(str(path))
    config.inference_mode = not is_trainable
    return config


def _as_expert(config: LoraConfig) -> LoraConfig:
    """A copy, since PEFT writes into an adapter's config."""
    config = copy.deepcopy(config)
    config.task_type = config.task_type or "CAUSAL_LM"
    return config


# Names that PEFT gives to parts of its modules, and "default", which it saves where the bank lies.
_TAKEN = {"default", "__base__", "base_model", "model", "base_layer", "modules_to_save"}


def _check(task: str, config: LoraConfig, model: nn.Module) -> None:
    """Raise ValueError where PEFT's LoRA could not keep such an expert apart from the others."""
    # A task's name is a key of PEFT's dictionaries of modules, and a directory.
    if not task or task.startswith(".") or set(task) & set("./\\\0"):
        raise ValueError(f"an expert cannot be called {task!r}; expected the name of a directory")
    # PEFT tells the adapters' tensors apart by a component of their names.
    parts = {part for name, _ in model.named_parameters() for part in name.split(".")}
    like_lora = task in "lora_" or task.startswith("lora_")
    if like_lora or task in _TAKEN | parts or hasattr(nn.ModuleDict(), task):
        raise ValueError(
            f"an expert cannot be called {task!r}, as a part of the model is; expected another name"
        )
    if type(config) is not LoraConfig:
        raise ValueError(f"the config is a {type(config).__name__}; expected peft.LoraConfig")
    if config.init_lora_weights not in (True, "gaussian"):
        raise ValueError(
            f"init_lora_weights is {config.init_lora_weights!r}, which does not start at ΔW = 0 on"
            " the base as it is; expected True or 'gaussian'"
        )
    for field in ("use_dora", "trainable_token_indices", "target_parameters", "layer_replication"):
        if getattr(config, field):
            raise ValueError(f"{field} is set; a mixed batch cannot tell such experts apart")
    if config.bias != "none":
        raise ValueError(f"bias is {config.bias!r}: experts would share it; expected 'none'")


def _switched(model: nn.Module) -> list[Any]:
    """The modules that hold a part of every expert and use that of the active one."""
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]


@contextmanager
def _active(layers: Sequence[Any], task: str) -> Iterator[None]:
    """Every layer uses one expert; unlike PEFT's set_adapter, the others stay trainable."""
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = [task]
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


_FUNCTION = "_gradient_checkpointing_func"  # where transformers keeps it, in each layer


def _checkpointed(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    """The layers under gradient checkpointing, each with the function that does it."""
    return [(m, vars(m)[_FUNCTION]) for m in model.modules() if _FUNCTION in vars(m)]


@contextmanager
def _recomputed(
    checkpointed: Sequence[tuple[nn.Module, Any]], layers: Sequence[Any], task: str
) -> Iterator[None]:
    """What gradient checkpointing runs again in backward, it runs with the same expert."""

    def checkpoint(original: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with _active(layers, task):
                return function(*args, **kwargs)

        return original(run, *args, **kwargs)

    for module, original in checkpointed:
        setattr(module, _FUNCTION, partial(checkpoint, original))
    try:
        yield
    finally:
        for module, original in checkpointed:
            setattr(module, _FUNCTION, original)


@contextmanager
def _mixed(model: nn.Module, experts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """How PEFT is told the expert of each row: by an argument, or the active one if all agree."""
    if len(set(experts)) > 1:
        yield {"adapter_names": list(experts)}
        return
    with _active(_switched(model), experts[0]):
        yield {}


def _rows(value: Any, rows: list[int], batch: int) -> Any:
    """The rows of a tensor (batch, …); anything else as it is."""
    per_row = isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == batch
    return value[rows] if per_row else value
