"""File of kohya's sd-scripts, LyCORIS, musubi-tuner or ComfyUI: lora_down, lora_up and alpha.

    lora_unet_<module_with_underscores>.lora_down.weight     (r, d_in), or (r, d_in, *kernel)
    lora_unet_<module_with_underscores>.lora_up.weight       (d_out, r), or (d_out, r, 1, 1)
    lora_unet_<module_with_underscores>.alpha                one number; r if it is missing
    diffusion_model.<module>.lora_down.weight, …             the same with the module's own path
    <module>.diff                                            ΔW as a matrix or a kernel
    <module>.dora_scale                                      magnitude of DoRA, needs --base

ΔW = alpha/r · up @ down. Underscores in the place of dots cannot be undone: numbers are taken for
components of their own, `unet.down_blocks.0.attentions.1.…`. The beginnings lora_ and lycoris_ are
left out, and diffusion_model. of names with dots. `lycoris` and `lokr` read LoHa, the Tucker form
(lora_mid) and LoKr. DoRA of LyCORIS rescales the rows of W0 + ΔW, or its columns if dora_scale has
one number for each input; --direction-only reads ΔW without that. Layers of OFT, and with tensors
of other kinds, are skipped.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.tensors import FLOATS, Stored
from analysis.formats import Options, base, dora, factors, lokr, lycoris, orientation, peft
from analysis.numerics.denoise import noise_size
from analysis.numerics.floor import noise_floor
from analysis.update import DenseUpdate, Entry, LowRankUpdate, Other, Skipped, Update

KEY = re.compile(
    r"(?P<module>.+)\.(?P<tensor>lora_(?:down|up|A|B|mid)\.weight|alpha"
    r"|dora_scale|diff|set_weight|(?:hada|lokr|oft)_[^.]+)",
    re.DOTALL,
)
ROLES = {
    "lora_down.weight": "A", "lora_up.weight": "B", "lora_A.weight": "A", "lora_B.weight": "B",
}  # fmt: skip
# Names that other families have too.
SHARED = ("alpha", "lora_A.weight", "lora_B.weight")
BIASES = ("bias", "diff_b")
MAGNITUDE = "dora_scale"
# The components of a model in the names with underscores, which begin with lora_ or lycoris_.
COMPONENT = re.compile(
    r"^(?:lora|lycoris)_(prior_unet|prior_te|prior|unet|te[0-9]*|text_encoder(?:_[0-9])?|transformer)_+"
)
ROOT = re.compile(r"^(?:model\.)?diffusion_model\.")
# What LyCORIS adds to a norm before it divides by it: the eps of float32.
EPS = float(np.finfo(np.float32).eps)
# Tensors of methods whose ΔW is a function of W0.
UNREAD = {
    "oft_": "OFT multiplies W0 by a rotation: not read",
    "set_weight": "replaces W0: not read",
}


def recognise(place: Place) -> bool:
    """Return whether the file has names of sd-scripts or LyCORIS; `alpha` alone is not enough.

    LoHa and LoKr below PEFT's root are PEFT's, whose scale is not that of LyCORIS.
    """
    names = place.tensors()
    matches = (KEY.fullmatch(name) for name in names)
    ours = any(match and match["tensor"] not in SHARED for match in matches)
    return ours and not any(peft.ROOT.fullmatch(name) for name in names)


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of the file; layers of OFT and the like are skipped.

    Raises CheckpointError if two layers get one name, or if a layer is DoRA and there is neither a
    base nor `direction_only`.
    """
    file = place.path
    layers: dict[str, dict[str, Stored]] = {}
    for name, layer, part in split(place):
        if not layer or part.endswith(BIASES):
            yield factors.unpaired(name, file, "is not part of a pair of lora_down and lora_up")
        else:
            layers.setdefault(layer, {})[ROLES.get(part, part)] = place.tensors()[name]
    layers = orientation.oriented(layers, str(file), options, named=True)
    modules: dict[str, str] = {}
    for layer in layers:
        first = modules.setdefault(dotted(layer), layer)
        if first != layer:
            raise CheckpointError(f"{file}: {layer} and {first} are both {dotted(layer)}")
    W0: dict[str, Stored | list[str]] = {}
    decomposed = [layer for layer, parts in layers.items() if MAGNITUDE in parts]
    if decomposed and not options.direction_only:
        if options.base is None:
            raise CheckpointError(
                f"{file}: has {MAGNITUDE}: DoRA rescales W0 + B·A; pass the base weights, --base"
                " DIR, or look at B·A alone, --direction-only"
            )
        W0 = weights(options.base, decomposed)
    for module, layer in modules.items():
        try:
            yield from _layer(module, layers[layer], file, options, W0.get(layer))
        except CheckpointError as error:
            yield Skipped(module, str(error))


def split(place: Place) -> Iterator[tuple[str, str, str]]:
    """Yield each name of the file with its layer and what follows; the layer is "" if it has none.

    A layer is what stands before a tensor of KEY; its other tensors are those whose names begin
    with it.
    """
    tensors = place.tensors()
    matches = {name: KEY.fullmatch(name) for name in tensors}
    layers = {match["module"] for match in matches.values() if match}
    for name, match in matches.items():
        layer = match["module"] if match else name
        while layer not in layers and "." in layer:
            layer = layer.rpartition(".")[0]
        yield (name, layer, name[len(layer) + 1 :]) if layer in layers else (name, "", name)


