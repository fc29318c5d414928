"""Fine-tunes a model on the tasks and writes the checkpoint of ΔW.

    python -m multilora.train --method multilora [--model DIR] [--output_dir DIR] …

Every argument of transformers' TrainingArguments is accepted beside those below. Without --model
the built-in base is fine-tuned, on the built-in suite; --tasks alpaca:FILE,mmlu:DIR,superglue:DIR
trains a model on public data (docs/tasks.md). All linear layers but the output head are
trained unless --target_modules says otherwise; everything else is frozen, for every method.
--method peft:NAME trains with a method of PEFT's own: peft:DORA, peft:PISSA, peft:VERA, …

The same command again goes on where a run was cut off, from its newest whole checkpoint, and ends
with the same bits. --from RUN/run.json trains a run again.
"""

import copy
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists

from analysis import floor
from multilora import (
    base,
    command,
    config,
    delta,
    experts,
    guard,
    layers,
    mtllora,
    peft_methods,
    record,
    repeat,
    resume,
    rlora,
    rows,
    scoring,
    trainer,
    tuner,
)
from multilora.config import MtlLoraConfig, MultiLoraConfig, RLoraConfig
from multilora.experts import ExpertBank
from multilora.rows import Rows
from multilora.tasks import (
    corpus,
    data,
    encoding,
    example,
    instruction,
    knowledge,
    mixture,
    splits,
    suite,
    tokens,
    understanding,
    world,
)
from multilora.tasks.data import Data
from multilora.tasks.example import SPLITS
from multilora.trainer import TrainArguments

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

# Whatever a run's result passes through, beside the versions of the libraries.
CODE = {
    "train": sys.modules[__name__],
    "trainer": trainer,
    "config": config,
    "layers": layers,
    "tuner": tuner,
    "rlora": rlora,
    "mtllora": mtllora,
    "experts": experts,
    "peft": peft_methods,
    "delta": delta,
    "floor": floor,
    "scoring": scoring,
    "rows": rows,
    "world": world,
    "corpus": corpus,
    "splits": splits,
    "example": example,
    "instruction": instruction,
    "understanding": understanding,
    "knowledge": knowledge,
    "suite": suite,
    "encoding": encoding,
    "mixture": mixture,
    "data": data,
}
# Arguments that say where a run goes and what it prints, not what comes out.
APART = (
    *("output_dir", "disable_tqdm", "logging_dir", "resume_from_checkpoint", "local_rank"),
    *("save_strategy", "save_steps", "save_total_limit", "token_cache"),
)


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
            peft_methods.check(self.method, self.peft_config)
            if not peft_methods.is_kin(self.method) and (self.scale != 2 or self.dropout):
                raise ValueError(
                    f"scale and dropout are of LoRA; {self.method} has its own, in --peft_config"
                )
        elif self.method not in DEFAULTS:
            names = ", ".join([*DEFAULTS, "peft:NAME"])
            raise ValueError(f"method is {self.method!r}; expected one of {names}")
        elif self.peft_config:
            raise ValueError("peft_config belongs to the methods peft:NAME")
        if (self.b_lr_ratio != 1) != (self.method == "lora+"):
            raise ValueError("b_lr_ratio other than 1 belongs to method lora+, and only to it")
        if self.scale_lr_ratio != 1 and self.method != "multilora":
            raise ValueError("scale_lr_ratio belongs to method multilora")
        if not (math.isfinite(self.scale) and 0 <= self.dropout < 1 and self.r >= 0 and self.n > 0):
            raise ValueError(
                f"r is {self.r}, n is {self.n}, scale is {self.scale}, dropout is {self.dropout};"
                " expected r ≥ 0, n ≥ 1, a finite scale, 0 ≤ dropout < 1"
            )
        if self.method == "full" and (self.r or self.dropout):
            raise ValueError("r and dropout are of adapters; method full has none")
        if self.start not in ("kaiming", "zero"):
            raise ValueError(f"start is {self.start!r}; expected kaiming or zero")
        if self.start != "kaiming" and self.method != "multilora":
            raise ValueError("start belongs to method multilora")
        mixture.temperature(self.mixture)
        for count in ("per_task", "per_task_scored"):
            if getattr(self, count) < 0:
                raise ValueError(f"{count} is {getattr(self, count)}; expected 0, or a number")

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


