"""Say what a path is that no family reads, and what would help.

Each line is true of what lies there: advice is given only if the file that it names exists.
"""

import re
import tarfile
from itertools import islice
from pathlib import Path

from analysis.files.tensors import line

MANY = 2000  # names of a directory that are looked at
CONVERT = "convert it to safetensors with the tools of the program that wrote it"
# What a file is, by the end of its name.
SUFFIXES = {
    ".h5": "weights of Keras or TensorFlow (HDF5)",
    ".keras": "a model of Keras",
    ".msgpack": "weights of Flax",
    ".onnx": "a graph of ONNX",
    ".tflite": "a graph of TensorFlow Lite",
    ".ckpt.index": "the index of a checkpoint of TensorFlow",
    ".pb": "a graph of TensorFlow",
    ".pdparams": "weights of Paddle",
    ".mlmodel": "a model of Core ML",
    ".engine": "an engine of TensorRT",
    ".ot": "weights of rust-bert",
}
LFS = b"version https://git-lfs"


def explain(path: Path) -> str:
    """Return what a file or a directory is, and what would help, as one clause; "" if unknown."""
    try:
        return _file(path) if path.is_file() else _directory(path) if path.is_dir() else ""
    except OSError:
        return ""


def is_cut(directory: Path) -> bool:
    """Return whether a directory holds weights that another program cut over its processes.

    Such a directory is one checkpoint: its files mean nothing on their own.
    """
    try:
        names = sorted(child.name for child in islice(directory.iterdir(), MANY))
        return bool(_deepspeed(directory, names) or _megatron(directory, names))
    except OSError:
        return False


def is_pointer(file: Path) -> bool:
    """Return whether a file is what Git LFS leaves in place of a file it has not fetched."""
    try:
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            return opened.read(len(LFS)) == LFS
    except OSError:
        return False


def _file(path: Path) -> str:
    if is_pointer(path):
        return "is a pointer of Git LFS, not the file itself; run `git lfs pull` in its repository"
    if path.suffix == ".nemo":
        return _nemo(path)
    if path.suffix == ".distcp":
        if (path.parent / ".metadata").is_file():
            return f"is a piece of a distributed checkpoint; pass its directory, {path.parent}"
        return "is a piece of a distributed checkpoint whose .metadata is not beside it"
    if re.fullmatch(r".+\.data-\d+-of-\d+", path.name):
        return f"holds values of a checkpoint of TensorFlow; {CONVERT}"
    kind = next((kind for end, kind in SUFFIXES.items() if path.name.endswith(end)), "")
    return (
        f"holds {kind}; only tensors of PyTorch and safetensors are read; {CONVERT}" if kind else ""
    )


def _nemo(path: Path) -> str:
    """Describe an archive of NeMo, which is a tar."""
    weights = "model_weights.ckpt"
    try:
        with tarfile.open(path, "r:") as archive:
            names = {Path(member.name).name for member in islice(archive, MANY)}
    except (tarfile.TarError, OSError, ValueError) as error:
        return f"has the name of an archive of NeMo, but is no tar: {line(error)}"
    if weights in names:
        return f"is an archive of NeMo (a tar); unpack it, tar -xf, and pass its {weights}"
    return f"is an archive of NeMo (a tar) without {weights}; {CONVERT}"


def _directory(path: Path) -> str:
    names = sorted(child.name for child in islice(path.iterdir(), MANY))
    for explained in (_deepspeed, _megatron, _pipeline, _sentence_transformer, _pointers, _others):
        found = explained(path, names)
        if found:
            return found
    return ""


def _deepspeed(path: Path, names: list[str]) -> str:
    """Describe the states of DeepSpeed, whose weights are cut over the processes."""
    shard = re.compile(r"(bf16_|fp16_)?(zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt")
    steps = [name for name in names if re.fullmatch(r"global_step\d+", name)]
    if not steps and not any(map(shard.fullmatch, names)):
        return ""
    what = "is a checkpoint of DeepSpeed, whose weights are cut over its processes (ZeRO)"
    for home in (path, path.parent):
        if (home / "zero_to_fp32.py").is_file():
            return f"{what}; put them together, python {home}/zero_to_fp32.py {home} OUT; pass OUT"
    return f"{what}; put them together with DeepSpeed's zero_to_fp32.py"


def _megatron(path: Path, names: list[str]) -> str:
    """Describe a checkpoint of Megatron, whose weights are cut over tensor and pipeline ranks."""
    if "latest_checkpointed_iteration.txt" in names or any(
        re.fullmatch(r"mp_rank_\d+(_\d+)*", name) and (path / name / "model_optim_rng.pt").exists()
        for name in names
    ):
        return (
            "is a checkpoint of Megatron, whose weights are cut over ranks; convert it to a"
            " directory of Transformers with Megatron's own tools, and pass that"
        )
    return ""


def _pipeline(path: Path, names: list[str]) -> str:
    """Describe a pipeline of diffusers, which holds several models."""
    if "model_index.json" not in names:
        return ""
    stem = "diffusion_pytorch_model"
    parts = [n for n in names if any((path / n).glob(f"{stem}*")) or any((path / n).glob("model*"))]
    return f"is a pipeline of several models; pass one of them: {', '.join(parts)}" if parts else ""


def _sentence_transformer(path: Path, names: list[str]) -> str:
    """Describe a model of sentence-transformers that keeps its weights one directory below."""
    parts = [n for n in names if re.fullmatch(r"\d+_Transformer", n) and (path / n).is_dir()]
    if "modules.json" not in names or not parts:
        return ""
    return f"is a model of sentence-transformers; pass the part with its weights, {path / parts[0]}"


def _pointers(path: Path, names: list[str]) -> str:
    found = [n for n in names if n.endswith((".safetensors", ".bin")) and is_pointer(path / n)]
    return f"{found[0]} {_file(path / found[0])}" if found else ""


def _others(path: Path, names: list[str]) -> str:
    """Describe the first file in a directory that is of a known kind."""
    described = (f"{name} {text}" for name in names if (text := _of_suffix(path / name)))
    return next(described, "")


def _of_suffix(file: Path) -> str:
    is_foreign = file.name.endswith((*SUFFIXES, ".nemo", ".distcp"))
    return _file(file) if is_foreign and file.is_file() else ""
