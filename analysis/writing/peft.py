"""Write a PEFT LoRA adapter whose modules have ranks of their own.

The scale of a module is α/r by `rank_pattern` and `alpha_pattern`, without rsLoRA; it is 1 for all
factors that are not stored as they were.
What was written is read again by the reader that everybody uses, and compared, before it takes its
place.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from analysis import CheckpointError, UserError, checkpoint, store
from analysis.files import exchange
from analysis.files.place import Place
from analysis.formats import peft
from analysis.numerics import compress
from analysis.update import LowRankUpdate, Skipped, float64

DTYPES = ("float32", "float16", "bfloat16")  # that factors can be written in
WEIGHTS = f"{peft.STEM}.safetensors"
RECORD = store.RECORD
# Settings of LoRA under which B·A is not ΔW, or starts elsewhere; the adapter that is written has
# none of them.
PLAIN = {
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "init_lora_weights": True,
    "inference_mode": True,
    "layers_to_transform": None,
    "layers_pattern": None,
    "exclude_modules": None,
    "target_parameters": None,
}


@dataclass(frozen=True)
class Layout:
    """How the factors of a module are stored.

    embedding: under lora_embedding_A and _B.
    kernel: the sizes of a convolution's kernel: A is (r, d_in, *kernel), B (d_out, r, 1, …).
    """

    embedding: bool = False
    kernel: tuple[int, ...] = ()


LINEAR = Layout()


@dataclass(frozen=True, eq=False)
class Original:
    """What an adapter has besides the numbers of its factors.

    config: adapter_config.json. layouts: of each module. carried: tensors that belong to no update
    (saved heads, biases, trained tokens), by name.
    """

    config: dict[str, Any]
    layouts: dict[str, Layout] = field(default_factory=dict)
    carried: dict[str, np.ndarray] = field(default_factory=dict)


def original(path: Path) -> Original:
    """Return what a PEFT LoRA adapter has besides its factors.

    Raises CheckpointError as `layouts`.
    """
    place = Place(path)
    of_modules = layouts(place)  # before anything large is read
    file = peft.weights(place)
    tensors = place.tensors(file)
    others, _ = peft.by_module(tensors, file)
    carried = {name: tensors[name].load() for name in others}
    return Original(place.json(peft.CONFIG), of_modules, carried)


def layouts(place: Place) -> dict[str, Layout]:
    """Return how the factors of each module of a PEFT LoRA adapter are stored.

    Raises CheckpointError for an adapter whose modules cannot each be replaced by a pair of
    factors: fused layers with parts, several adapters in one file, a convolution in groups, a bias
    of B, factors of a parameter (target_parameters).
    """
    file, config = peft.weights(place), place.json(peft.CONFIG)
    if config.get("target_parameters"):
        raise CheckpointError(
            f"{place.path / peft.CONFIG}: target_parameters is set: factors belong to parameters;"
            " expected modules alone, for which other factors can be written"
        )
    tensors = place.tensors(file)
    _, modules = peft.by_module(tensors, file)
    found = {}
    for (module, part), parts in modules.items():
        shapes = {role: tensors[name].shape for role, name in parts.items()}
        pairs = [{f"{stem}{f}{end}" for f in "AB"} for stem, end in PAIRS]
        if part or set(shapes) not in pairs:
            raise CheckpointError(
                f"{file}: {module}: has {', '.join(parts)}"
                f"{f' of several adapters ({part})' if part else ''}; expected lora_A and lora_B"
                " alone, which other factors could replace (python -m analysis.extract makes a"
                " plain LoRA of ΔW)"
            )
        embedding = "lora_embedding_A" in shapes
        A, B = (shapes[f"lora_embedding_{f}" if embedding else f"lora_{f}.weight"] for f in "AB")
        if B[1] != A[0] or any(n != 1 for n in B[2:]):
            raise CheckpointError(
                f"{file}: {module}: B is {B}, A is {A}: a convolution in groups, or a fused layer"
                " with parts; expected one product B·A"
            )
        found[module] = Layout(embedding, tuple(A[2:]))
    return found


PAIRS = (("lora_", ".weight"), ("lora_embedding_", ""))


def write(
    out: Path,
    updates: Sequence[LowRankUpdate],
    dtype: np.dtype | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    carried: Mapping[str, np.ndarray] | None = None,
    layouts: Mapping[str, Layout] | None = None,
    record: Mapping[str, Any] | None = None,
    force: bool = False,
) -> list[LowRankUpdate]:
    """Write an adapter into the directory `out`, all of it or nothing; return it as it is stored.

    updates: one per module, at least one.
    dtype: of the factors; None for the coarsest in which the updates are stored.
    config: settings to take over, such as base_model_name_or_path and task_type.
    carried: further tensors, by name.
    layouts: module → how its factors are stored; a matrix where it is not given.
    record: written as record.json, if given.
    force: replace what is there.

    Raises UserError if `out` holds something and `force` is not set, or if a factor overflows in
    its dtype; CheckpointError, and leaves nothing, if what was written reads as something else.
    """
    check_free(out, force)
    if not updates:
        raise UserError(f"{out}: no module is left to write; expected at least one")
    dtype = compress.stored_dtype(updates) if dtype is None else dtype
    stored = [as_stored(update, dtype) for update in updates]
    tensors = dict(carried or {})
    for update in stored:
        tensors |= _tensors(update, (layouts or {}).get(update.name, LINEAR))
    settings = settings_of(stored, config or {})
    new_directory = not out.exists()
    try:
        with exchange.replacing(out) as new:
            save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
            text = json.dumps(settings, indent=2, sort_keys=True)
            (new / peft.CONFIG).write_text(text + "\n", encoding="utf-8")
            if record is not None:
                (new / RECORD).write_text(store.strict_json(dict(record)) + "\n", encoding="utf-8")
            check_written(new, stored, out)
    except BaseException:
        if new_directory and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise
    return stored


def dtype_of(name: str) -> np.dtype:
    """Return the dtype of a name such as bfloat16."""
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def check_free(out: Path, force: bool) -> None:
    """Raise UserError if there is something at `out`, unless `force` is set."""
    if not force and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists; pass another name, or --force to replace it")


def as_stored(
    update: LowRankUpdate, dtype: np.dtype, scaled: bool = True, scale: float = 1.0
) -> LowRankUpdate:
    """Return an update with factors of a dtype; UserError if they overflow.

    scaled: True if the format has a scale. Factors that have this dtype already then stay as they
    are, with their scale; any other update has `scale` afterwards, above 0.
    """
    if {update.B.dtype, update.A.dtype} == {dtype} and (scaled or update.scale == 1.0):
        return update
    root = np.sqrt(abs(update.scale) / scale)
    sign = -1.0 if update.scale < 0 else 1.0
    B, A = sign * root * float64(update.B), root * float64(update.A)
    exact = LowRankUpdate(update.name, B, A, scale, update.part, update.method, update.source)
    with np.errstate(over="ignore"):
        rounded = compress.rounded(exact, dtype)
    if not all(np.isfinite(float64(M)).all() for M in (rounded.B, rounded.A)):
        raise UserError(f"{update.name}: its factors overflow in {dtype}; pass --dtype float32")
    return rounded


def _tensors(update: LowRankUpdate, layout: Layout) -> dict[str, np.ndarray]:
    """Return the tensors of a module, by PEFT's names."""
    B, A = update.B, update.A
    if layout.kernel:
        A = A.reshape(len(A), -1, *layout.kernel)
        B = B.reshape(*B.shape, *(1 for _ in layout.kernel))
    stem, end = PAIRS[1 if layout.embedding else 0]
    return {
        f"{peft.PREFIX}{update.name}.{stem}{name}{end}": np.ascontiguousarray(M)
        for name, M in (("A", A), ("B", B))
    }


