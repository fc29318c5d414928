"""Find the n and r of MultiLoRA within a share of a model's parameters, and the LoRA of equal size.

    python -m multilora.budget --model llama-7b --share 2.5%

--model is llama-7b, llama-13b, llama-30b or llama-65b, or the directory, config.json or hub name
of any other model; without it, all four are used. Models are built without weights, so that even
the largest takes only seconds. The parameters of an adapter are given as shares of all parameters
of the base, and of those outside its embeddings and output head.
"""

import functools
import json
import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from peft import get_peft_model
from torch import nn

from analysis import UserError
from analysis.results import Row
from multilora import checked, command
from multilora.methods.config import MultiLoraConfig
from multilora.methods.layers import MultiLoraLinear
from multilora.training.settings import targets

# Hidden size, layers, heads (Touvron et al. 2023, table 2) and MLP width (from the weights).
LLAMA = {
    "llama-7b": (4096, 32, 32, 11008),
    "llama-13b": (5120, 40, 40, 13824),
    "llama-30b": (6656, 60, 52, 17920),
    "llama-65b": (8192, 80, 64, 22016),
}
VOCABULARY = 32000
# Errors that transformers raises for a config from which no model can be built.
UNBUILDABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    StrictDataclassError,
)


@dataclass(frozen=True)
class BudgetSettings:
    """Settings of the command."""

    model: str = field(
        default="", metadata={"help": "llama-7b …, a directory, config.json or hub name"}
    )
    share: str = field(default="2.5%", metadata={"help": "share of the base's parameters"})
    target_modules: str = field(
        default="all-linear", metadata={"help": "names, separated by commas, or a regex"}
    )
    n: list[int] = field(
        default_factory=lambda: [1, 2, 3, 4, 5, 8],
        metadata={"help": "numbers of modules of MultiLoRA"},
    )
    json: bool = field(default=False, metadata={"help": "print JSON instead of tables"})

    def __post_init__(self) -> None:
        share_of(self.share)
        for n in self.n:
            if n < 1:
                raise UserError(f"n is {n}; expected at least 1")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model from which the number of parameters of any adapter follows.

    parameters: number of parameters of the base.
    outside: number of parameters outside its embeddings and output head.
    layers: number of adapted layers.
    d_in, d_out: sums of the input and output sizes of the adapted layers.
    full: full rank of the smallest adapted layer, min(d_in, d_out).
    """

    parameters: int
    outside: int
    layers: int
    d_in: int
    d_out: int
    full: int

    def lora(self, r: int) -> int:
        """Number of parameters of LoRA of rank r: A (r, d_in) and B (d_out, r) per layer."""
        return r * (self.d_in + self.d_out)

    def multilora(self, n: int, r: int) -> int:
        """Number of parameters of MultiLoRA: LoRA of rank n·r, and n scales per output feature."""
        return self.lora(n * r) + n * self.d_out

    def rank_within(self, budget: Fraction, n: int) -> int:
        """Largest r with multilora(n, r) ≤ budget; 0 or less if no rank fits."""
        return int((budget / n - self.d_out) // (self.d_in + self.d_out))

    def nearest_rank(self, budget: Fraction, n: int) -> int:
        """The r ≥ 1 with multilora(n, r) nearest to the budget; in a tie, the smaller one."""
        r = max(1, self.rank_within(budget, n))
        below, above = (abs(self.multilora(n, k) - budget) for k in (r, r + 1))
        return r if below <= above else r + 1

    def nearest_lora(self, parameters: int) -> int:
        """The rank ≥ 1 of LoRA with the nearest number of parameters; in a tie, the smaller one."""
        half_down = Fraction(parameters, self.d_in + self.d_out) - Fraction(1, 2)
        return max(1, math.ceil(half_down))


@dataclass(frozen=True)
class BudgetRow:
    """The largest r within the budget for one n, and the LoRA nearest in size."""

    n: int
    r: int
    parameters: int
    share: float
    share_outside: float
    lora_rank: int
    lora_parameters: int


def share_of(text: str) -> Fraction:
    """Read '2.5%' or '0.025' as an exact number in (0, 1]; raise UserError for anything else."""
    number = text.strip().removesuffix("%")
    try:
        # Test it as a float first: an exponent may be too large for a Fraction.
        value = Fraction(number) if "/" in number or float(number) > 0 else Fraction(0)
    except (ValueError, ZeroDivisionError, OverflowError):
        value = Fraction(0)
    if text.strip().endswith("%"):
        value /= 100
    if not 0 < value <= 1:
        raise UserError(
            f"share is {text!r}; expected a percentage such as 2.5%, or a number in (0, 1]"
        )
    return value


def config_of(name: str) -> Any:
    """Return the transformers config of a LLaMA by name, a directory, JSON file or hub name."""
    if name not in LLAMA:
        checked.counts(transformers.PretrainedConfig.get_config_dict(name)[0], "its config")
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    width, layers, heads, mlp = LLAMA[name]
    return transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )


def build(config: Any) -> nn.Module:
    """Build the model of a config on the meta device, with shapes but no weights.

    Its class is the one that the config names; by default the causal language model of the config's
    type, or the bare model if that type has none.
    """
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    with torch.device("meta"):
        for cls in named:
            if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
                return cls(config)
        if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            return transformers.AutoModelForCausalLM.from_config(config)
        return transformers.AutoModel.from_config(config)


def measure(model: Any, target_modules: str = "all-linear") -> Sizes:
    """Measure the sizes of a model, adapting it in place: PEFT chooses the layers that match."""
    parameters = sum(p.numel() for p in model.parameters())
    # A head that is tied to the embedding is counted once.
    ends = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    ends += [head] if (head := model.get_output_embeddings()) is not None else []
    outside = parameters - sum({p: p.numel() for m in ends for p in m.parameters()}.values())
    config = MultiLoraConfig(r=1, n=1, target_modules=targets(target_modules))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers warns of what PEFT calls
        adapted = get_peft_model(model, config)
    layers = [m for m in adapted.modules() if isinstance(m, MultiLoraLinear)]
    return Sizes(
        parameters=parameters,
        outside=outside,
        layers=len(layers),
        d_in=sum(layer.in_features for layer in layers),
        d_out=sum(layer.out_features for layer in layers),
        full=min(min(layer.in_features, layer.out_features) for layer in layers),
    )


def sizes_of(name: str, target_modules: str = "all-linear") -> Sizes:
    """Return the sizes of a model by name; raise UserError if no model can be built.

    name: a LLaMA, or a directory, config.json or hub name. target_modules: see `measure`.
    """
    return _of_llama(name, target_modules) if name in LLAMA else _measured(name, target_modules)


@functools.cache  # several tables and tests need the same models, which take seconds to build
def _of_llama(name: str, target_modules: str) -> Sizes:
    return _measured(name, target_modules)


def _measured(name: str, target_modules: str) -> Sizes:
    """Build a model without weights and measure it."""
    with checked.loading("its config"):
        try:
            model = build(config_of(name))
        except UNBUILDABLE as error:
            kind = f"{type(error).__name__}: {error}"
            raise UserError(f"no model can be built from its config ({kind})") from None
    return measure(model, target_modules)


def rows(sizes: Sizes, share: Fraction, counts: Iterable[int]) -> list[BudgetRow]:
    """Return one row for each n of `counts` with an r ≥ 1 within `share` of all parameters."""
    rows = []
    for n in counts:
        r = sizes.rank_within(share * sizes.parameters, n)
        if r < 1:
            continue
        parameters = sizes.multilora(n, r)
        rank = sizes.nearest_lora(parameters)
        rows.append(
            BudgetRow(
                n=n,
                r=r,
                parameters=parameters,
                share=parameters / sizes.parameters,
                share_outside=parameters / sizes.outside,
                lora_rank=rank,
                lora_parameters=sizes.lora(rank),
            )
        )
    return rows


def _size_row(model: str, sizes: Sizes, n: int, r: int) -> dict[str, Any]:
    """Number of parameters of MultiLoRA on a model, and its shares of the model's."""
    parameters = sizes.multilora(n, r)
    return {
        "model": model,
        "n": n,
        "r": r,
        "parameters": parameters,
        "share": parameters / sizes.parameters,
        "share_outside": parameters / sizes.outside,
    }


