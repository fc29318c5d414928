"""MTL-LoRA adapter: adapter_config.json (peft_type MTLLORA) and adapter_model.safetensors.

    base_model.model.<module>.mtllora_A         (r, d_in)
    base_model.model.<module>.mtllora_B         (d_out, n·r)    block of columns i is Bᵢ
    base_model.model.<module>.mtllora_lambda    (tasks, r, r), or (tasks, r): its diagonals
    base_model.model.<module>.mtllora_w         (tasks, n)

ΔW_t = scale · Σᵢ softmax(w_t/τ)ᵢ Bᵢ Λ_t A for task t (arXiv 2410.09437), scale = α/r, or α/√r with
rsLoRA. The config has τ (temperature) and the names of the tasks. One update for each task, whose
part is the task. The exports in lora/ are exactly the same updates and are not read.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.tensors import LONGEST_NAME, count, number, short
from analysis.formats import Options, own, peft
from analysis.update import Entry, LowRankUpdate

STEMS = (peft.STEM,)


def recognise(place: Place) -> bool:
    """Return whether the directory holds a PEFT adapter of type MTLLORA."""
    return own.has_type(place, "MTLLORA")


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield one update for each task and module.

    Raises CheckpointError if the config lacks r, α, τ or the tasks.
    """
    config, source = place.json(peft.CONFIG), place.path / peft.CONFIG
    n, r = count(config, "n", source), count(config, "r", source)
    scale = number(config, "lora_alpha", source) / (math.sqrt(r) if config.get("use_rslora") else r)
    tasks, tau = _tasks(config, source), number(config, "temperature", source)
    if tau <= 0:
        raise CheckpointError(f"{source}: temperature is {tau!r}; expected a number above 0")
    lambdas = (len(tasks), r) if config.get("diagonal") else (len(tasks), r, r)

    def fault(module: str, shapes: own.Shapes) -> str | None:
        A, B = (r, "d_in"), ("d_out", n * r)
        wrong = own.mismatch(shapes, {"A": A, "B": B, "lambda": lambdas, "w": (len(tasks), n)})
        if wrong:
            return f"{wrong} for n = {n}, r = {r}, {len(tasks)} tasks"
        # Of the left factors, and of what `inner` needs.
        numbers = len(tasks) * r * (shapes["B"][0] + r) + n * r * r
        return own.too_large(numbers, r, sum(map(math.prod, shapes.values())))

    def updates(module: str, file: str, t: own.Tensors) -> Iterator[LowRankUpdate]:
        B = t["B"].reshape(len(t["B"]), n, r)
        for task, w, L in zip(tasks, softmax(t["w"] / tau), t["lambda"], strict=True):
            mixed = np.einsum("onr,n->or", B, w)
            left = mixed @ L if L.ndim == 2 else mixed * L
            yield LowRankUpdate(
                module,
                left,
                t["A"],
                scale,
                part=task,
                method="mtllora",
                source=file,
                inner=inner(B * w[:, None], mixed, L, float(np.abs(t["w"]).max()) / tau),
            )

    yield from own.read(place, "mtllora_", ("A", "B", "lambda", "w"), len(tasks), fault, updates)


def _tasks(config: dict[str, Any], source: Path) -> list[str]:
    """Return the tasks of the config; raise CheckpointError unless they are distinct names."""
    tasks = config.get("tasks")
    names = isinstance(tasks, list) and all(
        isinstance(task, str) and 0 < len(task) <= LONGEST_NAME for task in tasks
    )
    if not tasks or not names or len(set(tasks)) < len(tasks):
        raise CheckpointError(
            f"{source}: tasks is {short(tasks)}; expected a list of names that differ"
        )
    return list(tasks)


def inner(heads: np.ndarray, mixed: np.ndarray, L: np.ndarray, logit: float) -> np.ndarray | None:
    """Return the variances of N in mixed Λ (1 + N), if Λ and the weights of the heads are rounded.

    heads: (d_out, n, r), wᵢBᵢ.
    mixed: (d_out, r), their sum.
    L: (r, r), Λ; or (r,), its diagonal.
    logit: the largest |w/τ|, by which the relative error of a weight is larger than that of w.

    In units of the variance of a relative rounding; None where they are not finite.
    """
    if not (np.isfinite(heads).all() and np.isfinite(L).all()):
        return None
    pieces = np.einsum("ro,onq->nrq", np.linalg.pinv(mixed), heads)
    if L.ndim == 1:
        with np.errstate(divide="ignore"):
            inverse = np.where(L == 0, 0.0, 1 / L)
        of_lambda = np.diag((inverse * L) ** 2)
        turned = inverse[:, None] * pieces * L
    else:
        inverse = np.linalg.pinv(L)
        of_lambda = inverse**2 @ L**2
        turned = inverse @ pieces @ L
    of_weights = np.sum(turned**2, axis=0)
    return of_lambda + 2 * logit**2 * of_weights


def softmax(x: np.ndarray) -> np.ndarray:
    """Return exp(x), each row divided by its sum."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