def settings_of(updates: Sequence[LowRankUpdate], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return adapter_config.json for these updates: `config` with their ranks and scales.

    The most frequent r and α are those of the config; all others are in rank_pattern and
    alpha_pattern under the names of their modules.
    """
    ranks = {update.name: update.r for update in updates}
    alphas = {update.name: _plain(update.scale * update.r) for update in updates}
    r, alpha = (Counter(of.values()).most_common(1)[0][0] for of in (ranks, alphas))
    keys = pattern_keys(ranks)
    own = {name: value for name, value in config.items() if name not in PLAIN}
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "task_type": None,
        **own,
        **PLAIN,
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {keys[name]: n for name, n in ranks.items() if n != r},
        "alpha_pattern": {keys[name]: a for name, a in alphas.items() if a != alpha},
        # Whole names: a last component stands for all layers, also those without an update.
        "target_modules": sorted(ranks),
    }


def _plain(alpha: float) -> float:
    """Return α as an integer if it is one, up to the rounding of a product."""
    return round(alpha) if abs(alpha - round(alpha)) <= 1e-12 * abs(alpha) else alpha


def pattern_keys(names: Collection[str]) -> dict[str, str]:
    r"""Return for each module the key by which PEFT finds it in a pattern, and no other of `names`.

    PEFT takes a key for an expression of a name's last components, in which a dot is any letter.
    The name itself is the key where it can be, since old versions of PEFT look a whole name up and
    know no anchors.

    >>> pattern_keys(["q", "block.q"])
    {'q': '^q', 'block.q': 'block.q'}
    """
    tails: dict[int, list[str]] = {}
    for name in names:
        starts = [0, *(i + 1 for i, letter in enumerate(name) if letter == ".")]
        for i in starts:
            tails.setdefault(len(name) - i, []).append(name[i:])
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        dots = [i for i, letter in enumerate(name) if letter == "."]
        shapes.setdefault((len(name), *dots), []).append(name)
    keys = {}
    for (length, *dots), own in shapes.items():
        hits = Counter(_masked(tail, dots) for tail in tails[length])
        for name in own:
            alone = hits[_masked(name, dots)] == 1 and PLAIN_NAME.fullmatch(name)
            keys[name] = name if alone else f"^{re.escape(name)}"
    return {name: keys[name] for name in names}


PLAIN_NAME = re.compile(r"[\w.-]+")  # without letters that mean more in an expression


def _masked(text: str, places: Sequence[int]) -> str:
    """Return the text with a dot at each of the places."""
    letters = list(text)
    for i in places:
        letters[i] = "."
    return "".join(letters)


def check_written(path: Path, stored: Sequence[LowRankUpdate], out: Path) -> None:
    """Raise CheckpointError unless the checkpoint at `path` reads as the updates that were meant.

    out: what `path` will be called.
    """
    found: dict[str, LowRankUpdate] = {}
    for entry in checkpoint.scan(path):
        if isinstance(entry, Skipped):
            raise CheckpointError(f"{out}: reads wrong after writing: {entry.reason}")
        if isinstance(entry, LowRankUpdate):
            found[entry.name] = entry
    for update in stored:
        read = found.pop(update.name, None)
        same = (
            read is not None
            and math.isclose(read.scale, update.scale, rel_tol=1e-12)
            and np.array_equal(read.B, update.B)
            and np.array_equal(read.A, update.A)
        )
        if not same:
            raise CheckpointError(f"{out}: {update.name} reads as another update after writing")
    if found:
        raise CheckpointError(f"{out}: {next(iter(found))} reads as an update, and is none")
