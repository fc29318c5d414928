"""GGUF LoRA adapter of llama.cpp: lora_a and lora_b of each weight, α in the metadata.

    blk.<layer>.<module>.weight.lora_a     (r, d_in), or (experts, r, d_in)
    blk.<layer>.<module>.weight.lora_b     (d_out, r), or (experts, d_out, r)
    token_embd.weight.lora_a               (entries, r); lora_b (width, r)

ΔW = scale · b @ a, scale = adapter.lora.alpha / r, or 1 if alpha is 0, as in llama.cpp. Each expert
is a part. ΔW of the embedding is (width, entries). The converter from PEFT permutes the rows of q
and k of Llama: their singular values stay the same, their left directions are permuted. It takes
α/r for rsLoRA too, and so does llama.cpp. Tensors of quantised types are skipped.
"""

import re
from collections import Counter
from collections.abc import Iterator

from analysis import CheckpointError
from analysis.files.place import Place
from analysis.files.tensors import Stored, number, short
from analysis.formats import Options, factors, orientation
from analysis.update import Entry, LowRankUpdate, Remark, Skipped

SUFFIX = ".gguf"
KEY = re.compile(r"(?P<module>.+?)(?:\.weight)?\.lora_(?P<role>[ab])", re.DOTALL)
TYPE, KIND, ALPHA = "general.type", "adapter.type", "adapter.lora.alpha"
EMBEDDING = "token_embd"  # llama.cpp's name; its lora_a is stored for a look-up of rows


def recognise(place: Place) -> bool:
    """Return whether the file is a .gguf file, of an adapter or of anything else."""
    return place.path.suffix == SUFFIX


def read(place: Place, options: Options) -> Iterator[Entry]:
    """Yield the updates of an adapter.

    Raises CheckpointError if the file is not a LoRA adapter.
    """
    file, tensors = place.path, place.tensors()
    metadata = place.metadata()
    if (metadata.get(TYPE), metadata.get(KIND)) != ("adapter", "lora"):
        raise CheckpointError(f"{file}: {_described(place)}")
    alpha = number(metadata, ALPHA, file) if ALPHA in metadata else 0.0
    if ALPHA not in metadata:
        yield Remark(file.name, "does not give α: its updates have scale 1, as in llama.cpp")
    modules: factors.Modules = {}
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name)
        if match is None:
            yield factors.unpaired(name, file, "is not part of a pair of lora_a and lora_b")
            continue
        parts = modules.setdefault(match["module"], {})
        if match["role"].upper() in parts:
            raise CheckpointError(f"{file}: {name}: a second {match['role']} of the same module")
        parts[match["role"].upper()] = tensor
    pairs = {module: parts for module, parts in modules.items() if module != EMBEDDING}
    modules |= orientation.oriented(pairs, str(file), options, named=True)
    for module, parts in modules.items():
        try:
            yield from _updates(module, parts, alpha, place, options)
        except CheckpointError as error:
            yield Skipped(module, str(error))


def _updates(
    module: str, parts: dict[str, Stored], alpha: float, place: Place, options: Options
) -> Iterator[LowRankUpdate]:
    """Yield the update of a module, or of each of its experts."""
    file = place.path
    where = f"{file}: {module}"
    factors.require_pair(parts, where)
    stored_B, stored_A = parts["B"], parts["A"]
    shape_A = stored_A.shape
    if module == EMBEDDING and len(shape_A) == 2:
        shape_A = shape_A[::-1]
    experts = len(shape_A) == len(stored_B.shape) == 3 and shape_A[0] == stored_B.shape[0]
    factors.check(stored_B.shape[experts:], shape_A[experts:], where)
    if len(shape_A) != 2 + experts:
        raise CheckpointError(
            f"{where}: lora_b is {stored_B.shape}, lora_a is {stored_A.shape}; expected matrices,"
            " or one pair for each expert"
        )
    r = shape_A[-2]
    scale = alpha / r if alpha else options.scale_or_one
    B, A = stored_B.load(), stored_A.load()
    if not experts:
        A = A.T if module == EMBEDDING else A
        yield LowRankUpdate(module, B, A, scale, method="gguf", source=str(file))
        return
    for i, (B_of, A_of) in enumerate(zip(B, A, strict=True)):
        yield LowRankUpdate(module, B_of, A_of, scale, f"expert{i}", "gguf", str(file))


def _described(place: Place) -> str:
    """Describe a file that is not a LoRA adapter, and what would help."""
    metadata, tensors = place.metadata(), place.tensors()
    kind, architecture = metadata.get(TYPE, "model"), metadata.get("general.architecture")
    if kind == "adapter":
        return f"is an adapter of type {short(metadata.get(KIND))}; expected 'lora'"
    if kind != "model":
        return f"is GGUF of type {short(kind)}; expected a LoRA adapter"
    counts = Counter(tensor.dtype for tensor in tensors.values())
    dtypes = ", ".join(dtype for dtype, _ in counts.most_common())
    return (
        f"is a whole model in GGUF ({short(architecture)}, {dtypes}), not an adapter; to see how it"
        " differs from its base, pass the directory that it was converted from, with --base DIR"
    )