def prepare(
    model: Any, settings: TrainSettings, steps: int = 1, tasks: Sequence[str] = tuple(suite.TASKS)
) -> Any:
    """The model with what `settings.method` trains made trainable and the rest frozen.

    steps: how many there will be, for a method that has a schedule of its own; tasks: those of a
    method that tells tasks apart.
    """
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
        zero = settings.start == "zero"
        given = {"start_b": settings.start, "start_s": 1.0 if zero else 0.0, **common}
        return get_peft_model(model, MultiLoraConfig(r=settings.rank, n=settings.n, **given))
    if settings.method == "expert":
        return ExpertBank(model, LoraConfig(r=settings.rank, **common), list(tasks))
    if settings.method == "rlora":
        return get_peft_model(model, RLoraConfig(r=settings.rank, n=settings.n, **common))
    if settings.method == "mtllora":
        by_task = MtlLoraConfig(r=settings.rank, n=settings.n, tasks=list(tasks), **common)
        return get_peft_model(model, by_task)
    if peft_methods.is_named(settings.method):
        own = (settings.peft_config, settings.rank, steps, common)
        return peft_methods.wrap(model, settings.method, *own)
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
    guard.check_launch(arguments)
    trainer.check(arguments)
    out = Path(arguments.output_dir)
    path = base_of(settings)
    chosen = data.load(settings.tasks)
    transformers.set_seed(arguments.seed)  # not before: training the base would use it up
    model, tokenizer = delta.load_base(path)
    made_from = inputs(path, settings, arguments, chosen)
    arranged = _arrange(
        settings, arguments, chosen, tokenizer, encoding.context_of(model, tokenizer)
    )
    notes = [*chosen.notes, *arranged.notes()]
    if (out / "run.json").is_file() and not is_done(settings, arguments):
        notes.append(f"{out}: the result of another run will be replaced")
    if arguments.process_index == 0:
        print(*notes, sep="\n", end="\n" * bool(notes), file=sys.stderr)
    model = prepare(model, settings, arranged.steps(arguments), list(chosen.family_of))
    if settings.packing:
        rows.check_packing(model, len(tokenizer))
    made_of = fingerprint(settings, arguments, chosen)
    mark = record.fingerprint(made_of, made_from)
    whole = partial(resume.newest, out, mark, arguments.world_size)
    start = resume.choose(arguments.resume_from_checkpoint, out, mark, arguments.world_size)
    if start:
        peft_methods.check_resumable(settings.method)
    watch = guard.Guard(whole)
    once = copy.copy(arguments)
    once.num_train_epochs = 1  # the data hold every epoch
    work = trainer.AdapterTrainer(
        model,
        once,
        train_dataset=arranged.rows,
        data_collator=lambda batch: encoding.collate(batch, tokenizer.pad_token_id or 0),
        callbacks=[
            *(resume.RunMark(mark), watch, *peft_methods.callbacks(settings.method)),
            *callbacks,
        ],
        lr_ratios={"lora_B": settings.b_lr_ratio, "multilora_s": settings.scale_lr_ratio},
    )
    if work.is_world_process_zero():
        with guard.writing(out):
            peft_methods.save_initial(model, out)
    with watch.watching(arguments):
        work.train(resume_from_checkpoint=str(start) if start else None)
        guard.check_parameters(model, work.state.global_step)
    if work.is_world_process_zero():
        scores = {
            split: scoring.score(model, tokenizer, items)
            for split in ("validation", "test")
            if (items := chosen.split(split, settings.per_task_scored))
        }
        with guard.writing(out):
            (out / "run.json").unlink(missing_ok=True)
            delta.save(model, path, out)
            facts = {
                "fingerprint": made_of,
                "method": settings.name,
                "settings": asdict(settings),
                "arguments": trainer.changed(arguments),
                "seed": arguments.seed,
                **made_from,
                "notes": notes,
                "real_tokens": arranged.real,
                "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "step": work.state.global_step,
                "losses": [entry for entry in work.state.log_history if "loss" in entry],
                "scores": scores,
                "weights": delta.hashes(out),
                "environment": record.environment(),
            }
            record.write_json(out / "run.json", facts)
    return out


