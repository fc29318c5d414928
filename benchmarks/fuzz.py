"""Check that broken inputs raise only UserError, within little time and memory.

Takes a small checkpoint of each family, results of both kinds and data sets, lets Hypothesis change
their bytes, headers, configs, indices, pickles and archives, and reads the result: checkpoints with
the analysis of spectra, and low-rank ones beside another with that of similarity. A case fails, and
is printed, if it takes over 2 s, adds over 256 MB to the resident memory, warns, or raises any
other exception.
"""

import argparse
import copy
import functools
import io
import json
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from analysis import UserError, similarity, store
from analysis.command import printable_rows
from analysis.formats import Options
from analysis.names import printable
from analysis.spectrum import analyse
from analysis.store import csv_text
from multilora.tasks.public import sources

SECONDS, MEGABYTES = 2.0, 256.0
Files = dict[str, bytes]


# Valid checkpoints


def _factors(prefix: str, A: str, B: str, shape: tuple[int, int, int] = (6, 3, 5)) -> dict:
    d_out, r, d_in = shape
    rng = np.random.default_rng(0)
    return {
        f"{prefix}{A}": rng.standard_normal((r, d_in)).astype("f4"),
        f"{prefix}{B}": rng.standard_normal((d_out, r)).astype("f4"),
    }


def _adapter(tensors: dict[str, np.ndarray], **config: Any) -> Files:
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6} | config
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save(tensors),
    }


def _bin(tensors: dict[str, np.ndarray], zipped: bool = True) -> bytes:
    file = io.BytesIO()
    state = {name: torch.from_numpy(x) for name, x in tensors.items()}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _other_tools() -> dict[str, dict]:
    """The tensors of each family that is a single file."""
    alpha = {"lora_unet_up_0_to_q.alpha": np.array(2, "f4")}
    return {
        "kohya": _factors("lora_unet_up_0_to_q.", "lora_down.weight", "lora_up.weight") | alpha,
        "loha": _factors("lora_unet_q.", "hada_w1_b", "hada_w1_a")
        | _factors("lora_unet_q.", "hada_w2_b", "hada_w2_a"),
        "diffusers": _factors("unet.up.0.to_q.", "lora_A.weight", "lora_B.weight"),
        "loralib": _factors("h.0.q.", "lora_A", "lora_B"),
        "comfy": _factors("diffusion_model.q.", "lora_down.weight", "lora_up.weight")
        | {"diffusion_model.q.alpha": np.array(2, "f4"), "diffusion_model.v.diff": np.ones((6, 5))},
        "lokr": _factors("lora_unet_q.", "lokr_w2_b", "lokr_w2_a")
        | {"lora_unet_q.lokr_w1": np.full((2, 2), 0.5, "f4")},
    }


def _language_tools() -> dict[str, Files]:
    """Small adapters of tools for language models, each a directory."""
    pair = _factors("layers.0.attn.q_proj.", "lora_a.weight", "lora_b.weight")
    turned = _factors("model.layers.0.q_proj.", "lora_b", "lora_a")
    heads = _factors("encoder.layer.0.dense.loras.mine.", "lora_A", "lora_B")
    fused = _factors("transformer.h.0.attn.qkv.", "lora_A", "lora_B", (12, 2, 8))
    fused["transformer.h.0.attn.qkv.lora_A"] = np.ones((4, 8), "f4")
    peft = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    mlx = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 3, "scale": 2.0}}
    hub = {"config": {"architecture": "lora", "r": 3, "alpha": 6}, "name": "mine"}
    sizes = {"n_embd": 8, "n_head": 2, "n_query_groups": 1, "head_size": 4, "n_layer": 1}
    given = {"lora_r": 2, "lora_alpha": 4, "lora_query": True, "lora_key": False}
    given |= {"lora_value": True}
    archive = io.BytesIO()
    np.savez(archive, **turned)
    state = {"model.layers.0.q.weight": torch.ones(6, 5), "model.norm.weight": torch.ones(5)}
    return {
        "mlx": {
            "adapter_config.json": json.dumps(mlx).encode(),
            "adapters.safetensors": save(turned),
        },
        "mlx npz": {
            "adapter_config.json": json.dumps(mlx).encode(),
            "adapters.npz": archive.getvalue(),
        },
        "torchtune": {
            "adapter_config.json": json.dumps(peft).encode(),
            "adapter_0.pt": _bin(pair),
        },
        "adapterhub": {
            "adapter_config.json": json.dumps(hub).encode(),
            "pytorch_adapter.bin": _bin(heads),
        },
        "litgpt": {
            "lit_model.pth.lora": _bin(fused),
            "model_config.yaml": _yaml(sizes),
            "hyperparameters.yaml": _yaml(given),
        },
        "gguf": {"lora.gguf": _gguf()},
        "distributed": _distributed(state)
        | {"base/model.safetensors": save({"model.layers.0.q.weight": np.zeros((6, 5), "f4")})},
        "experts": _adapter(
            _factors("base_model.model.mlp.experts.", "lora_A.weight", "lora_B.weight", (6, 4, 5)),
            r=2,
            target_parameters=["mlp.experts.down_proj"],
        ),
    }


