"""The directory or single file of a checkpoint, each of whose files is parsed once."""

from pathlib import Path
from typing import Any

from analysis.files import shards, wrappers
from analysis.files.tensors import Stored, TensorFile, read_json, refuse_impossible


class Place:
    """A directory or a file, and what was parsed of it so far.

    Every JSON file and every header of a weight file is parsed when it is first asked for, and
    kept. The values of tensors are not kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._objects: dict[str, dict[str, Any]] = {}
        self._opened: dict[Path, TensorFile] = {}
        self._below: dict[str, Place] = {}

    def json(self, name: str) -> dict[str, Any]:
        """Return the object in the JSON file `name` of the directory.

        Raises CheckpointError if the file is missing or does not hold a JSON object.
        """
        if name not in self._objects:
            self._objects[name] = read_json(self.path / name)
        return self._objects[name]

    def tensors(self, file: Path | None = None) -> dict[str, Stored]:
        """Return name → Stored of a weight file, or of all the shards of an index.

        file: a file of the directory; by default the place itself, which is then a file. Raises
        CheckpointError if it cannot be read.
        """
        return self._open(file or self.path).tensors

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the place, a file: those of safetensors, or a .bin's settings."""
        return self._open(self.path).metadata

    def below(self, name: str) -> "Place":
        """Return the file or directory `name` in this directory as a place of its own."""
        if name not in self._below:
            self._below[name] = Place(self.path / name)
        return self._below[name]

    def _open(self, file: Path) -> TensorFile:
        if file not in self._opened:
            tensors, metadata = shards.open_located(file)
            refuse_impossible(tensors, file)
            self._opened[file] = TensorFile(wrappers.unwrapped(tensors), metadata)
        return self._opened[file]
