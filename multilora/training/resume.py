"""Choose the checkpoint to resume from: the newest complete one that belongs to the run.

Trainer writes checkpoint-N file by file, trainer_state.json last. A killed process leaves a
directory that looks like a checkpoint. If the optimiser's state is missing or a file is cut short,
training that resumes from it would give other bits, or fail. trainer_state.json has the SHA-256 of
the other files, so that a file that was altered is noticed.
"""

import hashlib
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers.trainer_callback import ExportableState

from analysis import UserError
from analysis.files.regular import is_plain
from multilora import record
from multilora.methods import experts

STATE = "trainer_state.json"
ADAPTER, INDEX = "adapter_model.safetensors", "model.safetensors.index.json"
# Files that Trainer reads when it resumes, if they are there.
_RESUMED = re.compile(
    r"(adapter_model|model|pytorch_model|optimizer|scheduler|scaler|rng_state)[\W_]|"
    r"(latest|experts\.json|adapter_config\.json)$"
)
# A checkpoint has one of these files.
WEIGHTS = (ADAPTER, experts.CONFIG, "model.safetensors", INDEX)


class RunMark(transformers.TrainerCallback, ExportableState):
    """Trainer callback that marks every checkpoint as belonging to this run."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.files: dict[str, str] = {}  # SHA-256 of the files of the checkpoint being saved

    def hash_files(self, checkpoint: Path) -> None:
        """Hash the files of a checkpoint, of which only trainer_state.json is not written yet."""
        self.files = _hashes(checkpoint)

    def state(self) -> dict[str, Any]:
        """Mark, number of threads and hashes, which Trainer stores in trainer_state.json."""
        made_with = {"mark": self.mark, "threads": torch.get_num_threads(), "files": self.files}
        return {"args": made_with, "attributes": {}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoints that follow an unmarked one, which another program wrote."""
        state.stateful_callbacks[type(self).__name__] = self.state()


def choose(asked: str | None, out: Path, mark: str, processes: int) -> Path | None:
    """The checkpoint to resume from; None to start from the beginning.

    asked: "auto" for the newest complete checkpoint of this run, "no" for none, or the directory
    of a checkpoint; out: the run's directory; mark: the hash that its checkpoints carry;
    processes: how many train. Raises UserError if "auto" would mix two runs in one directory, if
    all checkpoints of the run are incomplete or altered, or if the given one is.
    """
    if asked in (None, "no", "none", "false", "False"):
        return None
    if asked not in ("auto", "true", "True"):
        flaw = flaw_of(Path(asked), processes)
        if flaw:
            raise UserError(f"{asked} cannot be resumed from: {flaw}")
        return Path(asked)
    own, others, flawed = _sorted(out, mark, processes)
    for path, flaw in flawed.items():
        if not own:
            raise UserError(
                f"{path} cannot be resumed from: {flaw}; start over with"
                " --resume_from_checkpoint no"
            )
        print(f"{path} is skipped: {flaw}", file=sys.stderr)
    if others and not own:
        raise UserError(
            f"{others[0]} belongs to another run (other settings, base, versions or code); choose "
            "another --output_dir, or --resume_from_checkpoint no to start from the beginning here"
        )
    if not own:
        return None
    then, now = _made_with(_state(own)).get("threads"), torch.get_num_threads()
    other = "" if then == now else f"; it used {then} threads, this run {now}: bits may differ"
    print(f"resuming from {own}{other}", file=sys.stderr)
    return own


def newest(out: Path, mark: str, processes: int) -> Path | None:
    """The newest complete checkpoint in `out` that carries the mark; None without one."""
    return _sorted(out, mark, processes)[0]