def _yaml(values: dict[str, Any]) -> bytes:
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()).encode()


def _gguf() -> bytes:
    """Return a LoRA of llama.cpp: three facts, and two matrices of float32."""

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words)) + words.encode()

    facts = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama"}
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 4)
    for key, value in facts.items():
        head += text(key) + struct.pack("<I", 8) + text(value)
    head += text("adapter.lora.alpha") + struct.pack("<If", 6, 6.0)
    for i, (role, shape) in enumerate((("a", (5, 3)), ("b", (3, 6)))):
        name = f"blk.0.attn_q.weight.lora_{role}"
        head += text(name) + struct.pack("<I2QIQ", 2, *shape, 0, 64 * i)
    return head + bytes(-len(head) % 32) + np.ones(16 + 18, "<f4").tobytes()


def _distributed(state: dict[str, torch.Tensor]) -> Files:
    """Return the files of a distributed checkpoint of one process."""
    from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_distributed(state, checkpoint_id=directory, no_dist=True)
        return {file.name: file.read_bytes() for file in Path(directory).iterdir()}


def checkpoints() -> dict[str, Files]:
    """Return a small valid checkpoint of each family: family -> file name -> bytes.

    Files in base/ are those of its base.
    """
    lora = _factors("base_model.model.layers.0.q", ".lora_A.weight", ".lora_B.weight")
    lora |= _factors("base_model.model.layers.1.q", ".lora_A.weight", ".lora_B.weight")
    plain = _adapter(lora, rank_pattern={"1.q": 3}, alpha_pattern={r"layers\.(0|2).*": 2})
    names = sorted(lora)
    index = {name: f"adapter_model-{i % 2}.safetensors" for i, name in enumerate(names)}
    sharded = {
        "adapter_config.json": plain["adapter_config.json"],
        "adapter_model.safetensors.index.json": json.dumps({"weight_map": index}).encode(),
        "adapter_model-0.safetensors": save({name: lora[name] for name in names[::2]}),
        "adapter_model-1.safetensors": save({name: lora[name] for name in names[1::2]}),
    }
    W = {f"model.layers.{i}.q.weight": np.full((6, 5), 0.5, "f2") for i in (0, 1)}
    magnitude = {"base_model.model.layers.0.q.lora_magnitude_vector": np.ones(6, "f4")}
    adalora = _factors("base_model.model.q", ".lora_A", ".lora_B")
    adalora["base_model.model.q.lora_E"] = np.ones((3, 1), "f4")
    multi = _factors("base_model.model.q", ".multilora_A", ".multilora_B")
    multi["base_model.model.q.multilora_s"] = np.ones((6, 3), "f4")
    merged = {"q.lora_A.weight": np.ones((6, 5), "f4"), "q.lora_B.weight": np.ones((4, 3, 1), "f4")}
    delta = {"format": "multilora-delta", "version": 1, "modules": {"q": {"floor": 0.1}}}
    delta["vectors"] = {"norm": {"frobenius_norm": 1.0}}
    return {
        "lora": plain,
        "sharded": sharded,
        "bin": {
            "adapter_config.json": plain["adapter_config.json"],
            "adapter_model.bin": _bin(lora),
        },
        "old bin": {
            "adapter_config.json": plain["adapter_config.json"],
            "adapter_model.bin": _bin(lora, zipped=False),
        },
        "sharded bin": {
            "adapter_config.json": plain["adapter_config.json"],
            "adapter_model.bin.index.json": json.dumps(
                {"weight_map": {name: f"adapter_model-{i % 2}.bin" for i, name in enumerate(names)}}
            ).encode(),
            "adapter_model-0.bin": _bin({name: lora[name] for name in names[::2]}),
            "adapter_model-1.bin": _bin({name: lora[name] for name in names[1::2]}),
        },
        "mtllora": _adapter(
            _own("mtllora_", A=(2, 5), B=(6, 6), **{"lambda": (2, 2, 2)}, w=(2, 3)),
            **{"peft_type": "MTLLORA", "n": 3, "r": 2, "tasks": ["a", "b"], "temperature": 0.5},
        ),
        "rlora": _adapter(
            _own("rlora_", A=(2, 5), B=(6, 6), R=(3, 5), A0=(2, 5), B0=(6, 6)),
            **{"peft_type": "RLORA", "n": 3, "r": 2},
        ),
        "dora": _adapter(lora | magnitude, use_dora=True) | {"base/model.safetensors": save(W)},
        "adalora": _adapter(adalora, peft_type="ADALORA", init_r=3),
        "multilora": _adapter(multi, peft_type="MULTILORA", n=3, r=1),
        "merged": _adapter(merged, enable_lora=[True, False, True]),
        "delta": {
            "delta_config.json": json.dumps(delta).encode(),
            "delta.safetensors": save({"q": np.ones((3, 4), "f4")}),
        },
        "model": {"model.safetensors": save(W), "base/model.safetensors": save(W)},
        **{name: {"weights.safetensors": save(x)} for name, x in _other_tools().items()},
        **_language_tools(),
    }


