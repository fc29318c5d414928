"""Fine-tunes a model on the tasks and writes the checkpoint of ΔW.

    python -m multilora.train --method multilora [--model DIR] [--output_dir DIR] …

Every argument of transformers' TrainingArguments is accepted beside those below. Without --model
the built-in base is fine-tuned, on the built-in suite. All linear layers but the output head are
trained unless --target_modules says otherwise; everything else is frozen, for every method.
"""

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists

from analysis import floor
from multilora import base, command, config, delta, evaluate, experts, layers, record, tuner
from multilora.config import MultiLoraConfig
from multilora.experts import ExpertBank
from multilora.tasks import (
    corpus,
    encoding,
    example,
    instruction,
    knowledge,
    mixture,
    splits,
    suite,
    understanding,
    world,
)
from multilora.tasks.example import Example

# Rank and learning rate of each method; the best of three rates, half and twice it beside it, on
# the built-in suite's validation items with seed 100, which is not reported.
DEFAULTS = {
    "lora": {"r": 24, "learning_rate": 3e-3},
    "lora+": {"r": 24, "learning_rate": 3e-3},
    "multilora": {"r": 8, "learning_rate": 6e-3},
    "full": {"r": 0, "learning_rate": 2e-3},
    # Fifteen experts of rank 2 have 1.25 times the parameters of LoRA's rank 24, the nearest that
    # whole ranks come from above (rank 1: 0.63 times). The rate is LoRA's, not tuned.
    "expert": {"r": 2, "learning_rate": 3e-3},
}

# Whatever a run's result passes through, beside the versions of the libraries.
CODE = (
    *(sys.modules[__name__], config, layers, tuner, experts, delta, floor, evaluate),
    *(world, corpus, splits, example, instruction, understanding, knowledge, suite),
    *(encoding, mixture),
)
# Arguments that say where a run goes and what it prints, not what comes out.
APART = ("output_dir", "disable_tqdm", "logging_dir", "resume_from_checkpoint")


@dataclass(frozen=True)
class TrainSettings:
    """What is trained on what; TrainingArguments say how."""

    method: str = field(default="multilora", metadata={"help": " | ".join(DEFAULTS)})
    model: str = field(
        default="", metadata={"help": "base: a directory or hub name; the built-in by default"}
    )
    per_task: int = field(default=800, metadata={"help": "training examples of each task"})
    per_task_scored: int = field(default=100, metadata={"help": "held-out items of each task"})
    r: int = field(
        default=0, metadata={"help": "rank; 24 for LoRA, 8 a module for MultiLoRA, 2 an expert"}
    )
    n: int = field(default=3, metadata={"help": "modules of MultiLoRA"})
    scale: float = field(default=2.0, metadata={"help": "lora_alpha / r"})
    dropout: float = field(default=0.0, metadata={"help": "on the adapters' input"})
    target_modules: str = field(
        default="all-linear", metadata={"help": "names, separated by commas, or a regex"}
    )
    b_lr_ratio: float = field(
        default=1.0, metadata={"help": "lora+: the rate of B over that of A (arXiv 2402.12354)"}
    )
    scale_lr_ratio: float = field(
        default=1.0, metadata={"help": "multilora: the rate of s over that of A and B"}
    )

    def __post_init__(self) -> None:
        if self.method not in DEFAULTS:
            raise ValueError(f"method is {self.method!r}; expected one of {', '.join(DEFAULTS)}")
        if (self.b_lr_ratio != 1) != (self.method == "lora+"):
            raise ValueError("b_lr_ratio other than 1 belongs to method lora+, and only to it")
        if self.scale_lr_ratio != 1 and self.method != "multilora":
            raise ValueError("scale_lr_ratio belongs to method multilora")
        for count in ("per_task", "per_task_scored"):
            if getattr(self, count) < 1:
                raise ValueError(f"{count} is {getattr(self, count)}; expected at least 1")

    @property
    def rank(self) -> int:
        """Rank of the adapter, or of each of its modules."""
        return self.r or int(DEFAULTS[self.method]["r"])

    @property
    def name(self) -> str:
        """The method's name in tables; a ratio of rates is a method of its own."""
        ratio = self.scale_lr_ratio
        return self.method if ratio == 1 else f"{self.method} s×{ratio:g}"

    def run_name(self, seed: int) -> str:
        """The name of a run's directory, and so of the run in tables."""
        return f"{self.name.replace(' ', '-')}-s{seed}"


