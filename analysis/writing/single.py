"""Write a single file of factors anew, under the names that its own format has: kohya, diffusers.

Where a module has α, it keeps it: its scale is α/r of its new r, and its factors make up for that.
(diffusers 0.42 gives all modules of a kohya file the α that most have, so that α must not follow
the rank.) Without α the scale is 1. Factors that are not cut stay as they were, and so do tensors
of other kinds and the metadata, but for what is about ranks and hashes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from safetensors.numpy import save_file

from analysis import CheckpointError, UserError, checkpoint
from analysis.checkpoint import Source
from analysis.files import exchange
from analysis.files.place import Place
from analysis.formats import diffusers, kohya
from analysis.update import LowRankUpdate
from analysis.writing import peft

SUFFIX = ".safetensors"
# Metadata about ranks, and hashes of what is no longer there.
RANKS = ("ss_network_dim",)
OUTDATED = ("sshs_", "modelspec.hash", diffusers.METADATA)
Names = dict[str, dict[str, str]]  # module → "A", "B", "alpha" → the name of a tensor


def family(place: Place) -> ModuleType | None:
    """Return the family that reads the file, if it is one that can be written."""
    reads = next((one for one in checkpoint.FILES if one.recognise(place)), None)
    return reads if reads in (kohya, diffusers) else None


def of(source: Source) -> Place | None:
    """Return the checkpoint's only file of tensors; None if it has more, or cannot be written."""
    if source.families:
        return None
    files = checkpoint.inputs(source.path) if source.place.path.is_dir() else [source.place.path]
    place = Place(files[0]) if len(files) == 1 else None
    return place if place and family(place) else None


def names(place: Place) -> Names:
    """Return the names of the tensors of each module.

    Raises CheckpointError for a module that is not a pair of factors alone, such as LoHa or DoRA.
    """
    found: Names = {}
    for name, module, part in _split(place):
        found.setdefault(module, {})[part] = name
    for module, parts in found.items():
        if not {"A", "B"} <= parts.keys() <= {"A", "B", "alpha"}:
            raise CheckpointError(
                f"{place.path}: {module}: has {', '.join(parts)}; expected a pair of factors"
                " alone, which other factors could replace"
            )
    return found


def _split(place: Place) -> Iterator[tuple[str, str, str]]:
    """Yield name, module and part ("A", "B", "alpha") of each tensor that belongs to a module."""
    if family(place) is kohya:
        for name, layer, part in kohya.split(place):
            if layer and not part.endswith(kohya.BIASES):
                yield name, kohya.dotted(layer), kohya.ROLES.get(part, part)
    else:
        yield from (found for found in diffusers.split(place) if found[1])


def write(
    out: Path,
    place: Place,
    updates: Sequence[LowRankUpdate],
    dtype: np.dtype,
    force: bool = False,
) -> list[LowRankUpdate]:
    """Write the file of `place` with these updates to `out`; return them as they are stored.

    updates: by the names of modules in the file; modules without one are left out.
    dtype: of the factors.

    Raises UserError if `out` exists and `force` is not set, or if its name is not that of a file
    of safetensors; CheckpointError, and leaves nothing, if it reads as something else.
    """
    if out.suffix != SUFFIX:
        raise UserError(f"{out}: expected a name that ends with {SUFFIX}, as {place.path.name}")
    peft.check_free(out, force)
    of_module, old = names(place), place.tensors()
    # Diffusers takes α for the rank if there is none.
    with_alpha = family(place) is kohya
    stored = []
    for update in updates:
        alpha = of_module[update.name].get("alpha") if with_alpha else None
        scale = _scale(old[alpha].load(), update.r) if alpha else 1.0
        stored.append(peft.as_stored(update, dtype, alpha is not None, scale))
    used = {name for parts in of_module.values() for name in parts.values()}
    tensors = {name: tensor.load() for name, tensor in old.items() if name not in used}
    for update in stored:
        parts = of_module[update.name]
        for role, M in (("A", update.A), ("B", update.B)):
            shape = old[parts[role]].shape
            inner = (update.r, *shape[1:]) if role == "A" else (shape[0], update.r, *shape[2:])
            tensors[parts[role]] = np.ascontiguousarray(M.reshape(inner))
        if "alpha" in parts and with_alpha:
            tensors[parts["alpha"]] = np.array(update.scale * update.r, np.float32)
    with exchange.replacing(out.parent) as new:
        save_file(tensors, new / out.name, metadata=_metadata(place, stored))
        peft.check_written(new / out.name, stored, out)
    return stored


def _scale(alpha: np.ndarray, r: int) -> float:
    """Return α/r for factors of rank r; 1 if α is not a number above 0."""
    value = float(alpha.reshape(-1)[0]) if alpha.size else 0.0
    return value / r if 0 < value < float("inf") else 1.0


def _metadata(place: Place, stored: Sequence[LowRankUpdate]) -> dict[str, str] | None:
    """Return the metadata of the file without what no longer holds."""
    ranks = {update.r for update in stored}
    dim = str(*ranks) if len(ranks) == 1 else "Dynamic"
    kept: Mapping[str, str] = {
        key: dim if key in RANKS else value
        for key, value in place.metadata().items()
        if isinstance(value, str) and not key.startswith(OUTDATED)
    }
    return dict(kept) or None
