"""Settings and records: what a run was, in one JSON file beside what it made.

A run is found again by the hash of its settings, of its inputs and of the code that they pass
through, so nothing is trained twice and nothing stale is taken for new.
"""

import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from analysis import UserError
from multilora import behaviour

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "safetensors")


def sha256(*parts: Any) -> str:
    """SHA-256, in hex, of dataclasses, strings, numbers, lists, dicts and modules.

    A module counts by what it does (`behaviour.of`), not by its wording or its path: give modules
    as {role: module}.
    """
    digest = hashlib.sha256()
    for part in parts:
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            part = dataclasses.asdict(part)
        digest.update(json.dumps(part, sort_keys=True, default=_of_module).encode() + b"\n")
    return digest.hexdigest()


def _of_module(value: Any) -> str:
    if not isinstance(value, ModuleType):
        raise TypeError(f"a {type(value).__name__} has no hash; expected JSON values or modules")
    return behaviour.of(inspect.getsource(value))


def fingerprint(*parts: Any) -> str:
    """The first twelve digits of `sha256`: enough to tell runs apart, short enough for a name."""
    return sha256(*parts)[:12]


def sha256_of_files(directory: Path, pattern: str = "*.safetensors") -> dict[str, str]:
    """{file name: SHA-256} of the files in `directory` that match `pattern`."""
    hashes = {}
    for path in sorted(directory.glob(pattern)):
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def environment() -> dict[str, Any]:
    """Versions, machine and threads: what else a result can depend on."""
    import torch

    return {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` CPU threads within; as many as before after it, however it ends."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_json(path: Path, value: Any) -> None:
    """Strict JSON under a temporary name, then renamed: nobody reads half a file."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """The value in a JSON file; ValueError, naming it, for one that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def make_once(directory: Path, make: Callable[[Path], None]) -> bool:
    """`directory`, made by `make(temporary)` unless it is there; True if it was made now.

    It appears under its name only when `make` is through.
    """
    if directory.is_dir():
        return False
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}-{time.time_ns()}")
    temporary.mkdir(parents=True)
    try:
        make(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        temporary.replace(directory)
    except OSError:
        if not directory.is_dir():
            raise
        shutil.rmtree(temporary)  # another process was faster
        return False
    return True
