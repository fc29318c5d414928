"""The arguments of a training run, and the Trainer that carries it out."""

import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import transformers

from analysis import UserError
from multilora.methods import experts
from multilora.methods.experts import ExpertBank
from multilora.tasks import answers
from multilora.training import guard, resume

# Arguments that say where a run goes and what it prints, not what comes out of it.
ARGUMENTS_WITHOUT_EFFECT = (
    "output_dir",
    "disable_tqdm",
    "logging_dir",
    "resume_from_checkpoint",
    "local_rank",
    "save_strategy",
    "save_steps",
    "save_total_limit",
)


@dataclass
class TrainArguments(transformers.TrainingArguments):
    """Transformers' TrainingArguments with the defaults of the built-in experiment."""

    output_dir: str = field(
        default="",
        metadata={
            "help": "runs/METHOD-sSEED by default, with the settings and arguments that differ "
            "from their defaults in between"
        },
    )
    per_device_train_batch_size: int = 32
    max_steps: int = field(default=1500, metadata={"help": "number of optimiser steps"})
    learning_rate: float = field(default=0.0, metadata={"help": "by default the method's own"})
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0.05
    optim: str = "adamw_torch"
    logging_steps: float = 50
    report_to: str = "none"
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = False
    resume_from_checkpoint: str = field(
        default="auto",
        metadata={
            "help": "auto: continue from the newest complete checkpoint of this run; no: start "
            "over; or the directory of a checkpoint"
        },
    )
    # The order of the rows is drawn before training (rows.py).
    train_sampling_strategy: str = "sequential"


class AdapterTrainer(transformers.Trainer):
    """Trainer that gives some parameters a multiple of the learning rate.

    lr_ratios: {part of a parameter's name: multiple}. The experts of an `ExpertBank` are trained
    independently of one another. by_example: True for a loss that is the mean over the examples of
    a step, each of them the mean over its answer tokens.
    """

    def __init__(
        self, *args: Any, lr_ratios: dict[str, float], by_example: bool = False, **kwargs: Any
    ) -> None:
        self.lr_ratios = lr_ratios
        self.by_example = by_example
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Split the optimiser's parameter groups so that each has one learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        names = {p: name for name, p in (model or self.model).named_parameters()}

        def ratio(p: torch.nn.Parameter) -> float:
            return next((v for key, v in self.lr_ratios.items() if key in names[p]), 1.0)

        groups = []
        for group in optimizer.param_groups:
            for value in sorted({ratio(p) for p in group["params"]}):
                chosen = [p for p in group["params"] if ratio(p) == value]
                groups.append({**group, "params": chosen, "lr": group["lr"] * value})
        optimizer.param_groups[:] = groups
        return optimizer

    def get_batch_samples(self, *args: Any) -> Any:
        """The batches of one step; for a bank, with the total number of labels of each expert."""
        batches, in_all = super().get_batch_samples(*args)
        if self.by_example:
            in_all = torch.tensor(answers.count(batches), device=self.args.device)
            if self.args.average_tokens_across_devices:
                in_all = self.accelerator.gather(in_all).sum()
        if isinstance(self.model, ExpertBank) and in_all is not None:
            counts = experts.count_labels(batches, len(self.model.tasks)).to(self.args.device)
            if self.args.average_tokens_across_devices:
                counts = self.accelerator.gather(counts).view(-1, len(counts)).sum(0)
            batches = [{**batch, "multilora_label_counts": counts} for batch in batches]
        return batches, in_all

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """The loss of a batch; with `by_example` num_items_in_batch counts the step's examples."""
        if not self.by_example or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        with answers.only(head, answers.predicted(labels)):
            outputs = model(**{name: x for name, x in inputs.items() if name != "labels"})
        loss = answers.sum_of_means(outputs.logits, labels) / num_items_in_batch
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the gradients are averaged over them
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: Any) -> Any:
        if not isinstance(self.model, ExpertBank):
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        return self.model.clip_grad_norm(self.args.max_grad_norm)

    def _save_rng_state(self, output_dir: str) -> None:
        """Hash the files of the checkpoint when all processes have written theirs."""
        super()._save_rng_state(output_dir)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, resume.RunMark) and self.args.should_save:
                callback.hash_files(Path(output_dir))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of a batch; raises DivergedError if it is NaN or infinite."""
        loss = super().training_step(*args, **kwargs)
        guard.check_loss(loss, self.state.global_step + 1)
        return loss


def check(arguments: TrainArguments) -> None:
    """Raise UserError for numbers with which nothing would be trained."""
    if arguments.max_steps == 0:
        raise UserError("max_steps is 0; expected at least 1, or -1 with num_train_epochs")
    if arguments.max_steps < 0 and not 0 < arguments.num_train_epochs < math.inf:
        raise UserError(
            f"num_train_epochs is {arguments.num_train_epochs}; expected a number above 0 when "
            "max_steps is -1"
        )
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(arguments, name) < 1:
            raise UserError(f"{name} is {getattr(arguments, name)}; expected at least 1")


def batch_of(arguments: TrainArguments) -> int:
    """Number of rows in one optimiser step, over all processes."""
    per_process = arguments.train_batch_size * arguments.gradient_accumulation_steps
    return int(per_process * arguments.world_size)


def changed(arguments: TrainArguments) -> dict[str, Any]:
    """Arguments that differ from transformers' defaults or from ours, except secrets."""
    given = arguments.to_dict()
    usual = [{f.name: f.default for f in fields(kind)} for kind in TrainArguments.__mro__[:2]]
    return {
        k: v
        for k, v in given.items()
        if not k.endswith("_token") and any(v != of_kind[k] for of_kind in usual)
    }


def differing(arguments: TrainArguments) -> dict[str, Any]:
    """Arguments that can change a result and differ from our defaults, except the seed.

    Empty values count as defaults, and so do dicts, which transformers fills in by itself.
    """
    usual = {f.name: None if f.default is MISSING else f.default for f in fields(TrainArguments)}
    return {
        name: value
        for name, value in changed(arguments).items()
        if name not in (*ARGUMENTS_WITHOUT_EFFECT, "seed", "report_to")
        and value != usual[name]
        and (value or usual[name])
        and not isinstance(value, dict)
    }
