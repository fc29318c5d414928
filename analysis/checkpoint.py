"""A path → its updates: which checkpoints there are, what each is called, who reads it."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis import CheckpointError, UserError
from analysis.formats import (
    Options,
    adalora,
    base,
    diffusers,
    dora,
    experts,
    factors,
    full,
    kohya,
    loralib,
    lycoris,
    merged_linear,
    model,
    mtllora,
    multilora,
    peft,
    rlora,
    shards,
    starts,
    through_peft,
)
from analysis.formats.tensors import open_tensors
from analysis.names import run_key
from analysis.update import Entry, Other, Skipped, Update

# In this order: the first that recognises a directory reads it.
OWN = (multilora, rlora, mtllora)
FORMATS = (experts, *OWN, full, peft, model)
# The names, without suffix, of the weight file that each of them opens.
STEMS: dict[Any, tuple[str, ...]] = {
    experts: (),
    **dict.fromkeys(OWN, (peft.STEM,)),
    full: (Path(full.WEIGHTS).stem,),
    peft: (peft.STEM,),
    model: base.STEMS,
}
WEIGHTS = {
    stem + suffix for stems in STEMS.values() for stem in stems for suffix in shards.SUFFIXES
}
# Likewise, of a single file, by the names of its tensors.
FILES = (kohya, diffusers, loralib)
# Read by `peft` and `kohya`, each by rules of its own.
VARIANTS = (adalora, dora, merged_linear, starts, through_peft, lycoris)
STEP = re.compile(r"checkpoint-(\d+)")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
STATE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state)")


@dataclass(frozen=True)
class Run:
    """A checkpoint and what its rows are called: the run, and the step inside the run."""

    path: Path
    name: str
    step: int | None

    @property
    def key(self) -> str:
        """run, or run@step."""
        return run_key(self.name, self.step)


def read(
    path: str | Path, base: str | Path | None = None, options: Options | None = None
) -> Iterator[Update]:
    """Every update of the checkpoint at `path`, low-rank or dense, in the file's order.

    Raises CheckpointError where there is no checkpoint, and at the first module that cannot be
    analysed; `scan` goes on instead. UserError if `base` and `options.base` differ.
    """
    for entry in scan(path, with_base(options, base)):
        if isinstance(entry, Skipped):
            raise CheckpointError(entry.reason)
        if not isinstance(entry, Other):
            yield entry


def scan(path: str | Path, options: Options | None = None) -> Iterator[Entry]:
    """Everything in the checkpoint at `path`: updates, Skipped with a reason, Other tensors.

    Raises CheckpointError where the checkpoint as a whole cannot be read.
    """
    options = options or Options()
    place = _place(Path(path))
    family = None if options.factors else _family(place)
    if family:
        return family.read(place, options)
    files = _files(place)
    if len(files) != 1:
        raise CheckpointError(
            f"{path}: no checkpoint here; expected {peft.CONFIG} with {peft.STEM}.safetensors,"
            f" {full.CONFIG} with {full.WEIGHTS}, a model's weights, or a file of factors"
        )
    return _file(files[0], options)


def _families(place: Path) -> list[Any]:
    """The modules of `analysis.formats` that recognise a directory."""
    return [family for family in FORMATS if family.recognises(place)]


def _family(place: Path) -> Any:
    """The one that reads it; None where none does. CheckpointError where two updates lie there."""
    found = _families(place)
    if full in found and peft in found:
        raise CheckpointError(
            f"{place}: holds an adapter and a stored difference ({full.WEIGHTS}); expected one"
        )
    return found[0] if found else None


def _files(place: Path) -> list[Path]:
    """The files of tensors that a directory has, or that `place` is; not a trainer's own state."""
    if place.is_file():
        return [place]
    found = sorted(file for file in place.iterdir() if file.is_file())
    weights = [file for file in found if file.suffix == ".safetensors"]
    return weights or [
        file for file in found if file.suffix in PICKLES and not STATE.match(file.name)
    ]


def _file(file: Path, options: Options) -> Iterator[Entry]:
    """Everything in a single file of tensors."""
    tensors = open_tensors(file)
    if options.factors:
        return factors.read(file, tensors, options)
    if any(name.startswith(peft.PREFIX) for name in tensors):
        raise CheckpointError(
            f"{file}: PEFT's weights without their {peft.CONFIG}, which says the scale; expected"
            " both in one directory, or --factors A B --scale X"
        )
    for family in FILES:
        if family.recognises(tensors):
            return family.read(file, tensors, options)
    raise CheckpointError(
        f"{file}: no pair of factors by any known names; expected lora_A and lora_B, lora_down and"
        " lora_up, or the patterns of their names, --factors A B"
    )


