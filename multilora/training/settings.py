"""Settings of a training run, the defaults of each method, and the names of runs."""

import math
import re
from dataclasses import dataclass, field, fields
from typing import Any

from analysis import UserError
from multilora.methods import peft as peft_methods
from multilora.tasks import mixture
from multilora.training import guard, names, trainer
from multilora.training.trainer import TrainArguments

# Rank and learning rate of each method. The ranks give every method about as many parameters as
# LoRA; the rates are the best of four (presets.MIDDLE) on the validation items of the built-in
# suite with seed 100, which is not reported.
DEFAULTS = {
    "lora": {"r": 24, "learning_rate": 3e-3},
    "lora+": {"r": 24, "learning_rate": 1.5e-3},
    "multilora": {"r": 8, "learning_rate": 6e-3},
    "full": {"r": 0, "learning_rate": 2e-3},
    "rlora": {"r": 11, "learning_rate": 1.5e-3},
    "mtllora": {"r": 10, "learning_rate": 3e-3},
    # Fifteen experts of rank 2 have 1.25 times the parameters of LoRA with rank 24, the nearest
    # whole rank from above (rank 1: 0.63 times).
    "expert": {"r": 2, "learning_rate": 3e-3},
}
# The b_lr_ratio that a run name of lora+ does not state: the published one.
B_LR_RATIO = 4.0

# Methods that have parameters of their own for each task and need the task of each row.
BY_TASK = ("mtllora", "expert")

# Settings that say where files are kept and do not change a result.
SETTINGS_WITHOUT_EFFECT = ("token_cache",)


def defaults(method: str) -> dict[str, float]:
    """Rank and learning rate of a method; a rank of 0 is the one that PEFT chooses.

    PEFT's LoRA and its variants have those of LoRA.
    """
    kin = peft_methods.is_kin(method)
    return DEFAULTS.get(method, DEFAULTS["lora"] if kin else DEFAULTS["lora"] | {"r": 0})


