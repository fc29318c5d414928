"""Find the checkpoints at a path, name them, and read them with the family that recognises them."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from analysis import CheckpointError, UserError
from analysis.files import distributed, foreign, hub, shards
from analysis.files.place import Place
from analysis.files.tensors import by_number
from analysis.formats import (
    DirectoryFamily,
    Family,
    Options,
    adalora,
    adapterhub,
    diffusers,
    dora,
    experts,
    factors,
    full,
    gguf,
    kohya,
    litgpt,
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
    starts,
    state_dict,
    target_parameters,
    through_peft,
    torchtune,
)
from analysis.names import as_text, run_key
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
    litgpt,
    adapterhub,
    peft,
    model,
)
# Families that read single files, in the same way.
FILES: tuple[Family, ...] = (
    gguf,
    kohya,
    adapterhub,
    state_dict,
    diffusers,
    mlx,
    torchtune,
    litgpt,
    loralib,
)
# Variants, which `peft` and `kohya` read by rules in files of their own.
VARIANTS: tuple[ModuleType, ...] = (
    adalora,
    dora,
    merged_linear,
    starts,
    target_parameters,
    through_peft,
    lycoris,
    lokr,
)
# The methods of this project, and the directory of their exports to LoRA.
OWN: tuple[DirectoryFamily, ...] = (multilora, rlora, mtllora)
EXPORT = "lora"
# Checkpoints are looked for this many levels below a directory, in so many directories at most.
DEEP, MANY = 4, 5000
# Names of weight files, each of which stands for its directory.
WEIGHTS = {
    stem + suffix for family in FORMATS for stem in family.STEMS for suffix in shards.SUFFIXES
}
STEP = re.compile(r"checkpoint-(\d+)")
# Configs that a single file may be read with.
BESIDE = (peft.CONFIG, *litgpt.MODELS, litgpt.SETTINGS)


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
    source = _source(path, options.revision)
    family = None if options.factors else source.family
    files = _files(source.place.path)
    without_config = family is peft and not (source.place.path / peft.CONFIG).exists()
    if family and not (without_config and len(files) == 1):
        return family.read(source.place, options)
    if options.factors and source.family:  # the file that its family reads, among others
        weights = shards.locate(source.place.path, *source.family.STEMS)
        files = [weights] if weights else files
    if len(files) != 1:
        if explained := foreign.explain(source.place.path):
            raise CheckpointError(f"{source.path}: {explained}")
        what = f"{len(files)} files of tensors" if files else "no checkpoint here"
        raise CheckpointError(
            f"{source.path}: {what}; expected {peft.CONFIG} with {peft.STEM}.safetensors,"
            f" {full.CONFIG} with {full.WEIGHTS}, a model's weights, or a file of factors"
        )
    is_file = source.place.path == files[0]
    return _scan_file(source.place if is_file else Place(files[0]), options)


def _scan_file(place: Place, options: Options) -> Iterator[Entry]:
    """Return everything in a single file of tensors."""
    if options.factors:
        return factors.read(place, options)
    for family in FILES:
        if family.recognise(place):
            return family.read(place, options)
    if options.base is not None:
        return model.read(place, options)
    is_model = any(model.is_weight(name, tensor) for name, tensor in place.tensors().items())
    raise CheckpointError(
        f"{place.path}: no pair of factors by any known names; expected lora_A and lora_B,"
        " lora_down and lora_up, or the patterns of their names, --factors A B"
        f"{'; for a whole model, --base DIR' if is_model else ''}"
    )


def _files(path: Path) -> list[Path]:
    """Return the files of tensors in a directory, without a trainer's state; or `path`, a file.

    Of two files that differ in their suffix alone, the first of shards.FILES is returned.
    """
    if path.is_file():
        return [path]
    metadata = distributed.locate(path)
    if metadata:
        return [metadata]
    found: dict[str, Path] = {}
    for suffix in shards.FILES:
        for file in sorted(path.glob(f"*{suffix}")):
            if (
                file.is_file()
                and not shards.STATE.match(file.name)
                and not file.name.startswith(".")
            ):
                found.setdefault(file.stem, file)
    return sorted(found.values())


def formats() -> Iterator[str]:
    """Yield one line per family or variant: its name and the first line of its docstring."""
    modules: list[Family | ModuleType] = [*FORMATS, *VARIANTS, *FILES, factors, distributed, hub]
    for module in dict.fromkeys(modules):
        yield f"{module.__name__.rpartition('.')[2]:14} {(module.__doc__ or '').splitlines()[0]}"


def inputs(path: str | Path | Run) -> list[Path]:
    """Return every file of a checkpoint or a model that a result may depend on."""
    source = _source(path)
    directory = source.place.path
    if directory.is_file():
        beside = (directory.parent / name for name in BESIDE)
        return [directory, *(file for file in beside if file.is_file())]
    if experts in source.families:
        below = [expert.path for expert in experts.directories(source.place)]
        return sorted(
            {directory / experts.CONFIG, *(f for path in below for f in _files_read(path))}
        )
    return _files_read(directory)


def _files_read(directory: Path) -> list[Path]:
    """Return the configs and the files of tensors in one directory, and nothing but files."""
    suffixes = (".json", ".yaml", ".bin")
    named = [file for file in directory.iterdir() if file.suffix in suffixes]
    metadata = distributed.locate(directory)
    pieces = metadata.parent.glob(f"*{distributed.SUFFIX}") if metadata else []
    return sorted({file for file in (*named, *_files(directory), *pieces) if file.is_file()})


def runs(
    paths: Iterable[str | Path | Run], revision: str | None = None, *, steps: bool = False
) -> list[Run]:
    """Return the checkpoints at `paths` with their names.

    paths: checkpoints, or directories of checkpoint-N, which stand for all of their steps, or
        directories that contain such. A Run is not looked for again.
    revision: that of the paths on the hub; UserError if none of them is.
    steps: True to read the checkpoint-N in a directory that is a checkpoint itself, instead of it.

    A run is called by its last path component; X/checkpoint-N is run X at step N. Runs of equal
    names get their parents in front until they differ. Raises CheckpointError for a path that does
    not exist or is given twice, and for two checkpoints of the same run and step.
    """
    given = list(paths)
    if revision and given and all(isinstance(p, Run) or Path(p).exists() for p in given):
        raise UserError(f"revision is {revision!r}; expected a path that is a name on the hub")
    sources = [source for path in given for source in _sources(path, revision, steps)]
    # Not resolved: a link is called what the user calls it.
    places = [Path(os.path.abspath(source.path)) for source in sources]
    times = Counter(places)
    for source, place in zip(sources, places, strict=True):
        if times[place] > 1:
            raise CheckpointError(f"{source.path}: given twice")
    matches = [STEP.fullmatch(place.name) for place in places]
    homes = [place.parent if step else place for place, step in zip(places, matches, strict=True)]
    names = _names(homes)
    by_key: dict[str, Run] = {}
    for source, home, step in zip(sources, homes, matches, strict=True):
        run = Run(source.path, as_text(names[home]), int(step[1]) if step else None, source)
        first = by_key.setdefault(run.key, run)
        if first is not run:
            raise CheckpointError(
                f"{run.path}: is {run.key}, and so is {first.path}; expected one checkpoint per run"
                " and step (rename or remove one)"
            )
    return list(by_key.values())


def at(path: str | Path, revision: str | None = None) -> Run:
    """Return the one checkpoint at a path, named by its last component; arguments as for `runs`."""
    source = _source(path, revision)
    return Run(source.path, source.path.name, None, source)


def _source(path: str | Path | Run, revision: str | None = None) -> Source:
    """Return the place and the families of the checkpoint at a path.

    The path of the weight file that a family reads stands for its directory. Raises
    CheckpointError if the path does not exist or is a file of another kind.
    """
    if isinstance(path, Run):
        return path.source or _source(path.path, revision)
    path = Path(path)
    if not path.exists():
        return _recognised(path, hub.directory(path, revision))
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
    if path.suffix not in shards.FILES and path.name != distributed.METADATA:
        what = foreign.explain(path)
        raise CheckpointError(
            f"{path}: {what or 'is a file; expected a checkpoint directory, or a file of tensors'}"
        )
    return Source(path, Place(path), ())


def _recognised(path: Path, directory: Path) -> Source:
    """Return a directory with the families that recognise it; path: its name for the user."""
    place = Place(directory)
    return Source(path, place, tuple(family for family in FORMATS if family.recognise(place)))


def _sources(path: str | Path | Run, revision: str | None, steps: bool) -> list[Source]:
    """Return the checkpoints that a path stands for.

    They are the checkpoint at the path with the further adapters below it, or its checkpoint-N in
    the order of N, or everything that is found in the directories below it and its own files of
    tensors. Arguments as for `runs`.
    """
    source = _source(path, revision)
    directory = source.place.path
    if isinstance(path, Run) or directory.is_file():
        return [source]
    if checkpoints := _checkpoints_in(source, steps):
        return checkpoints
    if foreign.is_cut(directory):
        return [source]
    files = _files(directory)
    below = _found_below(source, steps)
    if below or len(files) > 1:
        return [*below, *(_of_file(source, file) for file in files)]
    return [source]


def _named(source: Source, child: Path) -> Source:
    """Return the directory `child` below a source, under the user's name for it."""
    return _recognised(source.path / child.relative_to(source.place.path), child)


