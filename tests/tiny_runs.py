"""Small training runs that several test files make and read."""

import json
from pathlib import Path

from multilora.training.settings import TrainSettings
from multilora.training.trainer import TrainArguments

METHODS = {
    "lora": {"r": 6},
    "lora+": {"r": 6, "b_lr_ratio": 4.0},
    "multilora": {"r": 2},
    "full": {},
    "rlora": {"r": 2},
    "mtllora": {"r": 2},
}


def settings_of(model_path, method="multilora", **changes):
    sizes = {"per_task": 4, "per_task_scored": 2}
    return TrainSettings(method=method, model=str(model_path), **sizes | METHODS[method] | changes)


def arguments_of(out, **changes):
    usual = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.01}
    usual |= {"logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "warmup_steps": 0}
    return TrainArguments(output_dir=str(out), **usual | changes)


def weights(run):
    """The bytes of what a run has learned."""
    files = [Path(run) / name for name in ("adapter_model.safetensors", "delta.safetensors")]
    (file,) = [file for file in files if file.exists()]
    return file.read_bytes()


def written(run):
    return json.loads((Path(run) / "run.json").read_text())
