"""Task experts: experts.json beside a directory for each task, in which an ordinary PEFT LoRA lies.

    experts.json    {"format": "multilora-experts", "version": 1, "tasks": ["law", "medicine"]}
    law/            adapter_config.json, adapter_model.safetensors
    medicine/       …

One update a module and task: its part is the task. What the experts are is read by `peft`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from analysis import CheckpointError
from analysis.formats import Options, peft, shards
from analysis.formats.tensors import read_json, short
from analysis.update import Entry, Other, Skipped

CONFIG = "experts.json"
FORMAT = "multilora-experts"
VERSION = 1


def recognises(path: Path) -> bool:
    """Whether `path` holds a bank of experts."""
    return (path / CONFIG).exists()


def directories(path: Path) -> list[Path]:
    """Where the experts lie, in the order of their tasks; CheckpointError where one is missing."""
    config, where = read_json(path / CONFIG), path / CONFIG
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        raise CheckpointError(
            f"{where}: format is {short(config.get('format'))}, version"
            f" {short(config.get('version'))}; expected {FORMAT!r}, {VERSION}"
        )
    tasks = config.get("tasks")
    if not isinstance(tasks, list) or not tasks or not all(map(_is_name, tasks)):
        raise CheckpointError(
            f"{where}: tasks is {short(tasks)}; expected the names of directories beside it"
        )
    if len(set(tasks)) < len(tasks):
        raise CheckpointError(f"{where}: a task stands twice in {short(tasks)}")
    for task in tasks:
        if not (path / task / peft.CONFIG).is_file():
            raise CheckpointError(
                f"{path / task}: no expert here; {CONFIG} names it, expected {peft.CONFIG} with"
                f" {peft.STEM}.safetensors"
            )
    return [path / task for task in tasks]


def _is_name(task: object) -> bool:
    """Whether it is the name of a directory, and leads nowhere else."""
    return isinstance(task, str) and task not in ("", ".", "..") and not set(task) & set("/\\\0")


def read(path: Path, options: Options) -> Iterator[Entry]:
    """The updates of every expert; CheckpointError, before the first, where one is not whole."""
    experts = directories(path)
    for expert in experts:
        peft_type = read_json(expert / peft.CONFIG).get("peft_type")
        if peft_type != "LORA":
            raise CheckpointError(
                f"{expert / peft.CONFIG}: peft_type is {short(peft_type)}; expected 'LORA'"
            )
        shards.open_located(peft.weights(expert))
    for expert in experts:
        for entry in peft.read(expert, options):
            if isinstance(entry, Other):
                yield replace(entry, name=f"{expert.name}/{entry.name}")
            elif isinstance(entry, Skipped):
                yield entry
            else:
                part = f"{expert.name}.{entry.part}" if entry.part else expert.name
                yield replace(entry, part=part, method="expert")
