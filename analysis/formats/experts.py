"""Bank of task experts: experts.json, and one directory with a PEFT LoRA adapter per task.

    experts.json    {"format": "multilora-experts", "version": 1, "tasks": ["law", "medicine"]}
    law/            adapter_config.json, adapter_model.safetensors
    medicine/       …

One update for each module and task, whose part is the task. `peft` reads each expert.
"""

from collections.abc import Iterator
from dataclasses import replace

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.regular import is_plain
from analysis.files.tensors import short
from analysis.formats import Options, peft
from analysis.update import Entry, Other, Skipped

STEMS: tuple[str, ...] = ()
# The same names are in `multilora.methods.experts`, which must not import this package.
CONFIG = "experts.json"
FORMAT = "multilora-experts"
VERSION = 1


def recognise(place: Place) -> bool:
    """Return whether the directory holds a bank of experts."""
    return (place.path / CONFIG).exists()


def directories(place: Place) -> list[Place]:
    """Return the directories of the experts, in the order of their tasks.

    Raises CheckpointError if experts.json is broken, or if it names an expert that is missing.
    """
    config, where = place.json(CONFIG), place.path / CONFIG
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        raise CheckpointError(
            f"{where}: format is {short(config.get('format'))}, version"
            f" {short(config.get('version'))}; expected {FORMAT!r}, {VERSION}"
        )
    tasks = config.get("tasks")
    if not isinstance(tasks, list) or not tasks or not all(map(is_plain, tasks)):
        raise CheckpointError(
            f"{where}: tasks is {short(tasks)}; expected the names of directories next to it"
        )
    if len(set(tasks)) < len(tasks):
        raise CheckpointError(f"{where}: a task appears twice in {short(tasks)}")
    for task in tasks:
        if not (place.path / task / peft.CONFIG).is_file():
            raise CheckpointError(
                f"{place.path / task}: no expert here; {CONFIG} names it, expected {peft.CONFIG}"
                f" with {peft.STEM}.safetensors"
            )
    return [place.below(task) for task in tasks]


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of every expert.

    Raises CheckpointError, before the first update, if one of the experts cannot be read.
    """
    experts = directories(place)
    for expert in experts:
        peft_type = expert.json(peft.CONFIG).get("peft_type")
        if peft_type != "LORA":
            raise CheckpointError(
                f"{expert.path / peft.CONFIG}: peft_type is {short(peft_type)}; expected 'LORA'"
            )
        expert.tensors(peft.weights(expert))
    for expert in experts:
        task = expert.path.name
        for entry in peft.read(expert, options):
            if isinstance(entry, Other):
                yield replace(entry, name=f"{task}/{entry.name}")
            elif isinstance(entry, Skipped):
                yield entry
            else:
                part = f"{task}.{entry.part}" if entry.part else task
                yield replace(entry, part=part, method="expert")