def base_of(settings: TrainSettings) -> str:
    """The directory or hub name of the base; the built-in one is trained if it is not there."""
    if settings.tasks and not settings.model:
        raise ValueError(
            "the built-in base knows the words of the built-in suite alone: pass --model with "
            "--tasks, or make a base from the tasks' own text, python -m multilora.base --tasks …"
        )
    return settings.model or str(base.ensure(base.BaseSettings()))


def _arrange(
    settings: TrainSettings, arguments: TrainArguments, chosen: Data, tokenizer: Any, context: int
) -> Rows:
    """The rows of a run in their order."""
    examples = chosen.split("train", settings.per_task)
    told = list(chosen.family_of) if settings.method in BY_TASK else []
    if chosen.files:
        encoded = tokens.cached(tokenizer, examples, context, told, Path(settings.token_cache))
    else:
        encoded = encoding.encode_all(tokenizer, examples, context, told)
    names = [e.task for e in examples]
    return rows.arrange(encoded, names, arguments, context, settings.mixture, settings.packing)


def inputs(
    path: str, settings: TrainSettings, arguments: TrainArguments, chosen: Data
) -> dict[str, Any]:
    """What a run is made from beside its settings: base, data and number of processes."""
    examples = chosen.split("train", settings.per_task)
    return {
        "base": {"path": path, "sha256": delta.weight_files(path)},
        "data": {"examples": len(examples), "sha256": data.sha256(examples), "files": chosen.files},
        "processes": arguments.world_size,
    }


def fingerprint(
    settings: TrainSettings, arguments: TrainArguments, chosen: Data | None = None
) -> str:
    """Of all that a run's result depends on: settings, arguments, data, versions and code.

    chosen: the data, where they are loaded already. The base counts by its path; the built-in
    base's names all that it was made of. Examples from files count themselves, not the code that
    read them.
    """
    given = {k: v for k, v in trainer.changed(arguments).items() if k not in APART}
    asked = {k: v for k, v in asdict(settings).items() if k not in APART}
    parts = [asked, given, record.environment()["versions"], CODE]
    if settings.tasks:
        chosen = chosen or data.load(settings.tasks)
        parts += [data.sha256(chosen.split(split)) for split in SPLITS]
    return record.fingerprint(*parts)


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
        arguments.learning_rate = defaults(settings.method)["learning_rate"]
    if not arguments.output_dir:
        arguments.output_dir = f"runs/{settings.run_name(arguments.seed)}"


def _again(words: Sequence[str]) -> Path:
    """The run that --from names once more, with as many threads."""
    settings, arguments, was = repeat.read(words, TrainSettings, TrainArguments)
    path = base_of(settings)
    repeat.check(was, inputs(path, settings, arguments, data.load(settings.tasks)))
    with record.threads(was["environment"]["threads"]):
        out = run(settings, arguments)
    if arguments.process_index == 0:
        repeat.compare(was, out)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)

    def work() -> str:
        if repeat.is_asked(words):
            return str(_again(words))
        given = command.settings_from((TrainSettings, TrainArguments), __doc__, words)
        complete(*given)
        return str(run(*given))

    return command.run("multilora.train", work)


if __name__ == "__main__":
    sys.exit(main())