def _sorted(
    out: Path, mark: str, processes: int
) -> tuple[Path | None, list[Path], dict[Path, str]]:
    """Sort the checkpoints in `out`, newest first.

    Returns (the run's newest complete checkpoint, checkpoints of other runs, flaws of the run's own
    newer checkpoints). A directory without trainer_state.json was interrupted while it was written
    and is ignored.
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
        elif flaw := flaw_of(path, processes) or _unhashed(state):
            flawed[path] = flaw
        else:
            return path, others, flawed
    return None, others, flawed


def _step(path: Path) -> int | None:
    """The step of a checkpoint directory; None for any other path."""
    number = path.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() and path.is_dir() else None


def _state(checkpoint: Path) -> dict[str, Any]:
    """The content of trainer_state.json; {} if it is missing or broken."""
    try:
        return record.read_json(checkpoint / STATE)
    except (OSError, UserError):
        return {}


def _made_with(state: dict[str, Any]) -> dict[str, Any]:
    """The values that RunMark wrote; {} for a checkpoint of another program."""
    try:
        return dict(state["stateful_callbacks"][RunMark.__name__]["args"])
    except (KeyError, TypeError, ValueError):
        return {}


def flaw_of(checkpoint: Path, processes: int) -> str:
    """The first reason why a checkpoint is incomplete or altered; "" if there is none.

    A complete checkpoint has everything that the same bits need: weights, optimiser, schedule and
    the random state of every process, each in an undamaged file. If trainer_state.json has the
    SHA-256 of its files, as this package writes it, none may differ and none may have been added.
    """
    state = _state(checkpoint)
    if not state:
        return f"{STATE} is missing or broken"
    if state.get("global_step") != _step(checkpoint):
        return f"{STATE} is of step {state.get('global_step')}"
    for name in _states(checkpoint, processes):
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    if not any((checkpoint / name).is_file() for name in WEIGHTS):
        return f"the weights are missing; expected {' or '.join(WEIGHTS)}"
    files = [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("*.safetensors")]
    if (checkpoint / INDEX).exists():
        try:
            shards = set(record.read_json(checkpoint / INDEX)["weight_map"].values())
        except (UserError, KeyError, TypeError, AttributeError):
            return f"{INDEX} is broken"
        if not all(map(is_plain, shards)):
            return f"{INDEX} names files elsewhere"
        files += [checkpoint / name for name in shards]
    if (checkpoint / experts.CONFIG).is_file():
        try:
            files += [checkpoint / task / ADAPTER for task in experts.saved_tasks(checkpoint)]
        except ValueError:
            return f"{experts.CONFIG} is broken"
    if broken := next((file.name for file in files if not _opens(file)), None):
        return f"{broken} is broken"
    known = _made_with(state).get("files")
    return "" if known is None else _altered(checkpoint, known)


def _altered(checkpoint: Path, known: object) -> str:
    """The first file whose SHA-256 is not the one in `known`, with the reason; "" if none."""
    if not isinstance(known, dict):
        return f"{STATE} is broken"
    found = _hashes(checkpoint)
    for name, sha256 in known.items():
        if found.get(name) != sha256:
            missing = name not in found
            return f"{name} is {'missing' if missing else 'altered: its SHA-256 differs'}"
    added = [name for name in found if name not in known and _RESUMED.match(name)]
    return f"{added[0]} was added" if added else ""


def _unhashed(state: dict[str, Any]) -> str:
    """The reason why a checkpoint of this run is not trusted; "" if its files are hashed."""
    return "" if _made_with(state).get("files") else f"{STATE} has no SHA-256 of the files"


def _hashes(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of all files of a checkpoint but trainer_state.json, by path in the checkpoint."""
    hashes = {}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_file() and not path.is_symlink() and name != STATE:
            with path.open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _states(checkpoint: Path, processes: int) -> list[str]:
    """Names of the files with the state of training other than the weights."""
    # DeepSpeed keeps the optimiser's state in a directory that its file `latest` names.
    states = [] if (checkpoint / "latest").is_file() else ["optimizer.pt", "scheduler.pt"]
    ranks = [f"rng_state_{rank}.pth" for rank in range(processes)]
    return [*states, *(ranks if processes > 1 else ["rng_state.pth"])]


def _opens(file: Path) -> bool:
    """Return whether a file of torch (a zip with checksums) or of safetensors is undamaged."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="np"):
                return True
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, SafetensorError, zipfile.BadZipFile):
        return False
