"""Find the checkpoints at a path, name them, and read them with the family that recognises them."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from analysis import CheckpointError, UserError
from analysis.formats import (
    DirectoryFamily,
    Family,
    Options,
    adalora,
    base,
    diffusers,
    dora,
    experts,
    factors,
    full,
    gguf,
    kohya,
    lokr,
    loralib,
    lycoris,
    merged_linear,
    mlx,
    model,
    mtllora,
    multilora,
    peft,
    rlora,
    shards,
    starts,
    through_peft,
    torchtune,
)
from analysis.formats.place import Place
from analysis.names import run_key
from analysis.update import Entry, Other, Skipped, Update

# Families that read directories. The first that recognises a directory reads it.
FORMATS: tuple[DirectoryFamily, ...] = (
    experts,
    multilora,
    rlora,
    mtllora,
    full,
    mlx,
    torchtune,
    peft,
    model,
)
# Families that read single files, in the same way.
FILES: tuple[Family, ...] = (gguf, kohya, diffusers, mlx, torchtune, loralib)
# Variants, which `peft` and `kohya` read by rules in files of their own.
VARIANTS: tuple[ModuleType, ...] = (
    adalora,
    dora,
    merged_linear,
    starts,
    through_peft,
    lycoris,
    lokr,
)
# Families whose subdirectories with adapters are not separate runs, but parts or exports.
CLOSED: tuple[DirectoryFamily, ...] = (experts, multilora, rlora, mtllora)
# Names of weight files, each of which stands for its directory.
WEIGHTS = {
    stem + suffix for family in FORMATS for stem in family.STEMS for suffix in shards.SUFFIXES
}
STEP = re.compile(r"checkpoint-(\d+)")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
OPEN = (".safetensors", ".gguf", ".npz")  # files of tensors that are no pickles
# Files of a trainer's own state, next to the weights.
STATE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state)")


@dataclass(frozen=True, eq=False)
class Source:
    """The place of a checkpoint, and the families that recognise it.

    path: the path as the user gave it, or as it was found below such a path.
    place: its directory or file, which keeps what is parsed of it.
    families: those of FORMATS that recognise the directory; () for a single file.
    """

    path: Path
    place: Place
    families: tuple[DirectoryFamily, ...]

    @property
    def family(self) -> DirectoryFamily | None:
        """The family that reads the directory; None for a file, or if none recognises it.

        Raises CheckpointError if the directory holds two different updates.
        """
        if full in self.families and peft in self.families:
            raise CheckpointError(
                f"{self.place.path}: holds an adapter and a stored difference ({full.WEIGHTS});"
                " expected one"
            )
        return self.families[0] if self.families else None


@dataclass(frozen=True)
class Run:
    """A checkpoint and its names: the run it belongs to, and its step in that run.

    path: the path as the user gave it; the directory if that was a weight file.
    name: the name of the run.
    step: the step; None if the checkpoint is not a checkpoint-N.
    source: its place and family; None for updates that are not read from disk.
    """

    path: Path
    name: str
    step: int | None
    source: Source | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str:
        """run, or run@step."""
        return run_key(self.name, self.step)


def read(
    path: str | Path | Run, base: str | Path | None = None, options: Options | None = None
) -> Iterator[Update]:
    """Yield every update of a checkpoint, low-rank or dense, in the file's order.

    path: the checkpoint.
    base: the model that was trained.
    options: everything the user can say about the checkpoint, including `base`; UserError if
        the two differ.

    Raises CheckpointError if there is no checkpoint, and at the first module that cannot be
    analysed; `scan` continues after such a module.
    """
    for entry in scan(path, with_base(options, base)):
        if isinstance(entry, Skipped):
            raise CheckpointError(entry.reason)
        if not isinstance(entry, Other):
            yield entry


def scan(path: str | Path | Run, options: Options | None = None) -> Iterator[Entry]:
    """Return everything in a checkpoint: updates, Skipped with a reason, Other tensors.

    Raises CheckpointError, now or at the first entry, if the checkpoint as a whole cannot be read.
    """
    options = options or Options()
    source = _source(path)
    family = None if options.factors else source.family
    if family:
        return family.read(source.place, options)
    files = _files(source.place.path)
    if options.factors and source.family:  # the file that its family reads, among others
        weights = shards.locate(source.place.path, *source.family.STEMS)
        files = [weights] if weights else files
    if len(files) != 1:
        raise CheckpointError(
            f"{source.path}: no checkpoint here; expected {peft.CONFIG} with"
            f" {peft.STEM}.safetensors, {full.CONFIG} with {full.WEIGHTS}, a model's weights, or a"
            " file of factors"
        )
    is_file = source.place.path == files[0]
    return _scan_file(source.place if is_file else source.place.below(files[0].name), options)


def _scan_file(place: Place, options: Options) -> Iterator[Entry]:
    """Return everything in a single file of tensors."""
    tensors = place.tensors()
    if options.factors:
        return factors.read(place, options)
    if any(name.startswith(peft.PREFIX) for name in tensors):
        raise CheckpointError(
            f"{place.path}: PEFT's weights without their {peft.CONFIG}, which gives the scale;"
            " expected both in one directory, or --factors A B --scale X"
        )
    for family in FILES:
        if family.recognise(place):
            return family.read(place, options)
    raise CheckpointError(
        f"{place.path}: no pair of factors by any known names; expected lora_A and lora_B,"
        " lora_down and lora_up, or the patterns of their names, --factors A B"
    )


def _files(path: Path) -> list[Path]:
    """Return the files of tensors in a directory, without a trainer's state; or `path`, a file."""
    if path.is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file())
    weights = [file for file in files if file.suffix in OPEN]
    return weights or [
        file for file in files if file.suffix in PICKLES and not STATE.match(file.name)
    ]


