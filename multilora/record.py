"""Hash what a result depends on, and write the record of a run next to its result.

A finished run is recognised by the hash of its settings, its inputs and the code that they pass
through, so nothing is trained twice and an outdated result is never taken for a current one.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from analysis import UserError, store
from analysis.files import exchange
from analysis.files.regular import open_regular
from multilora import behaviour

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "safetensors")


def sha256(*parts: Any) -> str:
    """SHA-256, in hex, of dataclasses, strings, numbers, lists, dicts and modules.

    A module is hashed by what it does (`behaviour.of`), not by its wording or its path: pass
    modules as {role: module}. Raises TypeError for any other value.
    """
    digest = hashlib.sha256()
    for part in parts:
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            part = dataclasses.asdict(part)
        digest.update(json.dumps(part, sort_keys=True, default=_of_module).encode() + b"\n")
    return digest.hexdigest()


def _of_module(value: Any) -> str:
    if not isinstance(value, ModuleType):
        raise TypeError(f"cannot hash a {type(value).__name__}; expected JSON values or modules")
    return _behaviour_of(inspect.getsource(value))


_behaviour_of = functools.cache(behaviour.of)  # a fingerprint takes it of some thirty modules


def fingerprint(*parts: Any) -> str:
    """First twelve digits of `sha256`: enough to tell runs apart, short enough for a name."""
    return sha256(*parts)[:12]


def sha256_of_files(directory: Path, pattern: str = "*.safetensors") -> dict[str, str]:
    """SHA-256 of the files in `directory` that match `pattern`, by file name."""
    hashes = {}
    for path in sorted(directory.glob(pattern)):
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


# The keys of `environment` that name the machine: another one gives other numbers.
MACHINE = ("machine", "cpu", "instructions", "threads", "device")


def environment() -> dict[str, Any]:
    """Versions, machine and number of threads, on which the bits of a result can depend.

    cpu: the name of the processor; instructions: the widest vector instructions that torch uses;
    blas: the libraries of linear algebra, with the kernels that they chose for this processor.
    """
    import torch

    return {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "blas": _linear_algebra(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _processor() -> str:
    """Name of the processor; on Linux with family and model, since clouds hide the number."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = (line.split(":", 1) for line in lines if ":" in line)
    known = {key.strip(): value.strip() for key, value in facts}
    name = known.get("model name") or platform.processor()
    where = [f"{key} {known[key]}" for key in ("cpu family", "model", "stepping") if key in known]
    return f"{name} ({', '.join(where)})" if where else name


def _linear_algebra() -> list[str]:
    """Names, versions and kernels of the BLAS libraries that are loaded."""
    from threadpoolctl import threadpool_info

    keys = ("internal_api", "version", "architecture")
    loaded = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return sorted({" ".join(str(one[key]) for key in keys if one.get(key)) for one in loaded})


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the block with `count` CPU threads; restore the previous number even after an error."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def json_text(value: Any) -> str:
    """Return strict JSON, as it is written to files; ValueError for NaN and infinity."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `json_text`, renamed into place so that a reader never sees half a file."""
    text = json_text(value)
    store.replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises UserError, naming the file, if it is not JSON, not an object or not a regular file;
    OSError if the file is missing.
    """
    with open_regular(path) as file:
        return json_object(file.read(), path)


def json_object(content: bytes, path: Path) -> dict[str, Any]:
    """Parse the object in a JSON file; raise UserError, naming the file, if there is none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value


def of_run(directory: Path) -> dict[str, Any]:
    """Return the run.json of a checkpoint, which names its base; {} if the file is missing.

    Raises UserError for a run.json that does not name a base, such as that of a base itself.
    """
    path = directory / "run.json"
    if not path.is_file():
        return {}
    facts = read_json(path)
    named = facts.get("base")
    if not isinstance(named, dict) or not {"path", "sha256"} <= set(named):
        raise UserError(
            f"{path} does not name a base; expected the run.json of multilora.train (score a base "
            "with base --model DIR)"
        )
    if not isinstance(named["path"], str) or not named["path"]:
        raise UserError(f"{path}: base: path is {named['path']!r}; expected a directory or name")
    asked = facts.get("settings", {})
    if not isinstance(asked, dict) or not isinstance(asked.get("tasks", ""), str):
        raise UserError(f"{path}: settings is {asked!r}; expected what multilora.train writes")
    return facts


def make_once(directory: Path, make: Callable[[Path], None]) -> bool:
    """Make `directory` with `make(temporary)` unless it exists; return whether it was made now.

    `make` fills a temporary directory, which is renamed when `make` has finished. Of several
    processes that make the same directory the first to finish wins. What a killed process left
    behind is removed.
    """
    if directory.is_dir():
        return False
    exchange.remove_left_behind(directory)
    temporary = exchange.temporary(directory)
    exchange.remove(temporary)
    temporary.mkdir(parents=True)
    try:
        make(temporary)
        temporary.replace(directory)
    except OSError:
        if not directory.is_dir():
            raise
        return False  # another process finished first
    finally:
        exchange.remove(temporary)
    return True
