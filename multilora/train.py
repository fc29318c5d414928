"""Fine-tune a model on the tasks and write a checkpoint of ΔW.

    python -m multilora.train --method multilora [--model DIR] [--output_dir DIR] …

Every argument of transformers' TrainingArguments is accepted in addition to those below. Without
--model the built-in base is fine-tuned, on the built-in suite; --tasks
alpaca:FILE,mmlu:DIR,superglue:DIR trains a model on public data (docs/tasks.md). Every method
trains all linear layers except the output head, unless --target_modules selects others, and
freezes the rest. --method peft:NAME trains with one of PEFT's own methods: peft:DORA, peft:PISSA,
peft:VERA, …

If a run is interrupted, the same command continues it from its newest complete checkpoint and ends
with the same bits. --from RUN/run.json repeats a run.
"""

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import transformers

from analysis.files import exchange
from multilora import base, command, delta, record
from multilora.methods import peft as peft_methods
from multilora.tasks import data, encoding, mixture, scoring, tokens
from multilora.tasks.data import Data
from multilora.tasks.example import Example
from multilora.training import guard, identity, repeat, resume, rows, trainer
from multilora.training.identity import Identity
from multilora.training.prepare import prepare
from multilora.training.rows import Rows
from multilora.training.settings import BY_TASK, TrainSettings, complete
from multilora.training.trainer import AdapterTrainer, TrainArguments


@dataclass(frozen=True)
class Loaded:
    """The base and the data of a run.

    base: directory or hub name of the base; model, tokenizer: the base itself; tasks: the data;
    examples: the training examples among them.
    """

    base: str
    model: Any
    tokenizer: Any
    tasks: Data
    examples: list[Example]


def run(
    settings: TrainSettings,
    arguments: TrainArguments,
    callbacks: Sequence[transformers.TrainerCallback] = (),
    repeated: Mapping[str, Any] | None = None,
) -> Path:
    """Train, score on the held-out items and write everything into `arguments.output_dir`.

    settings: method, base, tasks and adapter.
    arguments: how it is trained; `settings.complete` fills in the defaults.
    callbacks: for Trainer, in addition to our own.
    repeated: run.json of a run that this one repeats; raises UserError if base, data or number of
        processes differ.

    Returns the directory. `run.json` is written last: a run that has one is complete.
    """
    guard.check_launch(arguments)
    trainer.check(arguments)
    if arguments.process_index == 0:
        exchange.complete(Path(arguments.output_dir))
    guard.check_output(Path(arguments.output_dir))
    loaded = load(settings, arguments.seed)
    own = identify(settings, arguments, loaded)
    if repeated is not None:
        repeat.check(repeated, own.inputs)
    arranged = arrange(settings, arguments, loaded)
    notes = [*loaded.tasks.notes, *arranged.notes(), *replaced(settings, arguments, own)]
    if arguments.process_index == 0:
        for note in notes:
            print(note, file=sys.stderr)
    model = prepare(loaded.model, settings, arranged.steps(arguments), list(loaded.tasks.family_of))
    if settings.packing:
        rows.check_packing(model, len(loaded.tokenizer))
    fitted = fit(model, loaded.tokenizer, arranged, settings, arguments, own.mark, callbacks)
    out = Path(arguments.output_dir)
    if fitted.is_world_process_zero():
        facts = {
            **describe(settings, arguments, own),
            "notes": notes,
            "real_tokens": arranged.real,
            **outcome(fitted),
            "scores": score(model, loaded, settings),
        }
        write(model, loaded.base, facts, out)
    return out


def load(settings: TrainSettings, seed: int) -> Loaded:
    """Load the base and the data, and set the seed of everything random that follows."""
    path = base.path_of(settings.model, settings.tasks)
    tasks = data.load(settings.tasks)
    transformers.set_seed(seed)  # not earlier: training the built-in base would change its state
    model, tokenizer = delta.load_base(path, settings.quantised)
    return Loaded(path, model, tokenizer, tasks, tasks.split("train", settings.per_task))


def identify(settings: TrainSettings, arguments: TrainArguments, loaded: Loaded) -> Identity:
    """Hash everything that the result depends on."""
    return Identity(
        identity.fingerprint(settings, arguments, loaded.tasks),
        identity.inputs(
            loaded.base, loaded.examples, loaded.tasks.files, processes=arguments.world_size
        ),
    )


def arrange(settings: TrainSettings, arguments: TrainArguments, loaded: Loaded) -> Rows:
    """Encode the training examples and put them into the order in which they are trained on."""
    context = encoding.context_of(loaded.model, loaded.tokenizer)
    if settings.max_length:
        context = min(context, settings.max_length)
    names = list(loaded.tasks.family_of) if settings.method in BY_TASK else []
    if loaded.tasks.files:
        cache = Path(settings.token_cache)
        encoded = tokens.cached(loaded.tokenizer, loaded.examples, context, names, cache)
    else:
        encoded = encoding.encode_all(loaded.tokenizer, loaded.examples, context, names)
    by_family = settings.mixture == mixture.FAMILIES
    of_task = [e.family if by_family else e.task for e in loaded.examples]
    return rows.arrange(encoded, of_task, arguments, context, settings.mixture, settings.packing)


