"""Settings of a training run, and the defaults of each method."""

import math
import re
from dataclasses import dataclass, field

from analysis import UserError
from multilora.methods import peft as peft_methods
from multilora.tasks import mixture
from multilora.training import guard
from multilora.training.trainer import TrainArguments

# Rank and learning rate of each method. Ranks give every method about LoRA's number of parameters;
# rates are the best of four (presets.MIDDLE) on the built-in suite's validation items with seed
# 100, which is not reported.
DEFAULTS = {
    "lora": {"r": 24, "learning_rate": 3e-3},
    "lora+": {"r": 24, "learning_rate": 1.5e-3},
    "multilora": {"r": 8, "learning_rate": 6e-3},
    "full": {"r": 0, "learning_rate": 2e-3},
    "rlora": {"r": 11, "learning_rate": 1.5e-3},
    "mtllora": {"r": 10, "learning_rate": 3e-3},
    # Fifteen experts of rank 2 have 1.25 times the parameters of LoRA's rank 24, the nearest that
    # whole ranks come from above (rank 1: 0.63 times).
    "expert": {"r": 2, "learning_rate": 3e-3},
}


def defaults(method: str) -> dict[str, float]:
    """Rank, 0 for the method's own, and learning rate; PEFT's LoRA and its kin have LoRA's."""
    kin = peft_methods.is_kin(method)
    return DEFAULTS.get(method, DEFAULTS["lora"] if kin else DEFAULTS["lora"] | {"r": 0})


# Methods that have parameters of their own for each task, and are told the task of each row.
BY_TASK = ("mtllora", "expert")


@dataclass(frozen=True)
class TrainSettings:
    """What is trained on what; TrainingArguments say how."""

    method: str = field(
        default="multilora", metadata={"help": " | ".join([*DEFAULTS, "peft:NAME"])}
    )
    model: str = field(
        default="", metadata={"help": "base: a directory or hub name; the built-in by default"}
    )
    tasks: str = field(
        default="",
        metadata={"help": "KIND:PATH, separated by commas (docs/tasks.md); built-in by default"},
    )
    mixture: str = field(
        default=mixture.PROPORTIONAL,
        metadata={"help": "of tasks: proportional to their sizes, equal, or a temperature"},
    )
    packing: bool = field(
        default=False, metadata={"help": "fill rows of the context's length with examples"}
    )
    per_task: int = field(
        default=0, metadata={"help": "training examples of each task; 800 built-in, else all"}
    )
    per_task_scored: int = field(
        default=0, metadata={"help": "held-out items of each task; 100 built-in, else all"}
    )
    r: int = field(
        default=0, metadata={"help": "rank; 24 for LoRA, 8 a module for MultiLoRA, 2 an expert"}
    )
    n: int = field(default=3, metadata={"help": "modules of MultiLoRA, heads of its relatives"})
    scale: float = field(default=2.0, metadata={"help": "lora_alpha / r"})
    dropout: float = field(default=0.0, metadata={"help": "on the adapters' input"})
    target_modules: str = field(
        default="all-linear", metadata={"help": "names, separated by commas, or a regex"}
    )
    start: str = field(
        default="kaiming",
        metadata={"help": "multilora: kaiming, with s at zero, or zero: B at zero, s at one"},
    )
    b_lr_ratio: float = field(
        default=1.0, metadata={"help": "lora+: the rate of B over that of A (arXiv 2402.12354)"}
    )
    scale_lr_ratio: float = field(
        default=1.0, metadata={"help": "multilora: the rate of s over that of A and B"}
    )

    peft_config: str = field(
        default="", metadata={"help": "peft:NAME: fields of its config, as JSON"}
    )
    token_cache: str = field(
        default="runs/tokens", metadata={"help": "where the tokens of files are kept"}
    )

    def __post_init__(self) -> None:
        if peft_methods.is_named(self.method):
            with guard.refusals():
                peft_methods.check(self.method, self.peft_config)
            if not peft_methods.is_kin(self.method) and (self.scale != 2 or self.dropout):
                raise UserError(
                    f"scale and dropout are of LoRA; {self.method} has its own, in --peft_config"
                )
        elif self.method not in DEFAULTS:
            names = ", ".join([*DEFAULTS, "peft:NAME"])
            raise UserError(f"method is {self.method!r}; expected one of {names}")
        elif self.peft_config:
            raise UserError("peft_config belongs to the methods peft:NAME")
        if (self.b_lr_ratio != 1) != (self.method == "lora+"):
            raise UserError("b_lr_ratio other than 1 belongs to method lora+, and only to it")
        if self.scale_lr_ratio != 1 and self.method != "multilora":
            raise UserError("scale_lr_ratio belongs to method multilora")
        if not (math.isfinite(self.scale) and 0 <= self.dropout < 1 and self.r >= 0 and self.n > 0):
            raise UserError(
                f"r is {self.r}, n is {self.n}, scale is {self.scale}, dropout is {self.dropout};"
                " expected r ≥ 0, n ≥ 1, a finite scale, 0 ≤ dropout < 1"
            )
        if self.method == "full" and (self.r or self.dropout):
            raise UserError("r and dropout are of adapters; method full has none")
        if self.start not in ("kaiming", "zero"):
            raise UserError(f"start is {self.start!r}; expected kaiming or zero")
        if self.start != "kaiming" and self.method != "multilora":
            raise UserError("start belongs to method multilora")
        mixture.temperature(self.mixture)
        for count in ("per_task", "per_task_scored"):
            if getattr(self, count) < 0:
                raise UserError(f"{count} is {getattr(self, count)}; expected 0, or a number")

    @property
    def rank(self) -> int:
        """Rank of the adapter, or of each of its modules."""
        return self.r or int(defaults(self.method)["r"])

    @property
    def name(self) -> str:
        """The method's name in tables; what differs from its defaults makes a variant of it."""
        modules = self.n if self.method == "multilora" else 1  # n modules of r share a budget
        usual = defaults(self.method)["r"] * (3 if self.method == "multilora" else 1)
        parts = [
            self.method,
            f"n={self.n}" * (self.method == "multilora" and self.n != 3),
            f"r={self.rank}" * (self.rank * modules != usual),
            self.start * (self.start != "kaiming"),
            f"s×{self.scale_lr_ratio:g}" * (self.scale_lr_ratio != 1),
        ]
        return " ".join(part for part in parts if part)

    def run_name(self, seed: int) -> str:
        """The name of a run's directory, and so of the run in tables."""
        return f"{self.name.replace(' ', '-').replace(':', '-')}-s{seed}"


def complete(settings: TrainSettings, arguments: TrainArguments) -> None:
    """Fill in what the method decides: the learning rate and the name of the output."""
    if not arguments.learning_rate:
        arguments.learning_rate = defaults(settings.method)["learning_rate"]
    if not arguments.output_dir:
        arguments.output_dir = f"runs/{settings.run_name(arguments.seed)}"


def targets(text: str) -> str | list[str]:
    """--target_modules for PEFT: 'all-linear', names separated by commas, or a regex.

    Raises ValueError where it is none of these.
    """
    if text == "all-linear":
        return text
    if re.fullmatch(r"[\w.,-]+", text):
        return text.split(",")
    try:
        re.compile(text)
    except re.error as error:
        raise UserError(f"target_modules {text!r} is no regex: {error}") from None
    return text