def _of_file(source: Source, file: Path) -> Source:
    """Return one file of tensors in a source, under the user's name for it."""
    return Source(source.path / file.relative_to(source.place.path), Place(file), ())


def _found_below(source: Source, steps: bool) -> list[Source]:
    """Return the checkpoints in the directories below one that is none, in natural order.

    steps: as for `runs`. Every directory is looked at once, however many links lead to it. Whole
    models are left out where there is anything else: they are its base. Raises CheckpointError if
    there are over MANY directories.
    """
    found: list[Source] = []
    seen = {source.place.path.resolve()}
    left = [(1, child) for child in reversed(_directories(source.place.path))]
    while left:
        depth, child = left.pop()
        real = child.resolve()
        if real in seen:
            continue
        seen.add(real)
        if len(seen) > MANY:
            raise CheckpointError(
                f"{source.path}: has over {MANY} directories; expected those of the checkpoints"
            )
        inner = _named(source, child)
        if checkpoints := _checkpoints_in(inner, steps):
            found += checkpoints
            continue
        if foreign.is_cut(child):
            found.append(inner)
            continue
        files = _files(child)
        found += [inner] if len(files) == 1 else [_of_file(inner, file) for file in files]
        if depth < DEEP:
            left += [(depth + 1, child) for child in reversed(_directories(child))]
    trained = [one for one in found if one.families != (model,)]
    return trained or found