def _own(prefix: str, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        f"base_model.model.layers.0.q.{prefix}{part}": rng.standard_normal(shape).astype("f4")
        for part, shape in shapes.items()
    }


def results() -> Files:
    """Return the results of an analysis."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        for name, data in checkpoints()["lora"].items():
            (place / name).write_bytes(data)
        store.save(place / "out", analyse(place), store.record("fuzz", [place], {}))
        return {file.name: file.read_bytes() for file in (place / "out").iterdir()}


def data_sets() -> dict[str, Files]:
    """Return small data sets, by the name of their format."""
    rows = [
        {"instruction": f"Name river {i}.", "input": "", "output": f"R{i}", "answer": "true"}
        for i in range(3)
    ]
    lines = "\n".join(map(json.dumps, rows)).encode()
    whole = json.dumps(rows).encode()
    boolq = "\n".join(
        json.dumps({"question": f"q{i}", "passage": "p", "idx": i, "label": True}) for i in range(3)
    ).encode()
    cells = b'"a, or b?",b,c,d,e,A\nsecond,b,c,d,e,B\n'
    return {
        "alpaca": {"alpaca.json": whole},
        "alpaca lines": {"alpaca.jsonl": lines},
        "superglue": {"BoolQ/train.jsonl": boolq, "BoolQ/val.jsonl": boolq},
        "mmlu": {"dev/law_dev.csv": cells, "test/law_test.csv": cells, "val/law_val.csv": cells},
    }


def inputs() -> dict[str, Files]:
    """Return every kind of input, by its name."""
    return {**checkpoints(), "results": results(), **data_sets()}


# Ways to break a checkpoint

# Raised by a change if an earlier one has broken the file; then bytes are changed instead.
BROKEN_ALREADY = (
    ValueError, KeyError, AttributeError, TypeError, RecursionError, SafetensorError, OSError,
    EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip

# fmt: off
NASTY = st.sampled_from([
    None, True, "", "x", "\x1b[2J\n\u202e", [], {}, [[]], {"": {}},
    0, -1, 1, 2, 2**31, 2**63, -(2**63), 2**64, 10**400,
    0.5, -0.5, 1e308, float("nan"), float("inf"), "(a+)+$", "../x",
    "/etc/passwd", "F64", "I64", "BOOL", "F4", [2**40, 2**40], [-1, 4], [0, 5], [1] * 70,
    "LORA", "ADALORA", "MULTILORA", "LOHA", "pissa", ["a"], {"a": 1}, {"(": 1},
])
KEYS = st.sampled_from([
    "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "init_r",
    "peft_type", "init_lora_weights", "enable_lora", "fan_in_fan_out", "n", "weight_map",
    "dtype", "shape", "data_offsets", "modules", "floor", "__metadata__", "tied",
])
PIECES = st.sampled_from([
    "lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B", "weight", "bias",
    "lora_magnitude_vector", "default", "other", "modules_to_save", "experts", "", "a.b",
    "lora_down.weight", "lora_up.weight", "alpha", "processor", "to_q_lora", "down", "hada_w1_a",
    "multilora_s", "\x1b[2J", "\u202e\n", "weight_scale_inv", "base_model.model", "9" * 30,
])
# fmt: on


@st.composite
def _bytes_changed(draw: st.DrawFn, data: bytes) -> bytes:
    """Replace, remove or insert a few bytes, and sometimes cut off the end."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, min(len(data), 700)))
        new = draw(st.binary(max_size=4))
        data = data[:start] + new + data[start + draw(st.integers(0, 4)) :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


@st.composite
def _json_changed(draw: st.DrawFn, text: bytes) -> bytes:
    """Replace a value somewhere; add, rename or repeat a key; or nest deeply."""
    value = json.loads(text)
    for _ in range(draw(st.integers(1, 2))):
        place = value
        while isinstance(place, dict) and place and draw(st.integers(0, 3)):
            inner = place[draw(st.sampled_from(sorted(place)))]
            if not isinstance(inner, dict):
                break
            place = inner
        key = draw(KEYS | st.sampled_from(sorted(place) or ["x"]) | st.text(max_size=5))
        if draw(st.integers(0, 4)):
            place[key] = copy.deepcopy(draw(NASTY))
        elif place:
            place[key] = place.pop(draw(st.sampled_from(sorted(place))))
    changed = json.dumps(value)
    if draw(st.integers(0, 19)) == 0:
        depth = draw(st.sampled_from([10, 1000, 100_000]))
        changed = changed.replace("6", "[" * depth + "]" * depth, 1)
    if draw(st.integers(0, 9)) == 0 and len(changed) > 2:
        changed = f"{changed[:-1]},{changed[1:]}"  # every name twice
    return changed.encode("utf-8", "surrogatepass")


@st.composite
def _header_changed(draw: st.DrawFn, data: bytes) -> bytes:
    """Change the header before the same values, and sometimes the length before the header."""
    length = int.from_bytes(data[:8], "little")
    header = draw(_json_changed(data[8 : 8 + length]))
    claimed = len(header)
    if draw(st.integers(0, 4)) == 0:
        claimed = draw(st.sampled_from([0, 1, len(header) - 1, 2**30, 2**63, 2**64 - 1]))
    return claimed.to_bytes(8, "little") + header + data[8 + length :]


@st.composite
def _tensors_changed(draw: st.DrawFn, data: bytes) -> bytes:
    """Return a valid file with other tensors: renamed, reshaped, recast, changed or removed."""
    tensors = load(data)
    for _ in range(draw(st.integers(1, 2))):
        if not tensors:
            break
        name = draw(st.sampled_from(sorted(tensors)))
        x = np.real(tensors.pop(name)).astype("f4")
        shape = draw(st.sampled_from([x.shape, x.shape[::-1], (-1, 1), (1, -1), (-1,), (1, 1, -1)]))
        if draw(st.booleans()):
            x = x.reshape(shape)
        elif draw(st.booleans()):
            x = np.atleast_1d(x)[: draw(st.integers(0, 3))]
        elif draw(st.booleans()):
            value = draw(st.sampled_from([np.nan, np.inf, 0.0, -0.0, 1e-45, 3e38, -3e38]))
            x = np.where(np.arange(x.size).reshape(x.shape) % 3 == 0, np.float32(value), x)
        else:
            with np.errstate(all="ignore"):
                x = x.astype(draw(st.sampled_from(["i1", "u8", "?", "f2", "f8", "c8"])))
        if draw(st.integers(0, 2)) == 0:
            old = draw(st.sampled_from(name.split(".")))
            name = name.replace(old, draw(PIECES | st.text(max_size=4)))
        if draw(st.integers(0, 5)):
            tensors[name] = np.ascontiguousarray(x)
    return save(tensors)


# Instructions of a pickle: harmless ones, and those that claim what is not there.
OPERATIONS = st.sampled_from([
    b"N", b"]", b"}", b")", b"(", b"\x85", b"\x86", b"t", b"a", b"s", b"u", b"R", b"b", b"Q", b".",
    b"0", b"2", b"h\0", b"q\0", b"K\5", b"J\xff\xff\xff\x7f", b"r\xff\xff\xff\xff",
    b"X\xff\xff\xff\xff", b"X\1\0\0\0a", b"X\3\0\0\0\xed\xa0\x80", b"\x8a\xff" + b"\x7f" * 255,
    b"\x8b\xff\xff\xff\x7f", b"\x96" + b"\xff" * 7 + b"\x7f", b"I" + b"9" * 5000 + b"\n",
    b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R", b"ctorch\nFloatStorage\n",
    b"ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_qtensor\n", b"ccollections\nOrderedDict\n)R", b"cos\nsystem\n",
    b"(" * 3000, b")" + b"\x85" * 3000, b"]" * 3000 + b"a" * 2999, b"]2" * 50 + b"a" * 50,
])  # fmt: skip


@st.composite
def _pickle_changed(draw: st.DrawFn, data: bytes) -> bytes:
    """Put instructions into the pickle, cut it, or change what the archive says of its members."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        at = draw(st.integers(0, min(len(data), 1500)))
        return data[:at] + draw(OPERATIONS) + data[at + draw(st.integers(0, 4)) :]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    pickles = [name for name in members if name.endswith("data.pkl")]
    for _ in range(draw(st.integers(0, 3)) if pickles else 0):
        content = members[pickles[0]]
        at = draw(st.integers(0, len(content)))
        new = draw(OPERATIONS)
        members[pickles[0]] = content[:at] + new + content[at + draw(st.integers(0, 3)) :]
    way = draw(st.sampled_from([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED]))
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", way) as archive:
        warnings.simplefilter("ignore")
        for name, content in members.items():
            times = draw(st.sampled_from([1] * 8 + [0, 2]))
            for _ in range(times):
                archive.writestr(name, content[: None if draw(st.integers(0, 9)) else 3])
    data = file.getvalue()
    if draw(st.integers(0, 2)) == 0:  # the central directory, and what follows it
        at = data.find(b"PK\1\2") + draw(st.integers(0, 200))
        new = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"PK\6\7" + b"\xff" * 16, b"\1"]))
        data = data[:at] + new + data[at + len(new) :]
    return data


TEXTS = st.sampled_from([
    b"", b"\0", b'"', b"\n", b"\r", b",", b"[" * 50_000, b"{", b"}", b"\xff", b"\\ud800", b"NaN",
    b"1e999", b"9" * 5000, b"=1+1", b"\x1b[2J", b"\xe2\x80\xae", b"null", b'{"a":1}',
    b"a" * 200_000,
])  # fmt: skip


@st.composite
def _text_changed(draw: st.DrawFn, data: bytes) -> bytes:
    """Replace or insert text that a reader of CSV or JSON could stumble over."""
    new = draw(TEXTS)
    at = draw(st.integers(0, len(data)))
    return data[:at] + new + data[at + draw(st.integers(0, 20)) :]


@st.composite
def broken(draw: st.DrawFn) -> tuple[str, Files]:
    """Draw a kind of input with one or two of its files changed."""
    whole = _inputs()
    family = draw(st.sampled_from(sorted(whole)))
    files = dict(whole[family])
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(files)))
        if not files[name] or draw(st.integers(0, 5)) == 0:
            files[name] = draw(_bytes_changed(files[name]))
            continue
        change = CHANGES.get(name.rpartition(".")[2], _bytes_changed)
        if name.endswith(".safetensors") and draw(st.integers(0, 3)):
            change = _tensors_changed
        if family not in _checkpoints() and draw(st.booleans()):
            change = _text_changed
        try:
            files[name] = draw(change(files[name]))
        except BROKEN_ALREADY:
            files[name] = draw(_bytes_changed(files[name]))
    return family, files


CHANGES: dict[str, Callable[[bytes], Any]] = {
    "json": _json_changed,
    "safetensors": _header_changed,
    "bin": _pickle_changed,
    "pt": _pickle_changed,
    "lora": _pickle_changed,
    "yaml": _text_changed,
    "csv": _text_changed,
    "jsonl": _text_changed,
}


@functools.cache
def _checkpoints() -> frozenset[str]:
    return frozenset(checkpoints())


@functools.cache
def _inputs() -> dict[str, Files]:
    return inputs()


# Reading a broken input


def _analysed(directory: Path) -> Iterator[str]:
    """Yield what the analysis of a checkpoint would print: reasons, rows, similarities."""
    base = directory / "base"
    options = Options(base=base if base.exists() else None)
    spectra = analyse(directory, options=options)
    yield from (skip["reason"] for skip in spectra.skipped)
    yield from csv_text(printable_rows(spectra.rows)).splitlines()
    if any(row["r"] is not None for row in spectra.rows):
        similar = similarity.analyse([directory], options=options)
        yield from (skip["reason"] for skip in similar.skipped)


def _results_read(directory: Path) -> Iterator[str]:
    spectra, _ = store.load(directory)
    yield from csv_text(printable_rows(spectra.rows)).splitlines()
    store.strict_json(spectra.rows)


def spec(family: str, directory: Path) -> str:
    """Return the specification of a data set of this kind in a directory, as --tasks takes it."""
    file = next((f for f in directory.iterdir() if f.name.startswith("alpaca")), directory)
    return f"{family.partition(' ')[0]}:{file}"


def check(files: Files, directory: Path, family: str = "lora") -> tuple[float, float]:
    """Read one case and return the seconds and the megabytes of memory that it took.

    family: the kind of input. Raises any exception but UserError, also for a warning, and
    AssertionError if a printed line is not printable.
    """
    for name, data in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(data)
    before, start = _peak(), time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if family == "results":
                lines = list(_results_read(directory))
            elif family in data_sets():
                lines = sources.load(spec(family, directory)).notes
            else:
                lines = list(_analysed(directory))
    except UserError as error:
        lines = [str(error)]
    for line in lines:
        if not printable(line).isprintable():
            raise AssertionError(f"a terminal would obey {line!r}")
    return time.process_time() - start, _peak() - before


def _peak() -> float:
    """The peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _warm_up() -> None:
    """Import and cache once what would otherwise count for the first case."""
    whole = dict(_inputs())
    dora = dict(whole["dora"])
    config = json.loads(dora["adapter_config.json"]) | {"peft_type": "LOHA"}
    whole["other type"] = dora | {"adapter_config.json": json.dumps(config).encode()}
    for family, files in whole.items():
        with tempfile.TemporaryDirectory() as directory:
            check(files, Path(directory), family)


def run(cases: int, number: int, report: Callable[[str, float, float], None]) -> None:
    """Break `cases` inputs, seeded by `number`, and raise at the first failure.

    report: called with the family, seconds and megabytes of each case.
    """
    _warm_up()

    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(broken())
    def each(case: tuple[str, Files]) -> None:
        family, files = case
        with tempfile.TemporaryDirectory() as directory:
            seconds, megabytes = check(files, Path(directory), family)
        report(family, seconds, megabytes)
        if seconds > SECONDS or megabytes > MEGABYTES:
            raise AssertionError(f"{family}: {seconds:.1f} s, {megabytes:.0f} MB")

    each()


def main(argv: list[str] | None = None) -> int:
    """Run the cases, print their time and memory and return 0; raise at the first failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument(
        "--cases", type=int, default=10_000, help="number of broken inputs (default 10000)"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    taken: list[tuple[float, float, str]] = []
    run(arguments.cases, arguments.seed, lambda f, s, m: taken.append((s, m, f)))
    slowest, largest = max(taken), max(taken, key=lambda case: case[1])
    print(f"{len(taken)} cases, {sum(s for s, _, _ in taken):.0f} s of analysis")
    print(f"slowest {slowest[0]:.2f} s ({slowest[2]}; target {SECONDS:g})", end=", ")
    print(f"most memory added {largest[1]:.0f} MB ({largest[2]}; target {MEGABYTES:g})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