def replaced(settings: TrainSettings, arguments: TrainArguments, own: Identity) -> list[str]:
    """A note if the output directory holds the result of another run."""
    out = Path(arguments.output_dir)
    if not (out / "run.json").is_file() or identity.is_done(settings, arguments, own.made_of):
        return []
    return [f"{out}: the result of another run will be replaced"]


def fit(
    model: Any,
    tokenizer: Any,
    arranged: Rows,
    settings: TrainSettings,
    arguments: TrainArguments,
    mark: str,
    callbacks: Sequence[transformers.TrainerCallback],
) -> AdapterTrainer:
    """Train the prepared `model` in place and return its Trainer.

    model, tokenizer: the prepared model and its tokenizer.
    arranged: the rows of all epochs, in order.
    settings, arguments: those of the run; the run continues from the checkpoint that
        `resume_from_checkpoint` selects.
    mark: hash by which the run recognises its own checkpoints.
    callbacks: for Trainer, in addition to our own.
    """
    out, processes = Path(arguments.output_dir), arguments.world_size
    start = resume.choose(arguments.resume_from_checkpoint, out, mark, processes)
    if start:
        with guard.refusals():
            peft_methods.check_resumable(settings.method)
    watch = guard.Guard(partial(resume.newest, out, mark, processes))
    once = copy.copy(arguments)
    once.num_train_epochs = 1  # the rows contain every epoch
    fitted = AdapterTrainer(
        model,
        once,
        train_dataset=arranged.rows,
        data_collator=lambda batch: encoding.collate(batch, tokenizer.pad_token_id or 0),
        callbacks=[
            resume.RunMark(mark),
            watch,
            *peft_methods.callbacks(settings.method),
            *callbacks,
        ],
        lr_ratios={"lora_B": settings.b_lr_ratio, "multilora_s": settings.scale_lr_ratio},
        by_example=settings.loss == "example",
    )
    if fitted.is_world_process_zero():
        with guard.writing(out):
            peft_methods.save_initial(model, out)
    with watch.watching(arguments):
        fitted.train(resume_from_checkpoint=str(start) if start else None)
        guard.check_parameters(model, fitted.state.global_step)
    return fitted


def describe(settings: TrainSettings, arguments: TrainArguments, own: Identity) -> dict[str, Any]:
    """The part of run.json that is known before training."""
    return {
        "fingerprint": own.made_of,
        "method": settings.name,
        "settings": asdict(settings),
        "arguments": trainer.changed(arguments),
        "seed": arguments.seed,
        **own.inputs,
    }


def outcome(fitted: AdapterTrainer) -> dict[str, Any]:
    """Number of trained parameters, steps and logged losses of a finished training."""
    trained = [p for p in fitted.model.parameters() if p.requires_grad]
    return {
        "parameters": sum(p.numel() for p in trained),
        "step": fitted.state.global_step,
        "losses": [entry for entry in fitted.state.log_history if "loss" in entry],
    }


def score(model: Any, loaded: Loaded, settings: TrainSettings) -> dict[str, Any]:
    """Share of right answers on the held-out items of each split that has any, and their NLL."""
    return {
        split: scoring.score(model, loaded.tokenizer, items, settings.decode)
        for split in ("validation", "test")
        if (items := loaded.tasks.split(split, settings.per_task_scored))
    }


def write(model: Any, base_path: str, facts: Mapping[str, Any], out: Path) -> None:
    """Replace the checkpoint of ΔW and run.json, with `facts` and the hashes of the weights."""
    with guard.writing(out), exchange.replacing(out, ["run.json", *delta.earlier(out)]) as new:
        delta.write(model, base_path, new)
        record.write_json(
            new / "run.json",
            {**facts, "weights": delta.hashes(new), "environment": record.environment()},
        )


Given = tuple[TrainSettings, TrainArguments, dict[str, Any] | None]


def _parse(words: Sequence[str]) -> Given:
    """Settings and arguments, and the run.json of the run that --from names, if it is given."""
    if repeat.is_asked(words):
        return repeat.parse(words, TrainSettings, TrainArguments)
    settings, arguments = command.settings_from((TrainSettings, TrainArguments), __doc__, words)
    complete(settings, arguments)
    return settings, arguments, None


def _train(given: Given) -> str:
    """Train a run, or repeat one with its number of threads; return its directory."""
    settings, arguments, was = given
    if was is None:
        return str(run(settings, arguments))
    with record.threads(was["environment"]["threads"]):
        out = run(settings, arguments, repeated=was)
    if arguments.process_index == 0:
        repeat.report_differences(was, out)
    return str(out)


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    return command.run("multilora.train", parse=lambda: _parse(words), work=_train)


if __name__ == "__main__":
    sys.exit(main())