def formats() -> Iterator[str]:
    """Yield one line per family or variant: its name and the first line of its docstring."""
    modules: list[Family | ModuleType] = [*FORMATS, *VARIANTS, *FILES, factors]
    for module in dict.fromkeys(modules):
        yield f"{module.__name__.rpartition('.')[2]:14} {(module.__doc__ or '').splitlines()[0]}"


def inputs(path: str | Path | Run) -> list[Path]:
    """Return every file of a checkpoint or a model that a result may depend on."""
    source = _source(path)
    directory = source.place.path
    if directory.is_file():
        return [directory]
    if experts in source.families:
        below = [expert.path for expert in experts.directories(source.place)]
        return sorted(
            {directory / experts.CONFIG, *(f for path in below for f in _files_read(path))}
        )
    return _files_read(directory)


def _files_read(directory: Path) -> list[Path]:
    """Return the configs and the files of tensors in one directory."""
    configs = [file for file in directory.iterdir() if file.suffix in (".json", ".bin")]
    return sorted({*configs, *_files(directory)})


def runs(paths: Iterable[str | Path | Run]) -> list[Run]:
    """Return the checkpoints at `paths` with their names.

    paths: checkpoints, or directories of checkpoint-N, which stand for all of their steps. A Run
    is not looked for again.

    A run is called by its last path component; X/checkpoint-N is run X at step N. Runs of equal
    names get their parents in front until they differ. Raises CheckpointError for a path that does
    not exist or is given twice, and for two checkpoints of the same run and step.
    """
    sources = [source for path in paths for source in _sources(path)]
    # Not resolved: a link is called what the user calls it.
    places = [Path(os.path.abspath(source.path)) for source in sources]
    times = Counter(places)
    for source, place in zip(sources, places, strict=True):
        if times[place] > 1:
            raise CheckpointError(f"{source.path}: given twice")
    steps = [STEP.fullmatch(place.name) for place in places]
    homes = [place.parent if step else place for place, step in zip(places, steps, strict=True)]
    names = _names(homes)
    by_key: dict[str, Run] = {}
    for source, home, step in zip(sources, homes, steps, strict=True):
        run = Run(source.path, names[home], int(step[1]) if step else None, source)
        first = by_key.setdefault(run.key, run)
        if first is not run:
            raise CheckpointError(
                f"{run.path}: is {run.key}, and so is {first.path}; expected one checkpoint per run"
                " and step (rename or remove one)"
            )
    return list(by_key.values())


