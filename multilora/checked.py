"""Refuse a stranger's base or adapter that a library could only load with harm, before it tries.

Transformers and PEFT believe a config: they build a billion layers, compile any expression, and ask
whether to run code that lies beside the weights. What passes here can still be broken; `loading`
turns what the libraries then raise into one line.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from analysis import UserError
from analysis.files import tensors
from analysis.formats import rule

# A key of a config that counts what is built one by one, and how many a model may have of it.
COUNT = re.compile(r"(?:^|_)(?:n|num)_\w*?(layer|label|expert|codebook)|(layer|expert)s$")
MOST = {"layer": 200, "label": 100_000, "expert": 2048, "codebook": 400}
# A model may have this many numbers, or eight for each byte of its weights if those are more.
NUMBERS = 1 << 26
SUFFIXES = (".safetensors", ".bin")
# Keys of an adapter's config by which PEFT allocates memory; each is a side of a stored tensor.
SIZES = (
    "r", "init_r", "target_r", "n", "n_frequency", "num_vectors", "vector_length",
    "num_virtual_tokens",
)  # fmt: skip
CONFIG, ADAPTER, WEIGHTS = "config.json", "adapter_config.json", "adapter_model"


@contextmanager
def loading(path: str | Path) -> Iterator[None]:
    """Turn an error that a library raises over the files of `path` into a UserError of one line."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except BaseException as error:
        # What a library in Rust raises when it gives up is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = next(iter(str(error).splitlines()), "")
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UserError(f"{path}: cannot be loaded: {kind}{reason}") from error


def model(path: str) -> None:
    """Check a base before it is loaded: a directory or hub name.

    Raises UserError if it holds something that is not a file, if its config counts more layers than
    any model has, describes no model of transformers, or a model far larger than its weights.
    """
    directory = Path(path)
    if not directory.is_dir():
        return
    _only_files(directory)
    if not (directory / CONFIG).is_file():
        return  # transformers says what it expects
    counts(tensors.read_json(directory / CONFIG), f"{path}/{CONFIG}")
    for file in directory.glob("pytorch_model*.bin"):
        tensors.open_file(file)  # raises CheckpointError for a pickle that is a trap
    with loading(directory / CONFIG), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        built = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    numbers = sum(value.numel() for value in (*built.parameters(), *built.buffers()))
    size = sum(file.stat().st_size for file in directory.iterdir() if file.suffix in SUFFIXES)
    if numbers > max(NUMBERS, 8 * size):
        raise UserError(
            f"{path}/{CONFIG}: describes a model of {numbers:,} numbers, but its weight files have"
            f" {size:,} bytes; expected those of that model"
        )


def counts(config: dict[str, Any], where: str) -> None:
    """Raise UserError, naming `where`, if a config counts more of something than any model has."""
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            for key, count in value.items():
                found = COUNT.search(key)
                if found and isinstance(count, int):
                    most = MOST[found[1] or found[2]]
                    if count > most:
                        raise UserError(f"{where}: {key} is {count}; expected at most {most}")


def tokenizer(model: Any, tokenizer: Any, path: str) -> None:
    """Raise UserError if a tokenizer has tokens for which its model has no embedding."""
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise UserError(
            f"{path}: its tokenizer has a token {largest}, but the model's embedding has {rows}"
            " rows; expected the tokenizer of this model"
        )


def adapter(checkpoint: Path, modules: Collection[str]) -> None:
    """Check the adapters of a checkpoint, and those in directories below it, before PEFT loads one.

    modules: the names of the modules of the base. Raises UserError if a directory holds something
    that is not a file, a file of weights is not readable, a size is larger than every side of the
    stored tensors, or an expression of the config takes too long.
    """
    below = [path for path in checkpoint.iterdir() if path.is_dir()]
    for directory in (checkpoint, *below):
        if not (directory / ADAPTER).is_file():
            continue
        _only_files(directory)
        where = directory / ADAPTER
        config = tensors.read_json(where)
        files = [directory / f"{WEIGHTS}{suffix}" for suffix in SUFFIXES]
        stored = [t for f in files if f.is_file() for t in tensors.open_file(f).tensors.values()]
        sides = [side for tensor in stored for side in tensor.shape]
        _check_sizes(config, max([len(stored), *sides]), where)
        rule.refuse_slow(config, where, modules)


def _check_sizes(config: dict[str, Any], most: int, where: Path) -> None:
    """Raise UserError for a size in an adapter's config above `most`.

    most: the longest side of the stored tensors, or their number if that is larger.
    """
    pattern = config.get("rank_pattern")
    sizes = {key: config.get(key) for key in SIZES}
    sizes |= pattern if isinstance(pattern, dict) else {}
    if config.get("peft_type") == "LOKR":  # in which a large rank means full factors
        return
    for key, size in sizes.items():
        if isinstance(size, int) and size > most:
            raise UserError(
                f"{where}: {key} is {size}, but no side of the {WEIGHTS} beside it is longer than"
                f" {most}; expected the adapter's own"
            )


def _only_files(directory: Path) -> None:
    """Raise UserError if a directory holds a pipe, a device or a link that leads nowhere."""
    for path in directory.iterdir():
        if not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: is neither a file nor a directory; remove it")
