"""Settings of the adapter methods, stored as `adapter_config.json` next to the weights."""

import copy
import enum
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils.other import get_pattern_key

from multilora.methods import card, shared_fields


class MethodType(enum.StrEnum):
    """The `peft_type` of each method, in an enum of our own because PEFT's cannot be extended."""

    MULTILORA = "MULTILORA"
    RLORA = "RLORA"
    MTLLORA = "MTLLORA"


@dataclass
class AdapterConfig(PeftConfig):
    """Settings that all methods share: n modules of rank r in each adapted layer."""

    method: ClassVar[MethodType]
    starts: ClassVar[tuple[Any, ...]] = (True, False, "gaussian")  # of init_lora_weights
    why_not: ClassVar[str] = ""  # why a method has fewer starts

    r: int = field(default=8, metadata={"help": "rank of each module"})
    n: int = field(default=3, metadata={"help": "number of parallel modules"})
    lora_alpha: float = field(
        default=16, metadata={"help": "sets the scale of ΔW, together with r"}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout within the adapter"})
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={"help": "modules to adapt, by PEFT's rules: names, a regex or 'all-linear'"},
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "modules to leave out, by the same rules"}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "indices of the layers to adapt; all by default"}
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={"help": "name of the model's list of layers, for layers_to_transform"},
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules to train and save in full"}
    )
    bias: str = field(
        default="none",
        metadata={"help": "biases of the base to train: 'none', 'all' or those of adapted layers"},
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "accepted as LoRA has it; each layer says itself how W0 is stored"},
    )
    init_lora_weights: bool | str = field(
        default=True,
        metadata={"help": "True: as the method has it; 'gaussian': A normal; False: ΔW ≠ 0"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.method
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        self._check()

    def _check(self) -> None:
        """Raise ValueError for settings that cannot be trained."""
        self.bias = shared_fields.bias(self.bias, f"{self.method.value.lower()}_")
        shared_fields.check_start(self.init_lora_weights, self.starts, self.why_not)
        for name in ("r", "n"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}; expected 0 <= dropout < 1")
        if not math.isfinite(self.lora_alpha):
            raise ValueError(f"lora_alpha is {self.lora_alpha}; expected a finite number")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                "layers_to_transform is set and target_modules is the regex"
                f" {self.target_modules!r}, which chooses layers by itself; expected target_modules"
                " as a list of names"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern is set without layers_to_transform; expected both")

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, and complete the model card that PEFT wrote beside it."""
        super().save_pretrained(save_directory, **kwargs)
        card.complete(Path(save_directory), self.method.value)

    def for_module(self, name: str) -> "AdapterConfig":
        """Return the settings of one target module; a method may set some of them per module."""
        return self

    @property
    def scale(self) -> float:
        """Factor on each product B·A: lora_alpha / r, or lora_alpha / √r with rsLoRA."""
        return self.lora_alpha / (self.r**0.5 if getattr(self, "use_rslora", False) else self.r)


@dataclass
class MultiLoraConfig(AdapterConfig):
    """MultiLoRA: n parallel low-rank modules per layer (arXiv 2311.11501, section 4).

    ΔW = scale · Σᵢ diag(sᵢ) Bᵢ Aᵢ, scale = lora_alpha / r, or lora_alpha / √r with use_rslora.
    A layer has the parameters of a LoRA of rank n·r, plus n·d_out scales. By default every Aᵢ and
    Bᵢ is initialised Kaiming-uniform and every sᵢ to zero, so that ΔW = 0 at the start. With
    scale_per="module" every sᵢ is one number, so that a layer has n scales.
    """

    method = MethodType.MULTILORA

    use_rslora: bool = field(default=False, metadata={"help": "scale is lora_alpha / sqrt(r)"})
    start_b: str = field(default="kaiming", metadata={"help": "initial B: 'kaiming' or 'zero'"})
    start_s: float = field(default=0.0, metadata={"help": "initial s: 0, or 1 if start_b is zero"})
    scale_per: str = field(
        default="feature",
        metadata={"help": "sᵢ scales each output 'feature' or the whole 'module'"},
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "r of single target modules, by PEFT's rules"}
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "lora_alpha of single target modules, by PEFT's rules"},
    )

    def for_module(self, name: str) -> "MultiLoraConfig":
        ranks, alphas = self.rank_pattern, self.alpha_pattern
        if not ranks and not alphas:
            return self
        own = copy.copy(self)
        own.r = ranks.get(get_pattern_key(list(ranks), name), self.r)
        own.lora_alpha = alphas.get(get_pattern_key(list(alphas), name), self.lora_alpha)
        return own

    def _check(self) -> None:
        super()._check()
        if self.scale_per not in ("feature", "module"):
            raise ValueError(f"scale_per is {self.scale_per!r}; expected 'feature' or 'module'")
        for name, r in self.rank_pattern.items():
            if not isinstance(r, int) or r < 1:
                raise ValueError(f"rank_pattern: {name!r} is {r!r}; expected a whole number ≥ 1")
        if self.start_b not in ("kaiming", "zero"):
            raise ValueError(f"start_b is {self.start_b!r}; expected 'kaiming' or 'zero'")
        if not math.isfinite(self.start_s):
            raise ValueError(f"start_s is {self.start_s}; expected a finite number")
        if self.start_b == "zero" and self.start_s == 0:
            raise ValueError(
                "start_b is 'zero' and start_s is 0: no gradient would flow; expected start_s = 1"
            )
        if self.start_b == "kaiming" and self.start_s != 0:
            raise ValueError(
                "start_b is 'kaiming' and start_s is not 0: ΔW would not start at zero"
            )


@dataclass
class RLoraConfig(AdapterConfig):
    """R-LoRA: one A and n heads Bᵢ, mixed for every input by a router R (arXiv 2502.15455).

    ΔW(x) = scale · (Σᵢ softmax(R x)ᵢ Bᵢ A − mean B0ᵢ A0), scale = lora_alpha / √r. A0 and B0ᵢ are
    the random initial values, saved with the weights. Dropout is applied to A x, separately for
    each head. With router_init="zero" the update is zero at the start, up to rounding;
    router_init="kaiming" follows the released code, whose update is not zero at the start.
    """

    method = MethodType.RLORA
    starts = (True,)
    why_not = "R-LoRA subtracts its random start, whose variance the paper fixes"

    router_init: str = field(
        default="zero", metadata={"help": "initial router R: 'zero' or 'kaiming'"}
    )

    def _check(self) -> None:
        super()._check()
        if self.router_init not in ("zero", "kaiming"):
            raise ValueError(f"router_init is {self.router_init!r}; expected 'zero' or 'kaiming'")

    @property
    def scale(self) -> float:
        """Factor on each product B·A: lora_alpha / √r."""
        return self.lora_alpha / self.r**0.5


@dataclass
class MtlLoraConfig(AdapterConfig):
    """MTL-LoRA: one update per task, built from shared factors (arXiv 2410.09437).

    ΔW_t = scale · Σᵢ softmax(w_t / τ)ᵢ Bᵢ Λ_t A for task t, scale = lora_alpha / r, or
    lora_alpha / √r with use_rslora. Bᵢ is zero at the start, and so is every ΔW_t. Every batch
    carries `multilora_task_ids`, the index in `tasks` of each row's task.
    """

    method = MethodType.MTLLORA

    tasks: list[str] = field(default_factory=list, metadata={"help": "names of the tasks"})
    temperature: float = field(default=0.5, metadata={"help": "τ of the softmax over w_t / τ"})
    diagonal: bool = field(default=False, metadata={"help": "make Λ_t diagonal instead of (r, r)"})
    use_rslora: bool = field(default=False, metadata={"help": "scale is lora_alpha / sqrt(r)"})

    def _check(self) -> None:
        super()._check()
        if not isinstance(self.tasks, list | tuple) or not self.tasks:
            raise ValueError(f"tasks is {self.tasks!r}; expected a list of task names")
        self.tasks = list(self.tasks)
        for task in self.tasks:
            # An export writes one directory per task.
            if not isinstance(task, str) or not task or task[0] == "." or set(task) & set("/\\\0"):
                raise ValueError(
                    f"task {task!r}: not a valid directory name; expected one without slashes"
                )
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks {self.tasks}: a name appears twice")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected a number above 0")