def dotted(layer: str) -> str:
    """Return the name of a layer's module: with dots around its numbers, or without its root.

    >>> dotted("lora_unet_down_blocks_0_attn1_to_q")
    'unet.down_blocks.0.attn1_to_q'
    >>> dotted("diffusion_model.blocks.0.self_attn.q")
    'blocks.0.self_attn.q'
    """
    if "." in layer:
        return ROOT.sub("", layer) or layer
    match = COMPONENT.match(layer)
    component = f"{match[1]}." if match else ""
    name, before = "", ""
    for word in filter(None, _flat(layer).split("_")):
        number = word.isdigit() or before.isdigit()
        name += (("." if number else "_") if name else "") + word
        before = word
    return component + name


def _layer(
    module: str,
    parts: dict[str, Stored],
    file: Path,
    options: Options,
    W0: Stored | list[str] | None,
) -> Iterator[Entry]:
    """Yield the update of one layer.

    module: its name; parts: its tensors, by ROLES or by their own names; W0: its weight in the
    base, or the names of several that could be it.
    """
    where = f"{file}: {module}"
    magnitude = parts.get(MAGNITUDE)
    rest = {part: tensor for part, tensor in parts.items() if part != MAGNITUDE}
    if magnitude is None or options.direction_only:
        if set(rest) - {"alpha"} == {"diff"} and len(rest["diff"].shape) < 2:
            yield Other(f"{module}.diff", "is the change of a vector")
            return
        yield _direction(module, rest, file, options.scale_or_one)
        return
    if isinstance(W0, list):
        raise CheckpointError(f"{where}: could be {' or '.join(W0)} of the base; expected one")
    direction = _direction(module, rest, file, options.scale_or_one)
    shape, (d_out, d_in) = magnitude.shape, direction.shape
    kernel = math.prod(W0.shape[2:]) if W0 else 1
    of_inputs = len(shape) > 1 and shape[0] == 1 and shape[1] * kernel == d_in and d_out > 1
    yield dora.update(
        direction,
        magnitude,
        W0,
        transposed=False,
        of_inputs=of_inputs,
        eps=EPS,
    )


def _direction(module: str, parts: dict[str, Stored], file: Path, scale: float) -> Update:
    """Return ΔW of a layer, before any magnitude; scale: its scale if there is no alpha."""
    where = f"{file}: {module}"
    for part in parts:
        reason = next((why for start, why in UNREAD.items() if part.startswith(start)), "")
        if reason:
            raise CheckpointError(f"{where}: {part}: {reason}")
    if "diff" in parts and not parts.keys() - {"diff", "alpha"}:
        return _difference(module, parts["diff"], file)
    if any(part.startswith("lokr_") for part in parts):
        return lokr.update(module, parts, str(file), scale)
    if any(part.startswith("hada_") for part in parts):
        return lycoris.update(module, parts, str(file), scale)
    if "lora_mid.weight" in parts:
        return lycoris.tucker(module, parts, str(file), scale)
    B, A = factors.pair(parts, where)
    if "alpha" in parts:
        scale = factors.alpha(parts["alpha"], where) / len(A)
    return LowRankUpdate(module, B, A, scale, method="kohya", source=str(file))


def _difference(module: str, diff: Stored, file: Path) -> DenseUpdate:
    """Return ΔW that is stored as it is; its noise is the rounding to the stored dtype."""
    if diff.dtype not in FLOATS or 0 in diff.shape or len(diff.shape) < 2:
        raise CheckpointError(
            f"{file}: {module}: diff is {diff.dtype} {diff.shape}; expected a floating-point matrix"
        )
    shape = diff.shape[0], math.prod(diff.shape[1:])

    def stored() -> np.ndarray:
        return diff.load().reshape(shape)

    def load() -> np.ndarray:
        W = stored()
        with np.errstate(invalid="ignore"):  # NaN, which is reported later
            return W.astype(np.float64 if W.dtype.itemsize == 8 else np.float32)

    def floor() -> float:
        return noise_floor(stored())

    def noise() -> float:
        return noise_size(stored())

    return DenseUpdate(module, shape, load, floor, method="full", source=str(file), noise=noise)


def weights(path: Path, layers: list[str]) -> dict[str, Stored | list[str]]:
    """Return layer → its weight in the base, or the names of all that could be it.

    Layers without a weight are left out. A layer's name with dots is matched as it is, one with
    underscores with the base's names whose dots are replaced, without its component; in both, the
    base's names may have one prefix of up to two components.
    """
    _, stored = base.open_model(Place(base.directory(path)))
    modules = [name.removesuffix(".weight") for name in stored if name.endswith(".weight")]
    starts = {".".join(name.split(".")[:n]) + "." for name in modules for n in (1, 2)}
    best: dict[str, list[str]] = {}
    wanted = {layer: _flat(layer) for layer in layers}
    for start in ["", *sorted(starts)]:
        known: dict[str, list[str]] = defaultdict(list)
        for name in modules:
            if name.startswith(start):
                known[name[len(start) :].replace(".", "_")].append(f"{name}.weight")
        found = {layer: known[flat] for layer, flat in wanted.items() if flat in known}
        if len(found) > len(best):
            best = found
    exact = {layer: [n for n in names if _same(layer, n)] or names for layer, names in best.items()}
    return {layer: stored[n[0]] if len(n) == 1 else n for layer, n in exact.items()}


def _flat(layer: str) -> str:
    """Return a layer's name with underscores, without its component or its root."""
    if "." in layer:
        return ROOT.sub("", layer).replace(".", "_")
    return re.sub("^lycoris_", "", COMPONENT.sub("", layer)).lstrip("_")


def _same(layer: str, name: str) -> bool:
    """Return whether a layer's name with dots is that of a weight, up to a prefix."""
    return "." in layer and f".{name}".endswith(f".{ROOT.sub('', layer)}.weight")
