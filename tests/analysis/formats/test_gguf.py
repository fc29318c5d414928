"""LoRA adapters of llama.cpp: bytes written by hand, and files of the gguf package."""

import struct

import numpy as np
import pytest
from entries import close, reasons, scan, scan_parts

from analysis import CheckpointError, checkpoint
from analysis.files import gguf_file
from analysis.formats import Options
from analysis.update import LowRankUpdate, Other

ADAPTER = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama"}
F32, F16, Q8_0 = 0, 1, 8
TYPES = {F32: "<f4", F16: "<f2"}


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def metadata(key, value):
    """One entry: a text, a number, or a list of texts."""
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        items = b"".join(map(text, value))
        return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + items
    if isinstance(value, int):
        return text(key) + struct.pack("<II", 4, value)
    return text(key) + struct.pack("<If", 6, value)


def gguf_bytes(tensors, values, kind=F32, version=3):
    """A file of float tensors, each (type of ggml, sizes from the last, offset)."""
    infos, data = b"", b""
    for name, x in tensors.items():
        sizes = struct.pack(f"<{x.ndim}Q", *x.shape[::-1])
        infos += (
            text(name) + struct.pack("<I", x.ndim) + sizes + struct.pack("<IQ", kind, len(data))
        )
        data += x.astype(TYPES.get(kind, "<f4")).tobytes()
        data += b"\0" * (-len(data) % 32)
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    header += b"".join(metadata(*pair) for pair in values.items()) + infos
    return header + b"\0" * (-len(header) % 32) + data


@pytest.fixture
def write_gguf(tmp_path):
    def write(tensors, alpha=6.0, kind=F32, **values):
        known = ADAPTER | ({} if alpha is None else {"adapter.lora.alpha": alpha})
        path = tmp_path / "adapter.gguf"
        path.write_bytes(gguf_bytes(tensors, known | values, kind))
        return path

    return write


@pytest.fixture
def layer(product):
    """The tensors of a layer, and B·A."""

    def tensors(module="blk.0.attn_q"):
        B, A, want = product()
        return {f"{module}.weight.lora_a": A, f"{module}.weight.lora_b": B}, want

    return tensors


@pytest.mark.parametrize("kind", [F32, F16])
def test_gguf_is_alpha_over_r_times_the_product(write_gguf, layer, kind):
    tensors, want = layer()
    path = write_gguf(tensors, kind=kind, tokens=["a", "bb", ""], **{"general.alignment": 32})
    for place in (path, path.parent):
        (update,) = checkpoint.read(place)
        stored = {name: x.astype(TYPES[kind]).astype(float) for name, x in tensors.items()}
        A, B = stored.values()
        np.testing.assert_allclose(update.dense(), 2 * B @ A, rtol=1e-12)
        assert (update.name, update.method) == ("blk.0.attn_q", "gguf")
        assert update.stored == (np.dtype(TYPES[kind]),) * 2
    np.testing.assert_allclose(update.dense(), 2 * want, atol=0.02)


@pytest.mark.parametrize("alpha", [0.0, None])
def test_without_alpha_the_scale_is_one_as_in_llama_cpp(write_gguf, layer, alpha):
    tensors, want = layer()
    entries = list(checkpoint.scan(write_gguf(tensors, alpha=alpha)))
    close(entries[-1], want)
    told = [entry for entry in entries if isinstance(entry, Other)]
    assert [entry.what for entry in told if "does not give α" in entry.what] == (
        [entry.what for entry in told] if alpha is None else []
    )
    assert bool(told) == (alpha is None)


def test_experts_are_parts_and_the_embedding_is_turned(write_gguf, rng):
    a, b = rng.standard_normal((4, 3, 8)), rng.standard_normal((4, 6, 3))
    tensors = {"blk.0.ffn_up_exps.weight.lora_a": a, "blk.0.ffn_up_exps.weight.lora_b": b}
    rows, width = rng.standard_normal((20, 3)), rng.standard_normal((8, 3))
    tensors |= {"token_embd.weight.lora_a": rows, "token_embd.weight.lora_b": width}
    found = scan_parts(write_gguf(tensors))
    for i in range(4):
        close(found["blk.0.ffn_up_exps", f"expert{i}"], 2 * b[i] @ a[i])
    close(found["token_embd", ""], 2 * width @ rows.T)