def formats() -> Iterator[str]:
    """What can be read, a line a family: the first line of each one's documentation."""
    for family in (*FORMATS, *VARIANTS, *FILES, factors):
        yield f"{family.__name__.rpartition('.')[2]:14} {(family.__doc__ or '').splitlines()[0]}"


def inputs(path: Path) -> list[Path]:
    """Every file of a checkpoint or a model that a result may depend on."""
    place = _place(path)
    if place.is_file():
        return [place]
    if experts.recognises(place):
        below = (file for expert in experts.directories(place) for file in inputs(expert))
        return sorted({place / experts.CONFIG, *below})
    configs = [file for file in place.iterdir() if file.suffix in (".json", ".bin")]
    return sorted({*configs, *_files(place)})


def runs(paths: Iterable[str | Path]) -> list[Run]:
    """The checkpoints at `paths`, named; a directory of checkpoint-N stands for all of them.

    A run is called by its last path component; X/checkpoint-N is run X at step N. Runs of equal
    names get their parents in front until they differ. Raises CheckpointError for a path that
    does not exist or is given twice.
    """
    found = [step for path in paths for step in _steps(Path(path))]
    # Not resolved: a link is called what the user calls it.
    places = [Path(os.path.abspath(path)) for path in found]
    for path, place in zip(found, places, strict=True):
        if places.count(place) > 1:
            raise CheckpointError(f"{path}: given twice")
    steps = [STEP.fullmatch(place.name) for place in places]
    homes = [place.parent if step else place for place, step in zip(places, steps, strict=True)]
    names = _names(homes)
    return [
        Run(path, names[home], int(step[1]) if step else None)
        for path, home, step in zip(found, homes, steps, strict=True)
    ]


def _steps(path: Path) -> Sequence[Path]:
    """`path` and the further adapters below it, its checkpoint-N in order of N, or its files."""
    place = _place(path)
    if place.is_file():
        return [path]
    if _families(place):
        return [place if path.is_file() else path, *_adapters_below(place)]
    steps = _steps_below(place)
    if steps:
        return steps
    files = _files(place)
    return _adapters_below(place) or (files if len(files) > 1 else [path])


def passed_over(path: Path) -> int:
    """How many checkpoint-N lie below a directory that is a checkpoint itself and read alone."""
    return len(_steps_below(path)) if path.is_dir() and _families(path) else 0


def _steps_below(directory: Path) -> list[Path]:
    """The directories checkpoint-N in `directory`, in order of N."""
    steps = {
        int(match[1]): child
        for child in directory.iterdir()
        if (match := STEP.fullmatch(child.name)) and child.is_dir()
    }
    return [steps[step] for step in sorted(steps)]


def _adapters_below(directory: Path) -> list[Path]:
    """Where PEFT saves all adapters of a model but the default one: a directory each.

    Not lora/ below a checkpoint of this project's methods, which is the same update again, nor the
    parts of a bank of experts.
    """
    if any(family.recognises(directory) for family in (experts, *OWN)):
        return []
    return sorted(
        child
        for child in directory.iterdir()
        if (child / peft.CONFIG).is_file() and not STEP.fullmatch(child.name)
    )


def _place(path: Path) -> Path:
    """Where the checkpoint lies: a directory, also for a path to its weight file; else a file."""
    if not path.exists():
        return base.directory(path)
    if path.is_dir():
        return path
    if path.name in WEIGHTS and (family := _family(path.parent)):
        weights = shards.locate(path.parent, *STEMS[family])
        if path != weights:
            raise CheckpointError(
                f"{path}: beside it lies {weights and weights.name}, which is what is read of its"
                " directory; expected that, or a directory of its own"
            )
        return path.parent
    if path.suffix not in (".safetensors", *PICKLES):
        raise CheckpointError(
            f"{path}: is a file; expected a checkpoint directory, or a file of tensors"
        )
    return path


def _names(homes: Iterable[Path]) -> dict[Path, str]:
    """The shortest ends of the paths, whole components, that tell them apart."""
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
