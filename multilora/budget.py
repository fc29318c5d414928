"""Say which n and r of MultiLoRA meet a share of a model's parameters, and what LoRA has as many.

    python -m multilora.budget --model llama-7b --share 2.5%

--model is llama-7b, llama-13b, llama-30b or llama-65b, or the directory, config.json or hub name
of any other model; without it, all four. The model is built without weights, so that
the largest takes seconds. The parameters of an adapter are given as shares of all that the base
has, and of those outside its embeddings and output head.
"""

import json
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
from multilora import command
from multilora.methods.config import MultiLoraConfig
from multilora.methods.layers import MultiLoraLinear
from multilora.training.settings import targets

# Touvron et al. 2023, table 2: hidden size, layers, heads; the width of the MLP from the weights.
LLAMA = {
    "llama-7b": (4096, 32, 32, 11008),
    "llama-13b": (5120, 40, 40, 13824),
    "llama-30b": (6656, 60, 52, 17920),
    "llama-65b": (8192, 80, 64, 22016),
}
VOCABULARY = 32000
RANKS = range(1, 257)
# What a config that no model can be built from has raised.
UNBUILDABLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, TypeError),
    StrictDataclassError,
)


@dataclass(frozen=True)
class BudgetSettings:
    """What is asked for."""

    model: str = field(
        default="", metadata={"help": "llama-7b …, a directory, config.json or hub name"}
    )
    share: str = field(default="2.5%", metadata={"help": "of the base's parameters"})
    target_modules: str = field(
        default="all-linear", metadata={"help": "names, separated by commas, or a regex"}
    )
    n: list[int] = field(
        default_factory=lambda: [1, 2, 3, 4, 5, 8], metadata={"help": "modules of MultiLoRA"}
    )
    json: bool = field(default=False, metadata={"help": "print JSON instead of tables"})

    def __post_init__(self) -> None:
        share_of(self.share)
        for n in self.n:
            if n < 1:
                raise UserError(f"n is {n}; expected at least 1")