def _checkpoints_in(source: Source, steps: bool) -> list[Source]:
    """Return a directory with its further adapters, if a family reads it, or its steps.

    steps: as for `runs`.
    """
    below = _steps_below(source.place.path)
    if below and (steps or not source.families):
        return [_named(source, step) for step in below]
    return [source, *_adapters_below(source)] if source.families else []


def _directories(path: Path) -> list[Path]:
    """Return the directories in a directory, in natural order, but none that begin with a dot."""
    children = [child for child in path.iterdir() if not child.name.startswith(".")]
    return sorted((c for c in children if c.is_dir()), key=lambda child: by_number(child.name))


def passed_over(run: Run) -> int:
    """Return how many checkpoint-N below a run are not read, since it is a checkpoint itself."""
    source = run.source
    return len(_steps_below(source.place.path)) if source and source.families else 0


def ends(paths: Iterable[str | Path | Run]) -> list[Path]:
    """Return those of the directories that are a checkpoint themselves and contain steps.

    It is the state at the end of the run, which `runs` leaves out when it reads the steps.
    """
    sources = [_source(path) for path in paths if isinstance(path, Run) or Path(path).is_dir()]
    directories = [s for s in sources if s.families and s.place.path.is_dir()]
    return [source.path for source in directories if _steps_below(source.place.path)]


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

    Not those of a bank of experts, which are its parts, nor lora/ below an adapter of this
    project's methods, which is the same update again.
    """
    if experts in source.families:
        return []
    exported = any(family in OWN for family in source.families)
    adapters = [
        _named(source, child)
        for child in _directories(source.place.path)
        if (child / peft.CONFIG).is_file() and not STEP.fullmatch(child.name)
    ]
    return [
        adapter
        for adapter in adapters
        if not (exported and adapter.path.name == EXPORT and adapter.families == (peft,))
    ]


def _names(homes: Iterable[Path]) -> dict[Path, str]:
    """Return path → the shortest end of it, in whole components, that no other path has."""
    distinct = list(dict.fromkeys(homes))
    length = dict.fromkeys(distinct, 1)
    while True:
        names = {home: "/".join(home.parts[-length[home] :]) for home in distinct}
        times = Counter(names.values())
        shared = [home for home in distinct if times[names[home]] > 1]
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