@dataclass
class TrainArguments(transformers.TrainingArguments):
    """TrainingArguments with the defaults of the built-in experiment."""

    output_dir: str = field(default="", metadata={"help": "runs/METHOD-sSEED by default"})
    per_device_train_batch_size: int = 32
    max_steps: int = field(default=1500, metadata={"help": "optimiser steps"})
    learning_rate: float = field(default=0.0, metadata={"help": "the method's own by default"})
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0.05
    optim: str = "adamw_torch"
    logging_steps: float = 50
    report_to: str = "none"
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = False
    # The examples come in their order: it is drawn before training (tasks/mixture.py).
    train_sampling_strategy: str = "sequential"


class AdapterTrainer(transformers.Trainer):
    """Trainer whose optimiser gives some parameters a multiple of the learning rate.

    The experts of a bank are trained apart from one another: see `ExpertBank`.
    """

    def __init__(self, *args: Any, lr_ratios: dict[str, float], **kwargs: Any) -> None:
        self.lr_ratios = lr_ratios
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """One group a ratio: parameters whose name holds a key of `lr_ratios` get its value."""
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
        """The batches of one step; for a bank with the number of labels each expert has in all."""
        batches, in_all = super().get_batch_samples(*args)
        if isinstance(self.model, ExpertBank) and in_all is not None:
            counts = experts.count_labels(batches, len(self.model.tasks)).to(self.args.device)
            if self.args.average_tokens_across_devices:
                counts = self.accelerator.gather(counts).view(-1, len(counts)).sum(0)
            batches = [{**batch, "multilora_label_counts": counts} for batch in batches]
        return batches, in_all

    def _clip_grad_norm(self, model: Any) -> Any:
        if not isinstance(self.model, ExpertBank):
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        return self.model.clip_grad_norm(self.args.max_grad_norm)


def prepare(model: Any, settings: TrainSettings) -> Any:
    """The model with what `settings.method` trains made trainable and the rest frozen."""
    targets: Any = command.targets(settings.target_modules)
    common = {
        "lora_alpha": settings.scale * settings.rank,
        "lora_dropout": settings.dropout,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
    }
    if settings.method in ("lora", "lora+"):
        return get_peft_model(model, LoraConfig(r=settings.rank, **common))
    if settings.method == "multilora":
        return get_peft_model(model, MultiLoraConfig(r=settings.rank, n=settings.n, **common))
    if settings.method == "expert":
        return ExpertBank(model, LoraConfig(r=settings.rank, **common), list(suite.TASKS))
    model.requires_grad_(False)
    for name, layer in delta.matrices(model):
        if targets == "all-linear" or check_target_module_exists(LoraConfig(**common), name):
            layer.weight.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"target_modules {targets!r} match no linear layer of the model")
    return model


