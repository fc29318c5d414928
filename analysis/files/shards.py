"""Find and open the weights of a directory: one file, or several that an index lists.

    <stem>.safetensors                 <stem>.bin
    <stem>.safetensors.index.json      <stem>.bin.index.json     {"weight_map": {name: file}}
    <stem>.npz

An index comes from a stranger: a shard must be a plain file name in the same directory, and not a
link out of it.
"""

import re
from pathlib import Path

from analysis import CheckpointError
from analysis.files import distributed, foreign, gguf_file
from analysis.files.tensors import Stored, TensorFile, by_number, open_file, read_json, short

# Files of a trainer's own state, next to the weights.
STATE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state)")
# Ends of the names of files of tensors; of a file in two formats, the first one is read.
FILES = (".safetensors", ".gguf", ".npz", ".bin", ".pt", ".pth", ".ckpt", ".lora")
# What follows the stem of a weight file or an index.
SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".npz")


def locate(directory: Path, *stems: str) -> Path | None:
    """Return the weight file or index in `directory` with one of the stems; None if missing."""
    for suffix in SUFFIXES:
        for stem in stems:
            if (directory / (stem + suffix)).is_file():
                return directory / (stem + suffix)
    return None


def open_located(file: Path) -> TensorFile:
    """Open a weight file, all the shards of an index, or a distributed checkpoint, by its metadata.

    The names are in natural order. A tensor that the index leaves out is read with the shard that
    holds it, as Transformers does.
    Raises CheckpointError if a shard is missing, leads out of the directory, or lacks a tensor
    that the index says it has.
    """
    if file.name == distributed.METADATA:
        return TensorFile(distributed.open_metadata(file), {})
    if file.suffix != ".json":
        return _open(file)
    listed: dict[str, Stored] = {}
    held: dict[str, Stored] = {}
    for shard, names in _shards(file).items():
        opened = _open(file.parent / shard).tensors
        held |= opened
        for name in names:
            if name not in opened:
                raise CheckpointError(f"{file}: {name}: not in {shard}, where the index puts it")
            listed[name] = opened[name]
    tensors = held | listed
    return TensorFile({name: tensors[name] for name in sorted(tensors, key=by_number)}, {})


def _open(file: Path) -> TensorFile:
    """Open one file of tensors; the error for a pointer of Git LFS says what it is."""
    try:
        return gguf_file.open_file(file) if file.suffix == ".gguf" else open_file(file)
    except CheckpointError:
        if foreign.is_pointer(file):
            raise CheckpointError(f"{file}: {foreign.explain(file)}") from None
        raise


def _shards(index: Path) -> dict[str, list[str]]:
    """Return shard → the names of its tensors."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map is {short(weight_map)}; expected an object of name → file"
        )
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        shards.setdefault(shard if isinstance(shard, str) else "", []).append(name)
    for shard in shards:
        _refuse_outside(index, shard)
    return shards


def _refuse_outside(index: Path, shard: str) -> None:
    """Raise CheckpointError unless `shard` is a file in the index's own directory.

    The cache of the hub is the one exception: its snapshots link into its directory of blobs.
    """
    allowed = [index.parent.resolve()]
    if allowed[0].parent.name == "snapshots":
        allowed.append(allowed[0].parent.parent / "blobs")
    if Path(shard).suffix not in (".safetensors", ".bin") or Path(shard).name != shard:
        raise CheckpointError(
            f"{index}: lists the shard {short(shard)}; expected a plain file name"
        )
    try:
        target = (index.parent / shard).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise CheckpointError(f"{index.parent / shard}: no such file; the index lists it") from None
    if target.parent not in allowed:
        raise CheckpointError(f"{index}: the shard {shard!r} is a link out of the directory")