def _source(path: str | Path | Run) -> Source:
    """Return the place and the families of the checkpoint at a path.

    The path of the weight file that a family reads stands for its directory. Raises
    CheckpointError if the path does not exist or is a file of another kind.
    """
    if isinstance(path, Run):
        return path.source or _source(path.path)
    path = Path(path)
    if not path.exists():
        return _recognised(path, base.directory(path))
    if path.is_dir():
        return _recognised(path, path)
    if path.name in WEIGHTS:
        source = _recognised(path.parent, path.parent)
        if source.family:
            weights = shards.locate(path.parent, *source.family.STEMS)
            if path != weights:
                raise CheckpointError(
                    f"{path}: the checkpoint in its directory is read from"
                    f" {weights.name if weights else 'other files'}; expected that, or a directory"
                    " of its own"
                )
            return source
    if path.suffix not in (*OPEN, *PICKLES):
        raise CheckpointError(
            f"{path}: is a file; expected a checkpoint directory, or a file of tensors"
        )
    return Source(path, Place(path), ())


def _recognised(path: Path, directory: Path) -> Source:
    """Return a directory with the families that recognise it; path: its name for the user."""
    place = Place(directory)
    return Source(path, place, tuple(family for family in FORMATS if family.recognise(place)))


def _sources(path: str | Path | Run) -> list[Source]:
    """Return the checkpoints that a path stands for.

    They are the checkpoint at the path with the further adapters below it, or its checkpoint-N in
    the order of N, or the adapters below it, or its files of tensors.
    """
    source = _source(path)
    directory = source.place.path
    if isinstance(path, Run) or directory.is_file():
        return [source]
    if source.families:
        return [source, *_adapters_below(source)]
    steps = _steps_below(directory)
    if steps:
        return [_recognised(step, step) for step in steps]
    adapters = _adapters_below(source)
    if adapters:
        return adapters
    files = _files(directory)
    return [Source(file, Place(file), ()) for file in files] if len(files) > 1 else [source]


def passed_over(run: Run) -> int:
    """Return how many checkpoint-N below a run are not read, since it is a checkpoint itself."""
    source = run.source
    return len(_steps_below(source.place.path)) if source and source.families else 0


def _steps_below(directory: Path) -> list[Path]:
    """Return the directories checkpoint-N in `directory`, in the order of N."""
    steps = [
        (int(match[1]), child)
        for child in directory.iterdir()
        if (match := STEP.fullmatch(child.name)) and child.is_dir()
    ]
    return [child for _, child in sorted(steps)]


def _adapters_below(source: Source) -> list[Source]:
    """Return the directories in which PEFT saves all adapters of a model but the default one.

    CLOSED families have none: lora/ below a checkpoint of this project's methods is the same update
    again, and the directories of a bank of experts are its parts.
    """
    if any(family in CLOSED for family in source.families):
        return []
    return [
        _recognised(child, child)
        for child in sorted(source.place.path.iterdir())
        if (child / peft.CONFIG).is_file() and not STEP.fullmatch(child.name)
    ]


def _names(homes: Iterable[Path]) -> dict[Path, str]:
    """Return path → the shortest end of it, in whole components, that no other path has."""
    distinct = list(dict.fromkeys(homes))
    length = dict.fromkeys(distinct, 1)
    while True:
        names = {home: "/".join(home.parts[-length[home] :]) for home in distinct}
        shared = [h for h in distinct if list(names.values()).count(names[h]) > 1]
        if not shared:
            return names
        for home in shared:
            length[home] += 1


def with_base(options: Options | None, base: str | Path | None) -> Options:
    """Return `options` with `base` filled in; UserError if they already name another base."""
    options = options or Options()
    if base is None:
        return options
    if options.base is not None and Path(options.base) != Path(base):
        raise UserError(f"base is {base}, options.base is {options.base}; expected one of them")
    return replace(options, base=Path(base))
