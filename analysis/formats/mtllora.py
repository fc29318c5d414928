"""MTL-LoRA: adapter_config.json with peft_type MTLLORA beside adapter_model.safetensors.

    base_model.model.<module>.mtllora_A         (r, d_in)
    base_model.model.<module>.mtllora_B         (d_out, n·r)    block of columns i is Bᵢ
    base_model.model.<module>.mtllora_lambda    (tasks, r, r), or (tasks, r): its diagonals
    base_model.model.<module>.mtllora_w         (tasks, n)

ΔW_t = scale · Σᵢ softmax(w_t/τ)ᵢ Bᵢ Λ_t A for task t (arXiv 2410.09437), scale = α/r, or α/√r with
rsLoRA, τ and the names of the tasks in the config: one update a task, whose part is its name. The
exact exports in lora/ are not read again.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.formats import Options, own, peft
from analysis.formats.tensors import count, number, read_json, short
from analysis.update import Entry, LowRankUpdate


def recognises(path: Path) -> bool:
    """Whether `path` holds a PEFT adapter whose config says MTLLORA."""
    return own.has_type(path, "MTLLORA")


def read(path: Path, options: Options) -> Iterator[Entry]:
    """One update a task and module; CheckpointError where the config lacks scale, τ or tasks."""
    config, source = read_json(path / peft.CONFIG), path / peft.CONFIG
    n, r = count(config, "n", source), count(config, "r", source)
    scale = number(config, "lora_alpha", source) / (math.sqrt(r) if config.get("use_rslora") else r)
    tasks, tau = _tasks(config, source), number(config, "temperature", source)
    if tau <= 0:
        raise CheckpointError(f"{source}: temperature is {tau!r}; expected a number above 0")
    lambdas = (len(tasks), r) if config.get("diagonal") else (len(tasks), r, r)

    def fault(module: str, shapes: own.Shapes) -> str | None:
        A, B = (r, "d_in"), ("d_out", n * r)
        wrong = own.against(shapes, {"A": A, "B": B, "lambda": lambdas, "w": (len(tasks), n)})
        return wrong and f"{wrong} for n = {n}, r = {r}, {len(tasks)} tasks"

    def updates(module: str, file: str, t: own.Tensors) -> Iterator[LowRankUpdate]:
        B = t["B"].reshape(len(t["B"]), n, r)
        for task, w, L in zip(tasks, softmax(t["w"] / tau), t["lambda"], strict=True):
            mixed = np.einsum("onr,n->or", B, w)
            left = mixed @ L if L.ndim == 2 else mixed * L
            yield LowRankUpdate(
                module, left, t["A"], scale, part=task, method="mtllora", source=file
            )

    yield from own.read(path, "mtllora_", ("A", "B", "lambda", "w"), fault, updates)


def _tasks(config: dict[str, Any], source: Path) -> list[str]:
    tasks = config.get("tasks")
    names = isinstance(tasks, list) and all(isinstance(task, str) and task for task in tasks)
    if not tasks or not names or len(set(tasks)) < len(tasks):
        raise CheckpointError(
            f"{source}: tasks is {short(tasks)}; expected a list of names that differ"
        )
    return list(tasks)


def softmax(x: np.ndarray) -> np.ndarray:
    """Rows of positive numbers that sum to 1, proportional to exp(x)."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