def test_a_whole_model_is_told_from_an_adapter(tmp_path, layer):
    path = tmp_path / "model.gguf"
    for values, words in (
        ({"general.architecture": "llama"}, r"whole model in GGUF \('llama', F32\).*--base DIR"),
        ({"general.type": "mmproj"}, "is GGUF of type 'mmproj'; expected a LoRA adapter"),
        ({"general.type": "adapter", "adapter.type": "x"}, "adapter of type 'x'; expected 'lora'"),
    ):
        path.write_bytes(gguf_bytes(layer()[0], values))
        with pytest.raises(CheckpointError, match=words):
            list(checkpoint.scan(path))


def test_a_quantised_tensor_is_skipped(write_gguf, layer):
    path = write_gguf(layer()[0], kind=Q8_0)
    assert "stored as Q8_0; expected one of F32" in reasons(path)["blk.0.attn_q"]


def test_broken_pairs_are_skipped(write_gguf, layer):
    tensors, _ = layer()
    other, _ = layer("blk.1.attn_q")
    other.pop("blk.1.attn_q.weight.lora_b")
    found = scan(write_gguf(tensors | other | {"blk.0.attn_norm.weight": np.ones(4)}))
    assert isinstance(found["blk.0.attn_q"], LowRankUpdate)
    assert "blk.1.attn_q: has A but no B" in found["blk.1.attn_q"].reason
    assert isinstance(found["blk.0.attn_norm.weight"], Other)
    shapes = {"x.weight.lora_a": np.ones((3, 4)), "x.weight.lora_b": np.ones((5, 2))}
    assert "inner ranks differ" in reasons(write_gguf(shapes))["x"]


def test_every_cut_of_a_file_is_refused(tmp_path, layer):
    whole = gguf_bytes(layer()[0], ADAPTER | {"tokens": ["a", "b"]})
    path = tmp_path / "cut.gguf"
    for length in (*range(0, 420, 7), len(whole) - 33):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.gguf: not a readable GGUF file"):
            gguf_file.open_file(path)
    path.write_bytes(whole)
    assert len(gguf_file.open_file(path).tensors) == 2  # negative control


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648; expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1; expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "cut short"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "cut short"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "cut short"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 77), "type 77"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1),
            "an array of arrays",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**62),
            "cut short",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<I", 2**31), "sizes"),
        (
            b"GGUF"
            + struct.pack("<IQQ", 3, 1, 0)
            + text("t")
            + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0),
            "ends beyond the end",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + metadata("general.alignment", 0),
            "general.alignment is 0",
        ),
    ],
)
def test_a_hostile_header_allocates_nothing(tmp_path, content, words):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        gguf_file.open_file(path)


def test_a_name_that_stands_twice_is_refused(tmp_path):
    one = {"t": np.ones((2, 2), "f4")}
    raw = gguf_bytes(one, {})
    info = text("t") + struct.pack("<IQQIQ", 2, 2, 2, 0, 0)
    path = tmp_path / "twice.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 0)
    path.write_bytes(head + info + info + raw[24:])
    with pytest.raises(CheckpointError, match="'t' appears twice"):
        gguf_file.open_file(path)


def test_a_file_of_the_gguf_package_is_read(tmp_path, layer):
    """Written by gguf's own writer, with the values that its own reader gives."""
    gguf = pytest.importorskip("gguf")
    tensors, want = layer()
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 6.0)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bb"])
    writer.add_array("counts", [1, 2, 3])
    for name, x in tensors.items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (update,) = checkpoint.read(path, options=Options())
    close(update, 2 * want)
    mine = gguf_file.open_file(path).tensors
    for theirs in gguf.GGUFReader(path).tensors:
        np.testing.assert_array_equal(mine[theirs.name].load(), theirs.data)
