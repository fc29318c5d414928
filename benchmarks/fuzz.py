"""Check that broken checkpoints raise only CheckpointError, within little time and memory.

Takes a small checkpoint of each family, lets Hypothesis change its bytes, headers, configs and
indices, and analyses the result. A case fails, and is printed, if it takes over 2 s, adds over
256 MB to the resident memory, or raises any other exception.
"""

import argparse
import copy
import io
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from analysis import CheckpointError
from analysis.command import printable_rows
from analysis.formats import Options
from analysis.names import printable
from analysis.spectrum import analyse
from analysis.store import csv_text

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


def _bin(tensors: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(x) for name, x in tensors.items()}, file)
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
    }


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
        "dora": _adapter(lora | magnitude, use_dora=True) | {"base/model.safetensors": save(W)},
        "adalora": _adapter(adalora, peft_type="ADALORA", init_r=3),
        "multilora": _adapter(multi, peft_type="MULTILORA", n=3, r=1),
        "merged": _adapter(merged, enable_lora=[True, False, True]),
        "delta": {
            "delta_config.json": json.dumps(delta).encode(),
            "delta.safetensors": save({"q": np.ones((3, 4), "f4")}),
        },
        "model": {"model.safetensors": save(W), "base/model.safetensors": save(W)},
    } | {name: {"weights.safetensors": save(tensors)} for name, tensors in _other_tools().items()}


# Ways to break a checkpoint

# Raised by a change if an earlier one has broken the file; then bytes are changed instead.
BROKEN_ALREADY = (ValueError, KeyError, AttributeError, TypeError, RecursionError, SafetensorError)

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


@st.composite
def broken(draw: st.DrawFn) -> tuple[str, Files]:
    """Draw a family and its checkpoint with one or two files changed."""
    whole = checkpoints()
    family = draw(st.sampled_from(sorted(whole)))
    files = dict(whole[family])
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(files)))
        if not files[name] or draw(st.integers(0, 5)) == 0:
            files[name] = draw(_bytes_changed(files[name]))
            continue
        change = _json_changed if name.endswith(".json") else _header_changed
        if name.endswith(".safetensors") and draw(st.integers(0, 3)):
            change = _tensors_changed
        try:
            files[name] = draw(change(files[name]))
        except BROKEN_ALREADY:
            files[name] = draw(_bytes_changed(files[name]))
    return family, files


# Analysing a broken checkpoint


def check(files: Files, directory: Path) -> tuple[float, float]:
    """Analyse one case and return the seconds and the megabytes of memory that it took.

    Raises any exception but CheckpointError, and AssertionError if a printed line is not printable.
    """
    for name, data in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(data)
    base = directory / "base"
    before, start = _peak(), time.perf_counter()
    try:
        spectra = analyse(directory, options=Options(base=base if base.exists() else None))
        reasons = [skip["reason"] for skip in spectra.skipped]
        lines = [*reasons, *csv_text(printable_rows(spectra.rows)).splitlines()]
    except CheckpointError as error:
        lines = [str(error)]
    for line in lines:
        if not printable(line).isprintable():
            raise AssertionError(f"a terminal would obey {line!r}")
    return time.perf_counter() - start, _peak() - before


def _peak() -> float:
    """The peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _warm_up() -> None:
    """Import and cache once what would otherwise count for the first case."""
    whole = checkpoints()
    dora = dict(whole["dora"])
    config = json.loads(dora["adapter_config.json"]) | {"peft_type": "LOHA"}
    whole["other type"] = dora | {"adapter_config.json": json.dumps(config).encode()}
    for files in whole.values():
        with tempfile.TemporaryDirectory() as directory:
            check(files, Path(directory))


def run(cases: int, number: int, report: Callable[[str, float, float], None]) -> None:
    """Break `cases` checkpoints, seeded by `number`, and raise at the first failure.

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
            seconds, megabytes = check(files, Path(directory))
        report(family, seconds, megabytes)
        if seconds > SECONDS or megabytes > MEGABYTES:
            raise AssertionError(f"{family}: {seconds:.1f} s, {megabytes:.0f} MB")

    each()


def main(argv: list[str] | None = None) -> int:
    """Run the cases, print their time and memory and return 0; raise at the first failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument(
        "--cases", type=int, default=10_000, help="number of broken checkpoints (default 10000)"
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