@dataclass(frozen=True)
class TrainSettings:
    """The method, the base, the tasks and the adapter of a run.

    How long and at what rate it is trained is in TrainArguments.
    """

    method: str = field(
        default="multilora", metadata={"help": " | ".join([*DEFAULTS, "peft:NAME"])}
    )
    model: str = field(
        default="",
        metadata={"help": "base: a directory or hub name; by default the built-in base"},
    )
    quantised: int = field(
        default=0,
        metadata={"help": "load the base in 4 or 8 bits, by bitsandbytes; 0: as it is stored"},
    )
    tasks: str = field(
        default="",
        metadata={
            "help": "KIND:PATH, separated by commas (docs/tasks.md); by default the built-in suite"
        },
    )
    mixture: str = field(
        default=mixture.PROPORTIONAL,
        metadata={
            "help": "how often each task is drawn: proportional to its size, equal, equal "
            "by families, or a temperature"
        },
    )
    packing: bool = field(
        default=False,
        metadata={"help": "fill rows of the context length with several examples"},
    )
    max_length: int = field(
        default=0, metadata={"help": "tokens of a training row at most; 0: the model's context"}
    )
    loss: str = field(
        default="token",
        metadata={
            "help": "mean over the answer tokens of a step (token), or over its examples, each of "
            "them the mean of its answer tokens (example)"
        },
    )
    decode: bool = field(
        default=True,
        metadata={"help": "score answers without options by greedy decoding, which takes long"},
    )
    per_task: int = field(
        default=0,
        metadata={"help": "training examples per task; 0: 800 of the built-in tasks, all of files"},
    )
    per_task_scored: int = field(
        default=0,
        metadata={"help": "held-out items per task; 0: 100 of the built-in tasks, all of files"},
    )
    r: int = field(
        default=0,
        metadata={
            "help": "rank; 0: the method's own (24 for LoRA, 8 per module for MultiLoRA, 2 per "
            "expert)"
        },
    )
    n: int = field(
        default=3, metadata={"help": "number of MultiLoRA's modules, or of its relatives' heads"}
    )
    scale: float = field(default=2.0, metadata={"help": "lora_alpha / r"})
    dropout: float = field(
        default=0.0, metadata={"help": "dropout probability of the adapters' input"}
    )
    target_modules: str = field(
        default="all-linear",
        metadata={"help": "names of modules, separated by commas, or a regex"},
    )
    start: str = field(
        default="kaiming",
        metadata={
            "help": "multilora: kaiming starts the scales s at zero, zero starts B at zero and s "
            "at one"
        },
    )
    b_lr_ratio: float = field(
        default=1.0,
        metadata={"help": "lora+: learning rate of B over that of A (arXiv 2402.12354)"},
    )
    scale_lr_ratio: float = field(
        default=1.0,
        metadata={"help": "multilora: learning rate of the scales s over that of A and B"},
    )
    peft_config: str = field(
        default="", metadata={"help": "peft:NAME: fields of PEFT's config, as JSON"}
    )
    token_cache: str = field(
        default="runs/tokens", metadata={"help": "directory for the tokens of task files"}
    )

    def __post_init__(self) -> None:
        if peft_methods.is_named(self.method):
            with guard.refusals():
                peft_methods.check(self.method, self.peft_config)
            if not peft_methods.is_kin(self.method) and (self.scale != 2 or self.dropout):
                raise UserError(
                    f"scale and dropout belong to LoRA; set those of {self.method} in --peft_config"
                )
        elif self.method not in DEFAULTS:
            names = ", ".join([*DEFAULTS, "peft:NAME"])
            raise UserError(f"method is {self.method!r}; expected one of {names}")
        elif self.peft_config:
            raise UserError("peft_config belongs to the methods peft:NAME only")
        if (self.b_lr_ratio != 1) != (self.method == "lora+"):
            raise UserError("b_lr_ratio other than 1 belongs to method lora+, and only to it")
        if self.scale_lr_ratio != 1 and self.method != "multilora":
            raise UserError("scale_lr_ratio belongs to method multilora only")
        if not (math.isfinite(self.scale) and 0 <= self.dropout < 1 and self.r >= 0 and self.n > 0):
            raise UserError(
                f"r is {self.r}, n is {self.n}, scale is {self.scale}, dropout is {self.dropout};"
                " expected r ≥ 0, n ≥ 1, a finite scale, 0 ≤ dropout < 1"
            )
        if self.method == "full" and (self.r or self.dropout):
            raise UserError("r and dropout belong to adapters; method full has neither")
        if self.start not in ("kaiming", "zero"):
            raise UserError(f"start is {self.start!r}; expected kaiming or zero")
        if self.start != "kaiming" and self.method != "multilora":
            raise UserError("start belongs to method multilora only")
        if self.quantised not in (0, 4, 8):
            raise UserError(f"quantised is {self.quantised}; expected 4 or 8 bits, or 0")
        if self.quantised and self.method == "full":
            raise UserError("quantised weights cannot be trained by method full; use an adapter")
        mixture.temperature(self.mixture)
        if self.loss not in ("token", "example"):
            raise UserError(f"loss is {self.loss!r}; expected token or example")
        if self.loss == "example" and (self.method == "expert" or self.packing):
            raise UserError("loss example belongs neither to --packing nor to --method expert")
        for count in ("per_task", "per_task_scored", "max_length"):
            if getattr(self, count) < 0:
                raise UserError(f"{count} is {getattr(self, count)}; expected 0 or more")

    @property
    def rank(self) -> int:
        """Rank of the adapter, or of each of its modules."""
        return self.r or int(defaults(self.method)["r"])

    @property
    def name(self) -> str:
        """The method's name in tables, with the rank and other settings that make a variant."""
        modules = self.n if self.method == "multilora" else 1  # n modules of rank r share a budget
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
        """The name of a run's directory and of the run in tables.

        Two runs have the same name if they differ at most in the base and in what does not change
        a result: every other setting that differs from its default is part of it.
        """
        return names.run_name(self.name, _unnamed(self), seed)


def _unnamed(settings: TrainSettings) -> dict[str, Any]:
    """Settings other than the base that differ from their defaults and are not in the name."""
    named = {"method", "model", "r", "start", "scale_lr_ratio", *SETTINGS_WITHOUT_EFFECT}
    if settings.method == "multilora":
        named.add("n")
    if settings.b_lr_ratio == B_LR_RATIO:
        named.add("b_lr_ratio")
    return {
        f.name: getattr(settings, f.name)
        for f in fields(settings)
        if f.name not in named and getattr(settings, f.name) != f.default
    }


def complete(settings: TrainSettings, arguments: TrainArguments) -> None:
    """Fill in the learning rate and the output directory if they are not given.

    The default directory differs whenever a setting or argument differs that can change a result.
    """
    usual = defaults(settings.method)["learning_rate"]
    if not arguments.learning_rate:
        arguments.learning_rate = usual
    if not arguments.output_dir:
        changes = {"model": settings.model} if settings.model else {}
        changes |= _unnamed(settings) | trainer.differing(arguments)
        if arguments.learning_rate == usual:
            del changes["learning_rate"]
        arguments.output_dir = f"runs/{names.run_name(settings.name, changes, arguments.seed)}"


def targets(text: str) -> str | list[str]:
    """Convert --target_modules for PEFT: 'all-linear', a list of names, or a regex.

    Raises UserError for text that is neither names separated by commas nor a valid regex.
    """
    if text == "all-linear":
        return text
    if re.fullmatch(r"[\w.,-]+", text):
        return text.split(",")
    try:
        re.compile(text)
    except re.error as error:
        raise UserError(f"target_modules {text!r} is not a valid regex: {error}") from None
    return text
