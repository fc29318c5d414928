"""What a run's result depends on, and whether a run is done."""

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from multilora import delta, record
from multilora.methods import experts
from multilora.tasks import data
from multilora.tasks.data import Data
from multilora.tasks.example import SPLITS
from multilora.training import trainer
from multilora.training.settings import TrainSettings
from multilora.training.trainer import TrainArguments

# The modules that a run's result passes through, by role: a module that is moved keeps its role.
# By name, because the training command itself is one of them.
CODE = {
    "train": "multilora.train",
    "settings": "multilora.training.settings",
    "prepare": "multilora.training.prepare",
    "rows": "multilora.training.rows",
    "trainer": "multilora.training.trainer",
    "config": "multilora.methods.config",
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
    "mixture": "multilora.tasks.mixture",
    "data": "multilora.tasks.data",
}
# Arguments that say where a run goes and what it prints, not what comes out.
APART = (
    *("output_dir", "disable_tqdm", "logging_dir", "resume_from_checkpoint", "local_rank"),
    *("save_strategy", "save_steps", "save_total_limit", "token_cache"),
)


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


def code() -> dict[str, ModuleType]:
    """Role → module, of everything in CODE."""
    return {role: importlib.import_module(name) for role, name in CODE.items()}


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
    parts = [asked, given, record.environment()["versions"], code()]
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