def words(sizes: Sizes, share: Fraction, counts: Sequence[int]) -> list[str]:
    """Sentences: the (n, r) nearest to the share, of all parameters and of those outside."""
    lines = []
    for of, total in (
        ("all parameters", sizes.parameters),
        ("those outside embeddings and head", sizes.outside),
    ):
        near = []
        for n in counts:
            r = sizes.nearest_rank(share * total, n)
            near.append(f"n = {n}, r = {r} ({percent(sizes.multilora(n, r) / total)})")
        lines.append(f"Nearest to {percent(float(share))} of {of}: {'; '.join(near)}.")
    if any(n * sizes.rank_within(share * sizes.parameters, n) > sizes.full for n in counts):
        lines.append(f"n·r above {sizes.full} exceeds the full rank of the smallest adapted layer.")
    return lines


def percent(share: float) -> str:
    """Format a share as a percentage of three digits."""
    return f"{100 * share:#.3g} %"


def lines(name: str, sizes: Sizes, rows: Sequence[BudgetRow]) -> list[str]:
    """Lines of the printed table of one model."""
    heading = ("n", "r", "parameters", "of all", "of outside", "LoRA's r", "its parameters")
    cells = [
        (
            str(row.n),
            str(row.r),
            f"{row.parameters:,}",
            percent(row.share),
            percent(row.share_outside),
            str(row.lora_rank),
            f"{row.lora_parameters:,}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heading, *cells, strict=True)]
    first = (
        f"{name}: {sizes.parameters:,} parameters, {sizes.outside:,} outside embeddings and head; "
        f"{sizes.layers} layers adapted"
    )
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in (heading, *cells)
    ]
    return [first, *table]


def answer(settings: BudgetSettings) -> str:
    """Return the text that the command prints."""
    share = share_of(settings.share)
    texts, objects = [], []
    for name in [settings.model] if settings.model else LLAMA:
        try:
            sizes = sizes_of(name, settings.target_modules)
            fitting = rows(sizes, share, settings.n)
            if not fitting:
                least = percent(sizes.multilora(1, 1) / sizes.parameters)
                raise UserError(
                    f"no MultiLoRA of n = {', '.join(map(str, settings.n))} is as small as "
                    f"{settings.share}; n = 1, r = 1 is {least}"
                )
        except (ValueError, OSError) as error:
            raise UserError(f"{name}: {error}") from None
        sentences = words(sizes, share, settings.n)
        texts.append("\n".join([*lines(name, sizes, fitting), *sentences]))
        objects.append(
            {
                "model": name,
                **asdict(sizes),
                "rows": [asdict(row) for row in fitting],
                "words": sentences,
            }
        )
    if settings.json:
        return json.dumps({"share": float(share), "models": objects}, indent=2)
    return "\n\n".join(texts)


def llama_budget(share: str = "2.5%", counts: Sequence[int] = (1, 2, 3, 4, 5, 8)) -> list[Row]:
    """Rows of llama_budget.csv: the r nearest to a share of all parameters, per LLaMA and n.

    All linear layers except the head are adapted. share: of all parameters of the model;
    share_outside: of those outside embeddings and head.
    """
    wanted = share_of(share)
    rows: list[Row] = []
    for model in LLAMA:
        sizes = sizes_of(model)
        for n in counts:
            r = sizes.nearest_rank(wanted * sizes.parameters, n)
            rows.append(_size_row(model, sizes, n, r))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return command.run(
        "multilora.budget",
        parse=lambda: command.settings_from(BudgetSettings, __doc__, argv),
        work=answer,
    )


if __name__ == "__main__":
    sys.exit(main())
