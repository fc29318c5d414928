"""Identify a run by everything that its result depends on, and recognise a finished run."""

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from analysis import UserError
from multilora import delta, record
from multilora.methods import experts
from multilora.tasks import data
from multilora.tasks.data import Data
from multilora.tasks.example import SPLITS, Example
from multilora.training import trainer
from multilora.training.settings import SETTINGS_WITHOUT_EFFECT, TrainSettings
from multilora.training.trainer import ARGUMENTS_WITHOUT_EFFECT, TrainArguments

# The modules that a run's result passes through, by role: a module that is moved keeps its role.
# They are imported by name because the training command itself is one of them.
CODE = {
    "train": "multilora.train",
    "settings": "multilora.training.settings",
    "prepare": "multilora.training.prepare",
    "rows": "multilora.training.rows",
    "trainer": "multilora.training.trainer",
    "answers": "multilora.tasks.answers",
    "config": "multilora.methods.config",
    "shared_fields": "multilora.methods.shared_fields",
    "quantised": "multilora.methods.quantised",
    "embedding": "multilora.methods.embedding",
    "layers": "multilora.methods.layers",
    "tuner": "multilora.methods.tuner",
    "rlora": "multilora.methods.rlora",
    "mtllora": "multilora.methods.mtllora",
    "task_ids": "multilora.methods.task_ids",
    "experts": "multilora.methods.experts",
    "peft": "multilora.methods.peft",
    "delta": "multilora.delta",
    "floor": "analysis.numerics.floor",
    "scoring": "multilora.tasks.scoring",
    "world": "multilora.tasks.builtin.world",
    "corpus": "multilora.tasks.builtin.corpus",
    "splits": "multilora.tasks.builtin.splits",
    "instruction": "multilora.tasks.builtin.instruction",
    "understanding": "multilora.tasks.builtin.understanding",
    "knowledge": "multilora.tasks.builtin.knowledge",
    "suite": "multilora.tasks.builtin.suite",
    "example": "multilora.tasks.example",
    "encoding": "multilora.tasks.encoding",
    "tokens": "multilora.tasks.tokens",
    "mixture": "multilora.tasks.mixture",
    "data": "multilora.tasks.data",
}


@dataclass(frozen=True)
class Identity:
    """Fingerprint and inputs of a run, which distinguish it from others.

    made_of: the fingerprint of settings, data, versions and code; inputs: base, data and number of
    processes, as run.json states them.
    """

    made_of: str
    inputs: dict[str, Any]

    @property
    def mark(self) -> str:
        """The hash by which a run recognises its own checkpoints."""
        return record.fingerprint(self.made_of, self.inputs)


def code() -> dict[str, ModuleType]:
    """The modules of CODE, by role."""
    return {role: importlib.import_module(name) for role, name in CODE.items()}


def inputs(
    base: str, examples: Sequence[Example], files: dict[str, str], processes: int
) -> dict[str, Any]:
    """Describe what a run is made from, as run.json states it.

    base: directory or hub name of the base, whose weight files are hashed; examples: the training
    examples; files: SHA-256 of the files that they come from, by path; processes: how many train.
    """
    return {
        "base": {"path": base, "sha256": delta.weight_files(base)},
        "data": {"examples": len(examples), "sha256": data.sha256(list(examples)), "files": files},
        "processes": processes,
    }


def fingerprint(
    settings: TrainSettings, arguments: TrainArguments, tasks: Data | None = None
) -> str:
    """Hash all that a run's result depends on: settings, arguments, data, versions and code.

    tasks: the data, loaded from the settings if None. The base is identified by its path, which
    for the built-in base contains the hash of what it was made from. Examples from files are
    hashed themselves, not the code that read them.
    """
    given = _without(trainer.changed(arguments), ARGUMENTS_WITHOUT_EFFECT)
    asked = _without(asdict(settings), SETTINGS_WITHOUT_EFFECT)
    parts = [asked, given, record.environment()["versions"], code()]
    if settings.tasks:
        examples = (tasks or data.load(settings.tasks)).examples or {}
        parts += [data.sha256(examples[split]) for split in SPLITS]
    return record.fingerprint(*parts)


def _without(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def is_done(settings: TrainSettings, arguments: TrainArguments, made_of: str = "") -> bool:
    """Return whether the output directory holds the finished run of these settings and this code.

    made_of: the run's fingerprint, computed if it is not given.
    """
    out = Path(arguments.output_dir)
    own = {"full": "delta.safetensors", "expert": experts.CONFIG}
    weights = own.get(settings.method, "adapter_model.safetensors")
    if not (out / "run.json").is_file() or not (out / weights).is_file():
        return False
    try:
        finished = record.read_json(out / "run.json").get("fingerprint")
    except UserError:
        return False
    return bool(finished == (made_of or fingerprint(settings, arguments)))
