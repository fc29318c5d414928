"""The settings of an adapter method, stored as `adapter_config.json` beside its weights."""

import enum
from dataclasses import dataclass, field

from peft import PeftConfig


class MethodType(enum.StrEnum):
    """The peft_type of each method; its own enum, because PEFT's cannot be extended."""

    MULTILORA = "MULTILORA"


@dataclass
class MultiLoraConfig(PeftConfig):
    """MultiLoRA: n parallel low-rank modules a layer (arXiv 2311.11501, section 4).

    ΔW = scale · Σᵢ diag(sᵢ) Bᵢ Aᵢ, scale = lora_alpha / r, or lora_alpha / √r with use_rslora.
    It has the parameters of a LoRA of rank n·r, and n·d_out scales a layer. By default every Aᵢ
    and Bᵢ starts Kaiming-uniform and every sᵢ at zero, so that ΔW = 0 at the start.
    """

    r: int = field(default=8, metadata={"help": "rank of each module"})
    n: int = field(default=3, metadata={"help": "number of parallel modules"})
    lora_alpha: float = field(default=16, metadata={"help": "scale is lora_alpha / r"})
    use_rslora: bool = field(default=False, metadata={"help": "scale is lora_alpha / sqrt(r)"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout on a layer's input"})
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
    start_b: str = field(default="kaiming", metadata={"help": "start of B: 'kaiming' or 'zero'"})
    start_s: float = field(default=0.0, metadata={"help": "start of s: 0, or 1 with start_b zero"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MethodType.MULTILORA
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
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform beside it")
        if self.start_b not in ("kaiming", "zero"):
            raise ValueError(f"start_b is {self.start_b!r}; expected 'kaiming' or 'zero'")
        if self.start_b == "zero" and self.start_s == 0:
            raise ValueError("start_b='zero' with start_s=0: no gradient would ever flow")
        if self.start_b == "kaiming" and self.start_s != 0:
            raise ValueError("start_b='kaiming' with start_s != 0: ΔW would not start at zero")

    @property
    def scale(self) -> float:
        """What every module's product is multiplied with."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)