@dataclass(frozen=True)
class Sizes:
    """What the parameters of a model and of any adapter on it follow from.

    parameters: of the base; outside: those outside its embeddings and head; layers: how many are
    adapted; d_in, d_out: the sums of their sizes; full: the rank of the smallest of them.
    """

    parameters: int
    outside: int
    layers: int
    d_in: int
    d_out: int
    full: int

    def lora(self, r: int) -> int:
        """Parameters of LoRA of rank r: A (r, d_in) and B (d_out, r) a layer."""
        return r * (self.d_in + self.d_out)

    def multilora(self, n: int, r: int) -> int:
        """Parameters of MultiLoRA: those of LoRA of rank n·r, and n scales for each output."""
        return self.lora(n * r) + n * self.d_out

    def rank_within(self, budget: Fraction, n: int) -> int:
        """The largest r with multilora(n, r) <= budget; 0 or less where there is none."""
        return int((budget / n - self.d_out) // (self.d_in + self.d_out))

    def nearest_rank(self, budget: Fraction, n: int) -> int:
        """The r >= 1 whose multilora(n, r) is nearest to the budget; of two, the smaller."""
        r = max(1, self.rank_within(budget, n))
        below, above = (abs(self.multilora(n, k) - budget) for k in (r, r + 1))
        return r if below <= above else r + 1

    def nearest_lora(self, parameters: int) -> int:
        """The rank of LoRA with the nearest number of parameters."""
        return max(1, round(Fraction(parameters, self.d_in + self.d_out)))


@dataclass(frozen=True)
class BudgetRow:
    """One n: the largest r within the budget, and LoRA of equal budget."""

    n: int
    r: int
    parameters: int
    share: float
    share_outside: float
    lora_rank: int
    lora_parameters: int


def share_of(text: str) -> Fraction:
    """'2.5%' or '0.025' as an exact number in (0, 1]; ValueError for anything else."""
    number = text.strip().removesuffix("%")
    try:
        # As a float first: an exponent may be too long for a fraction.
        value = Fraction(number) if "/" in number or float(number) > 0 else Fraction(0)
    except (ValueError, ZeroDivisionError, OverflowError):
        value = Fraction(0)
    if text.strip().endswith("%"):
        value /= 100
    if not 0 < value <= 1:
        raise UserError(f"share is {text!r}; expected a percentage, as 2.5%, or a part of 1")
    return value


def config_of(name: str) -> Any:
    """The Transformers config of a built-in LLaMA, a directory, a JSON file or a hub name."""
    if name not in LLAMA:
        return transformers.AutoConfig.from_pretrained(name)
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
    """The model of a config on the meta device: shapes and no numbers.

    Of the class that the config names; else a causal language model where there is one of its
    kind, and the bare model where there is none.
    """
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    with torch.device("meta"):
        for cls in named:
            if cls is not None:
                return cls(config)
        if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            return transformers.AutoModelForCausalLM.from_config(config)
        return transformers.AutoModel.from_config(config)


def measure(model: Any, target_modules: str = "all-linear") -> Sizes:
    """The sizes of a model, which is adapted on the way: PEFT itself says which layers match."""
    parameters = sum(p.numel() for p in model.parameters())
    # A head that is tied to the embedding is counted once, as everywhere.
    ends = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    ends += [head] if (head := model.get_output_embeddings()) is not None else []
    outside = parameters - sum({p: p.numel() for m in ends for p in m.parameters()}.values())
    config = MultiLoraConfig(r=1, n=1, target_modules=targets(target_modules))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of Transformers, for what PEFT calls
        adapted = get_peft_model(model, config)
    layers = [m for m in adapted.modules() if isinstance(m, MultiLoraLinear)]
    return Sizes(
        parameters,
        outside,
        len(layers),
        sum(layer.in_features for layer in layers),
        sum(layer.out_features for layer in layers),
        min(min(layer.in_features, layer.out_features) for layer in layers),
    )


def rows(sizes: Sizes, share: Fraction, counts: Iterable[int]) -> list[BudgetRow]:
    """A row for each n of `counts` that has an r >= 1 within `share` of all parameters."""
    found = []
    for n in counts:
        r = sizes.rank_within(share * sizes.parameters, n)
        if r < 1:
            continue
        parameters = sizes.multilora(n, r)
        rank = sizes.nearest_lora(parameters)
        found.append(
            BudgetRow(
                n,
                r,
                parameters,
                parameters / sizes.parameters,
                parameters / sizes.outside,
                rank,
                sizes.lora(rank),
            )
        )
    return found


def curve(
    models: Iterable[str] = LLAMA, counts: Iterable[int] = (1, 3, 5), ranks: Iterable[int] = RANKS
) -> list[dict[str, Any]]:
    """The share of a model's parameters against r, a row a model, n and r: what budgets allow.

    share: of all its parameters; share_outside: of those outside embeddings and head.
    """
    counts, ranks = tuple(counts), tuple(ranks)
    return [
        {
            **{"model": name, "n": n, "r": r, "parameters": (p := sizes.multilora(n, r))},
            **{"share": p / sizes.parameters, "share_outside": p / sizes.outside},
        }
        for name in models
        for sizes in (measure(_built(name)),)
        for n in counts
        for r in ranks
    ]


def words(sizes: Sizes, share: Fraction, counts: Sequence[int]) -> list[str]:
    """The (n, r) nearest to the share, of all parameters and of those outside the embeddings."""
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
        lines.append(f"n·r above {sizes.full} is more than the rank of the smallest layer adapted.")
    return lines


def percent(share: float) -> str:
    return f"{100 * share:#.3g} %"


def lines(name: str, sizes: Sizes, found: Sequence[BudgetRow]) -> list[str]:
    """A table of one model."""
    heading = ("n", "r", "parameters", "of all", "of outside", "LoRA's r", "its parameters")
    cells = [
        (
            *(str(row.n), str(row.r), f"{row.parameters:,}"),
            *(percent(row.share), percent(row.share_outside)),
            *(str(row.lora_rank), f"{row.lora_parameters:,}"),
        )
        for row in found
    ]
    widths = [max(map(len, column)) for column in zip(heading, *cells, strict=True)]
    return [
        f"{name}: {sizes.parameters:,} parameters, {sizes.outside:,} outside embeddings and head; "
        f"{sizes.layers} layers adapted",
        *(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in (heading, *cells)
        ),
    ]


def _built(name: str) -> nn.Module:
    """The model of that name without weights; ValueError where its config makes none."""
    try:
        return build(config_of(name))
    except UNBUILDABLE as error:
        kind = f"{type(error).__name__}: {error}"
        raise UserError(f"no model can be built from its config ({kind})") from None


def answer(settings: BudgetSettings) -> str:
    """What the command prints."""
    share = share_of(settings.share)
    texts, objects = [], []
    for name in [settings.model] if settings.model else LLAMA:
        try:
            sizes = measure(_built(name), settings.target_modules)
            found = rows(sizes, share, settings.n)
            if not found:
                least = percent(sizes.multilora(1, 1) / sizes.parameters)
                raise UserError(
                    f"no MultiLoRA of n = {', '.join(map(str, settings.n))} is as small as "
                    f"{settings.share}; n = 1, r = 1 is {least}"
                )
        except (ValueError, OSError) as error:
            raise UserError(f"{name}: {error}") from None
        said = words(sizes, share, settings.n)
        texts.append("\n".join([*lines(name, sizes, found), *said]))
        objects.append(
            {"model": name, **asdict(sizes), "rows": [asdict(r) for r in found], "words": said}
        )
    if settings.json:
        return json.dumps({"share": float(share), "models": objects}, indent=2)
    return "\n\n".join(texts)


def llama_budget(share: str = "2.5%", counts: Sequence[int] = (1, 2, 3, 4, 5, 8)) -> list[Row]:
    """llama_budget.csv, a row a LLaMA and n: the r whose share of all parameters is nearest.

    All linear layers but the head are adapted, as in `multilora.budget`. share: of all
    parameters; share_outside: of those outside embeddings and head.
    """
    wanted = share_of(share)
    rows = []
    for model in LLAMA:
        sizes = measure(build(config_of(model)))
        for n in counts:
            r = sizes.nearest_rank(wanted * sizes.parameters, n)
            parameters = sizes.multilora(n, r)
            rows.append(
                {
                    **{"model": model, "n": n, "r": r, "parameters": parameters},
                    "share": parameters / sizes.parameters,
                    "share_outside": parameters / sizes.outside,
                }
            )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    return command.run(
        "multilora.budget",
        parse=lambda: command.settings_from(BudgetSettings, __doc__, argv),
        work=answer,
    )


if __name__ == "__main__":
    sys.exit(main())
