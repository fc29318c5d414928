"""A run's checkpoints: which of them are whole, which are its own, and which to go on from.

Trainer writes checkpoint-N file by file, trainer_state.json last. A process that is killed leaves
a directory that looks like a checkpoint; without the optimiser's state, or with one file cut
short, training would go on from it and give other bits, or fail.
"""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers.trainer_callback import ExportableState

from analysis import UserError
from multilora.methods import experts

STATE = "trainer_state.json"
WEIGHTS = (
    *("adapter_model.safetensors", experts.CONFIG),
    *("model.safetensors", "model.safetensors.index.json"),
)


class RunMark(transformers.TrainerCallback, ExportableState):
    """Writes into every checkpoint's trainer_state.json which run it is of."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def state(self) -> dict[str, Any]:
        """What Trainer stores; with it a checkpoint's mark is there exactly when it is whole."""
        made_with = {"mark": self.mark, "threads": torch.get_num_threads()}
        return {"args": made_with, "attributes": {}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint that was not made by us has no mark; what follows it has ours."""
        state.stateful_callbacks[type(self).__name__] = self.state()


def choose(asked: str | None, out: Path, mark: str, processes: int) -> Path | None:
    """The checkpoint to go on from; None to start from the beginning.

    asked: "auto", the newest whole checkpoint of this very run in `out`, if it has one; "no",
    none; or the directory of a checkpoint. mark: what the run is known by. Raises ValueError
    where "auto" would mix two runs in one directory, where the run's own are there and none is
    whole, and where the given checkpoint is not whole.
    """
    if asked in (None, "no", "none", "false", "False"):
        return None
    if asked not in ("auto", "true", "True"):
        flaw = flaw_of(Path(asked), processes)
        if flaw:
            raise UserError(f"{asked} is no whole checkpoint: {flaw}")
        return Path(asked)
    own, others, flawed = _sorted(out, mark, processes)
    for path, flaw in flawed.items():
        if not own:
            raise UserError(
                f"{path} is not whole: {flaw}; start over with --resume_from_checkpoint no"
            )
        print(f"{path} is passed over: {flaw}", file=sys.stderr)
    if others and not own:
        raise UserError(
            f"{others[0]} is of another run (other settings, base, versions or code); choose "
            "another --output_dir, or --resume_from_checkpoint no to start here from the beginning"
        )
    if not own:
        return None
    then, now = _made_with(_state(own)).get("threads"), torch.get_num_threads()
    other = "" if then == now else f"; it had {then} threads, here are {now}: bits may differ"
    print(f"going on from {own}{other}", file=sys.stderr)
    return own


def newest(out: Path, mark: str, processes: int) -> Path | None:
    """The newest whole checkpoint of the run of this mark; None where there is none."""
    return _sorted(out, mark, processes)[0]


def _sorted(
    out: Path, mark: str, processes: int
) -> tuple[Path | None, list[Path], dict[Path, str]]:
    """(the run's newest whole checkpoint, those of other runs, {its own newer: their flaw}).

    What has no trainer_state.json was cut off while it was written and counts for nothing.
    """
    numbered = {
        step: path for path in out.glob("checkpoint-*") if (step := _step(path)) is not None
    }
    others, flawed = [], {}
    for step in sorted(numbered, reverse=True):
        path = numbered[step]
        state = _state(path)
        if not state:
            continue
        if _made_with(state).get("mark") != mark:
            others.append(path)
        elif flaw := flaw_of(path, processes):
            flawed[path] = flaw
        else:
            return path, others, flawed
    return None, others, flawed


def _step(path: Path) -> int | None:
    number = path.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() and path.is_dir() else None


def _state(checkpoint: Path) -> dict[str, Any]:
    """What trainer_state.json holds; {} where it is missing or broken."""
    try:
        state = json.loads((checkpoint / STATE).read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _made_with(state: dict[str, Any]) -> dict[str, Any]:
    """What RunMark wrote; {} for a checkpoint of somebody else's."""
    try:
        return dict(state["stateful_callbacks"][RunMark.__name__]["args"])
    except (KeyError, TypeError, ValueError):
        return {}


def flaw_of(checkpoint: Path, processes: int) -> str:
    """What a checkpoint lacks of being whole, in words; "" where it lacks nothing.

    Everything is there that the same bits need: weights, optimiser, schedule and the state of
    every process' random numbers; and every file is whole.
    """
    state = _state(checkpoint)
    if not state:
        return f"{STATE} is missing or broken"
    if state.get("global_step") != _step(checkpoint):
        return f"{STATE} is of step {state.get('global_step')}"
    ranks = [f"rng_state_{rank}.pth" for rank in range(processes)]
    # DeepSpeed keeps the optimiser's state in a directory that its file `latest` names.
    states = () if (checkpoint / "latest").is_file() else ("optimizer.pt", "scheduler.pt")
    for name in (*states, *(ranks if processes > 1 else ["rng_state.pth"])):
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    if not any((checkpoint / name).is_file() for name in WEIGHTS):
        return f"the weights are missing; expected {' or '.join(WEIGHTS)}"
    index = checkpoint / WEIGHTS[-1]
    try:
        shards = (
            set(json.loads(index.read_bytes())["weight_map"].values()) if index.exists() else ()
        )
    except (ValueError, KeyError, TypeError):
        return f"{index.name} is broken"
    files = [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("*.safetensors")]
    files += [checkpoint / name for name in shards]
    if (checkpoint / experts.CONFIG).is_file():
        try:
            files += [checkpoint / t / WEIGHTS[0] for t in experts.saved_tasks(checkpoint)]
        except ValueError:
            return f"{experts.CONFIG} is broken"
    return next((f"{file.name} is broken" for file in files if not _opens(file)), "")


def _opens(file: Path) -> bool:
    """Whether a file of torch (a zip with checksums) or of safetensors is whole."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="np"):
                return True
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, SafetensorError, zipfile.BadZipFile):
        return False
