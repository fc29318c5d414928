"""The settings of an adapter method, stored as `adapter_config.json` beside its weights."""

import copy
import enum
import math
from dataclasses import dataclass, field
from typing import ClassVar

from peft import PeftConfig
from peft.utils.other import get_pattern_key


class MethodType(enum.StrEnum):
    """The peft_type of each method; its own enum, because PEFT's cannot be extended."""

    MULTILORA = "MULTILORA"
    RLORA = "RLORA"
    MTLLORA = "MTLLORA"


@dataclass
class AdapterConfig(PeftConfig):
    """What the methods have in common: n modules of rank r in each of the chosen layers."""

    method: ClassVar[MethodType]

    r: int = field(default=8, metadata={"help": "rank of each module"})
    n: int = field(default=3, metadata={"help": "number of parallel modules"})
    lora_alpha: float = field(default=16, metadata={"help": "gives the scale of ΔW, with r"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout within the adapter"})
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={"help": "modules to adapt, by PEFT's rules: names, a regex or 'all-linear'"},
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "modules to leave out, by the same rules"}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "indices of the layers to adapt; all of them by default"}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "name of the layers' list, for layers_to_transform"}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules that are trained and saved whole"}
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
        """Raise ValueError for what cannot be trained."""
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
                f"layers_to_transform needs a list of names; target_modules is the expression"
                f" {self.target_modules!r}, which chooses layers by itself"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform beside it")

    def for_module(self, name: str) -> "AdapterConfig":
        """The settings of one target module, where some have their own."""
        return self

    @property
    def scale(self) -> float:
        """What a product of factors is multiplied with: lora_alpha / r, or / √r with rsLoRA."""
        return self.lora_alpha / (self.r**0.5 if getattr(self, "use_rslora", False) else self.r)


@dataclass
class MultiLoraConfig(AdapterConfig):
    """MultiLoRA: n parallel low-rank modules a layer (arXiv 2311.11501, section 4).

    ΔW = scale · Σᵢ diag(sᵢ) Bᵢ Aᵢ, scale = lora_alpha / r, or lora_alpha / √r with use_rslora.
    It has the parameters of a LoRA of rank n·r, and n·d_out scales a layer. By default every Aᵢ
    and Bᵢ starts Kaiming-uniform and every sᵢ at zero, so that ΔW = 0 at the start. With
    scale_per="module" every sᵢ is one number, and a layer has n of them.
    """

    method = MethodType.MULTILORA

    use_rslora: bool = field(default=False, metadata={"help": "scale is lora_alpha / sqrt(r)"})
    start_b: str = field(default="kaiming", metadata={"help": "start of B: 'kaiming' or 'zero'"})
    start_s: float = field(default=0.0, metadata={"help": "start of s: 0, or 1 with start_b zero"})
    scale_per: str = field(
        default="feature", metadata={"help": "sᵢ scales each output 'feature', or the 'module'"}
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict, metadata={"help": "r of some target modules, by PEFT's rules"}
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata={"help": "lora_alpha of some target modules, likewise"}
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
            raise ValueError("start_b='zero' with start_s=0: no gradient would ever flow")
        if self.start_b == "kaiming" and self.start_s != 0:
            raise ValueError("start_b='kaiming' with start_s != 0: ΔW would not start at zero")


@dataclass
class RLoraConfig(AdapterConfig):
    """R-LoRA: one A and n heads Bᵢ, mixed for every input by a router (arXiv 2502.15455).

    ΔW(x) = scale · (Σᵢ softmax(R x)ᵢ Bᵢ A − mean B0ᵢ A0), scale = lora_alpha / √r; A0 and B0ᵢ are
    the random start, kept beside the weights. Dropout falls on A x, for each head separately.
    With the zero router the update starts at zero, up to rounding; router_init="kaiming" is the
    released code's start, which is off the base from the first step.
    """

    method = MethodType.RLORA

    router_init: str = field(
        default="zero", metadata={"help": "start of the router R: 'zero' or 'kaiming'"}
    )

    def _check(self) -> None:
        super()._check()
        if self.router_init not in ("zero", "kaiming"):
            raise ValueError(f"router_init is {self.router_init!r}; expected 'zero' or 'kaiming'")

    @property
    def scale(self) -> float:
        """lora_alpha / √r, always."""
        return self.lora_alpha / self.r**0.5


@dataclass
class MtlLoraConfig(AdapterConfig):
    """MTL-LoRA: an update for each task, made of shared factors (arXiv 2410.09437).

    ΔW_t = scale · Σᵢ softmax(w_t / τ)ᵢ Bᵢ Λ_t A for task t, scale = lora_alpha / r, or
    lora_alpha / √r with use_rslora; Bᵢ starts at zero, and so does every ΔW_t. The batch carries
    `multilora_task_ids`, the index of each row's task in `tasks`.
    """

    method = MethodType.MTLLORA

    tasks: list[str] = field(default_factory=list, metadata={"help": "names of the tasks"})
    temperature: float = field(default=0.5, metadata={"help": "τ of the softmax over w_t / τ"})
    diagonal: bool = field(default=False, metadata={"help": "Λ_t is diagonal, else (r, r)"})
    use_rslora: bool = field(default=False, metadata={"help": "scale is lora_alpha / sqrt(r)"})

    def _check(self) -> None:
        super()._check()
        if not isinstance(self.tasks, list | tuple) or not self.tasks:
            raise ValueError(f"tasks is {self.tasks!r}; expected the names of the tasks, a list")
        self.tasks = list(self.tasks)
        for task in self.tasks:
            # An export has a directory for each task.
            if not isinstance(task, str) or not task or task[0] == "." or set(task) & set("/\\\0"):
                raise ValueError(
                    f"task {task!r}: expected a name that a directory can have, no slash in it"
                )
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks {self.tasks}: a name stands there twice")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected a number above 0")