def run(
    settings: TrainSettings,
    arguments: TrainArguments,
    callbacks: Sequence[transformers.TrainerCallback] = (),
) -> Path:
    """Train, score on the held-out items and write everything into `arguments.output_dir`.

    `run.json` is written last: where it is, the run is whole.
    """
    out = Path(arguments.output_dir)
    (out / "run.json").unlink(missing_ok=True)
    made_of = fingerprint(settings, arguments)
    path = settings.model or str(base.ensure(base.BaseSettings()))
    transformers.set_seed(arguments.seed)  # not before: training the base would use it up
    model, tokenizer = delta.load_base(path)
    model = prepare(model, settings)
    examples = suite.load("train", settings.per_task)
    context, tasks = encoding.context_of(model, tokenizer), encoding.tasks_of(model)
    encoded = encoding.encode_all(tokenizer, examples, context, tasks)
    once = copy.copy(arguments)
    once.num_train_epochs = 1  # the data hold every epoch
    trainer = AdapterTrainer(
        model,
        once,
        train_dataset=_in_order(encoded, arguments),
        data_collator=lambda batch: encoding.collate(batch, tokenizer.pad_token_id or 0),
        callbacks=list(callbacks),
        lr_ratios={"lora_B": settings.b_lr_ratio, "multilora_s": settings.scale_lr_ratio},
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    _check_finite(model, arguments)
    if trainer.is_world_process_zero():
        delta.save(model, path, out)
        scores = {
            split: evaluate.score(model, tokenizer, suite.load(split, settings.per_task_scored))
            for split in ("validation", "test")
        }
        facts = {
            "fingerprint": made_of,
            "method": settings.name,
            "settings": asdict(settings),
            "arguments": _changed(arguments),
            "seed": arguments.seed,
            "base": {"path": path, "sha256": delta.weight_files(path)},
            "data": {"examples": len(examples), "sha256": _hash(examples)},
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "step": trainer.state.global_step,
            "losses": [entry for entry in trainer.state.log_history if "loss" in entry],
            "scores": scores,
            "environment": record.environment(),
        }
        record.write_json(out / "run.json", facts)
    return out


def _check_finite(model: Any, arguments: TrainArguments) -> None:
    """Raise ValueError where training has diverged."""
    for name, p in model.named_parameters():
        if p.requires_grad and not torch.isfinite(p).all():
            raise ValueError(
                f"training diverged: {name} holds NaN or Inf after {arguments.max_steps} steps at "
                f"learning rate {arguments.learning_rate:g}; try a lower one"
            )


def fingerprint(settings: TrainSettings, arguments: TrainArguments) -> str:
    """Of all that a run's result depends on: settings, arguments, versions and code.

    The base counts by its path; the built-in base's names all that it was made of.
    """
    given = {k: v for k, v in _changed(arguments).items() if k not in APART}
    return record.fingerprint(settings, given, record.environment()["versions"], *CODE)


def is_done(settings: TrainSettings, arguments: TrainArguments) -> bool:
    """Whether the run is there, whole, from these settings and this code."""
    out = Path(arguments.output_dir)
    own = {"full": "delta.safetensors", "expert": experts.CONFIG}
    weights = own.get(settings.method, "adapter_model.safetensors")
    if not (out / "run.json").is_file() or not (out / weights).is_file():
        return False
    try:
        made_of = json.loads((out / "run.json").read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(made_of == fingerprint(settings, arguments))


def complete(settings: TrainSettings, arguments: TrainArguments) -> None:
    """Fill in what the method decides: the learning rate and the name of the output."""
    if not arguments.learning_rate:
        arguments.learning_rate = DEFAULTS[settings.method]["learning_rate"]
    if not arguments.output_dir:
        arguments.output_dir = f"runs/{settings.run_name(arguments.seed)}"


def _in_order(
    encoded: Sequence[encoding.Encoded], arguments: TrainArguments
) -> list[encoding.Encoded]:
    """The examples as they will be trained on, from the first step to the last."""
    batch = (
        arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    )
    if arguments.max_steps > 0:
        count = arguments.max_steps * batch
    else:
        count = int(arguments.num_train_epochs * len(encoded))
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    return [encoded[i] for i in mixture.order([len(e.ids) for e in encoded], count, batch, seed)]


def _hash(examples: Sequence[Example]) -> str:
    return record.fingerprint([asdict(example) for example in examples])


def _changed(arguments: TrainArguments) -> dict[str, Any]:
    """The arguments that differ from those of transformers."""
    given = arguments.to_sanitized_dict()
    usual = {f.name: f.default for f in fields(transformers.TrainingArguments)}
    return {k: v for k, v in given.items() if k in usual and v != usual[k]}


def main(argv: Sequence[str] | None = None) -> int:
    def work() -> str:
        given = command.settings_from((TrainSettings, TrainArguments), __doc__, argv)
        complete(*given)
        return str(run(*given))

    return command.run("multilora.train", work)


if __name__ == "__main__":
    sys.exit(main())
