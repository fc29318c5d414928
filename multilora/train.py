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
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import transformers

from analysis import UserError
from multilora import base, command, delta, record
from multilora.methods import peft as peft_methods
from multilora.tasks import data, encoding, scoring, tokens
from multilora.tasks.data import Data
from multilora.training import guard, repeat, resume, rows, trainer
from multilora.training.identity import fingerprint, inputs, is_done
from multilora.training.prepare import prepare
from multilora.training.rows import Rows
from multilora.training.settings import BY_TASK, TrainSettings, complete
from multilora.training.trainer import TrainArguments


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
        with guard.refusals():
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
        raise UserError(
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


def _again(words: Sequence[str]) -> Path:
    """The run that --from names once more, with as many threads."""
    settings, arguments, was = repeat.parse(words, TrainSettings, TrainArguments)
    path = base_of(settings)
    repeat.check(was, inputs(path, settings, arguments, data.load(settings.tasks)))
    with record.threads(was["environment"]["threads"]):
        out = run(settings, arguments)
    if arguments.process_index == 0:
        repeat.report_differences(was, out)
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
