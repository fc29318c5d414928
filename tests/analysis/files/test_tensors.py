"""Files of tensors: order, dtypes, and everything that a broken or hostile file can be."""

import io
import struct
import zipfile

import numpy as np
import pytest
from entries import reasons, scan
from ml_dtypes import bfloat16
from safetensors.numpy import save_file

from analysis import CheckpointError, checkpoint
from analysis.files import tensors
from analysis.update import LowRankUpdate


def lora_key(module, factor):
    return f"base_model.model.{module}.lora_{factor}.weight"


def test_real_bin_is_read_without_its_code(real_adapter):
    entries = scan(real_adapter("peft-regression-lora_mlp_modules_to_save"))
    assert {name: type(entry).__name__ for name, entry in entries.items()} == {
        "lin0": "LowRankUpdate",
        "base_model.model.lin1.weight": "Other",
        "base_model.model.lin1.bias": "Other",
    }
    assert entries["lin0"].shape == (20, 10)


def test_whole_numbers_are_no_factors(write_adapter, lora_tensors):
    tensors = lora_tensors("q", "v")
    tensors[lora_key("v", "A")] = np.ones((4, 10), np.int8)
    assert (
        "v.lora_A.weight: stored as I8; expected one of F64" in reasons(write_adapter(tensors))["v"]
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b"[]", "holds a list; expected a JSON object"),
        (b"\xff\xfe\xfa", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
    ],
)
def test_a_broken_config_is_refused(write_adapter, lora_tensors, content, words):
    file = write_adapter(lora_tensors("q")) / "adapter_config.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: {words}"):
        scan(file.parent)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -200, -1])
def test_a_truncated_file_is_refused(write_adapter, lora_tensors, keep):
    file = write_adapter(lora_tensors("q")) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: not a readable"):
        scan(file.parent)


def test_a_name_that_stands_twice_in_the_header_is_refused(tmp_path):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    header = f'{{"a":{entry % (0, 4)},"a":{entry % (0, 4)}}}'.encode()
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    with pytest.raises(CheckpointError, match="'a' appears twice in the header"):
        scan(tmp_path)


class Bomb:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, capsys):
    import torch

    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    file = tmp_path / "adapter_model.bin"
    for content in (lambda: torch.save({"a": Bomb()}, file), lambda: file.write_bytes(b"cos\n")):
        content()
        with pytest.raises(CheckpointError, match=r"adapter_model\.bin: not a readable"):
            scan(tmp_path)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02.")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin: not a readable"):
        scan(tmp_path)
    assert "executed" not in capsys.readouterr().out


def test_a_tensor_that_claims_more_than_it_stores_is_skipped(tmp_path):
    """It has stride 0, as an expanded tensor; 40 TB if its shape were believed."""
    import torch

    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    A, B = torch.ones(1).expand(4, 10**12), torch.ones(12, 4)
    torch.save({lora_key("q", "A"): A, lora_key("q", "B"): B}, tmp_path / "adapter_model.bin")
    (reason,) = reasons(tmp_path).values()
    assert "lora_A.weight: is (4, 1000000000000), but holds less" in reason


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    file = tmp_path / "adapter_model.bin"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**8))
    assert file.stat().st_size < 10**6
    with pytest.raises(CheckpointError, match="'archive/data/0' is compressed"):
        scan(tmp_path)


@pytest.mark.parametrize("length", [10**7 + 1, 2**40, 2**63, 2**64 - 1])
def test_an_absurd_header_is_not_believed(write_adapter, lora_tensors, length):
    file = write_adapter(lora_tensors("q")) / "adapter_model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(CheckpointError, match=f"a header of {length} bytes in a file of"):
        scan(file.parent)


def test_a_config_too_long_to_be_one_is_refused(write_adapter, lora_tensors):
    file = write_adapter(lora_tensors("q")) / "adapter_config.json"
    file.write_text('{"x": "' + "x" * 10**7 + '"}')
    with pytest.raises(CheckpointError, match="is over 10000000 bytes long"):
        scan(file.parent)


def test_a_file_cut_short_while_it_is_read_costs_its_modules(write_adapter, lora_tensors):
    path = write_adapter(lora_tensors("q", "v"))
    file = path / "adapter_model.safetensors"
    entries = checkpoint.scan(path)
    assert isinstance(next(entries), LowRankUpdate)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 300)
    assert "the file was cut short while it was read" in next(entries).reason


def test_bfloat16_in_a_bin_is_exact(tmp_path, rng):
    import torch

    A = torch.from_numpy(rng.standard_normal((4, 10)).astype("f4")).bfloat16()
    B = torch.from_numpy(rng.standard_normal((12, 4)).astype("f4")).bfloat16()
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    tensors = {lora_key("q", "A"): A, lora_key("q", "B"): B}
    torch.save(tensors, tmp_path / "adapter_model.bin")
    want = (B.double() @ A.double()).numpy()
    np.testing.assert_allclose(scan(tmp_path)["q"].dense(), want, rtol=0, atol=1e-15 * 100)


def test_layers_come_in_order(write_adapter, lora_tensors, tmp_path):
    modules = [f"layers.{i}.q" for i in range(12)]
    assert list(scan(write_adapter(lora_tensors(*modules)))) == modules
    save_file({}, tmp_path / "empty.safetensors")


def test_a_bin_of_another_model_is_read(tmp_path):
    """A made-up twin of the real adapter: an MLP with a saved head, as PEFT named it in a .bin."""
    import torch

    A, B = torch.arange(80.0).reshape(8, 10), torch.arange(160.0).reshape(20, 8)
    state = {"base_model.model.lin0.lora_A.weight": A, "base_model.model.lin0.lora_B.weight": B}
    state |= {f"base_model.model.lin1.{leaf}": torch.ones(2, 20) for leaf in ("weight", "bias")}
    torch.save(state, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 4}')
    entries = scan(tmp_path)
    assert {name: type(entry).__name__ for name, entry in entries.items()} == {
        "lin0": "LowRankUpdate",
        "base_model.model.lin1.weight": "Other",
        "base_model.model.lin1.bias": "Other",
    }
    np.testing.assert_array_equal(entries["lin0"].dense(), 0.5 * (B @ A).numpy())


def test_metadata_is_that_of_the_file(tmp_path):
    save_file({"b10": np.ones(2), "b9": np.ones(2)}, tmp_path / "a.safetensors", {"x": "1"})
    opened = tensors.open_file(tmp_path / "a.safetensors")
    assert (list(opened.tensors), opened.metadata) == (["b9", "b10"], {"x": "1"})
    save_file({}, tmp_path / "b.safetensors")
    assert tensors.open_file(tmp_path / "b.safetensors").metadata == {}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "r is None; expected a number"),
        (True, "r is True; expected a number"),
        (float("inf"), "r is inf; expected a number"),
        (0, "r is 0; expected at least 1"),
        (1.5, "r is 1.5; expected a whole number"),
    ],
)
def test_a_count_is_a_whole_number_of_at_least_one(value, words):
    with pytest.raises(CheckpointError, match=f"here: {words}"):
        tensors.count({"r": value}, "r", "here")
    assert tensors.count({"r": 2.0}, "r", "here") == 2


def test_what_a_stranger_wrote_is_cut_in_a_message():
    assert tensors.short("x" * 100) == "'" + "x" * 56 + "…"
    assert tensors.short(10**5000) == "a int"
    assert tensors.line(ValueError("first\nsecond")) == "first"
    assert tensors.line(ValueError()) == "ValueError"


def npz(path, arrays, **options):
    """A .npz file as numpy or mlx writes it."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in arrays.items():
            archive.writestr(name, content)
    return path


def npy(x):
    file = io.BytesIO()
    np.save(file, x, allow_pickle=True)
    return file.getvalue()


def test_npz_is_read_lazily_with_its_dtypes(tmp_path, rng):
    x = rng.standard_normal((3, 4))
    arrays = {"a": x, "h": x.astype("f2"), "f": np.asfortranarray(x), "b": x.astype(bfloat16)}
    np.savez(tmp_path / "some.npz", i=np.ones(2, "i4"), **arrays)
    opened = tensors.open_file(tmp_path / "some.npz").tensors
    assert {name: s.dtype for name, s in opened.items()} == {
        "a": "F64", "b": "BF16", "f": "F64", "h": "F16", "i": "int32",
    }  # fmt: skip
    for name, array in arrays.items():
        assert opened[name].shape == (3, 4)
        np.testing.assert_array_equal(opened[name].load(), array)
    with pytest.raises(CheckpointError, match="stored as int32; expected one of F64"):
        opened["i"].load()


class Trap:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"x.npy": npy(np.array([Trap()], object))}, {}, "holds Python objects"),
        ({"x.npy": npy(np.ones(9))}, {"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
        ({"x.npy": npy(np.ones(9))[:-8]}, {}, "but holds 64 bytes"),
        ({"x.npy": npy(np.ones(9)) + b"0"}, {}, "but holds 73 bytes"),
        ({"x.npy": b"123"}, {}, "not a readable .npz file"),
        ({"x.npy": b""}, {}, "not a readable .npz file"),
        ({"x.npy": npy(np.ones(9)).replace(b"(9,)", b"(1<")}, {}, "not a readable .npz file"),
        ({"x.npy": npy(np.ones(1)), "x": npy(np.ones(1))}, {}, "a name appears twice"),
    ],
)
def test_a_broken_npz_is_refused(tmp_path, capsys, arrays, options, words):
    with pytest.raises(CheckpointError, match=words):
        tensors.open_file(npz(tmp_path / "bad.npz", arrays, **options))
    assert "executed" not in capsys.readouterr().out


def test_a_file_that_is_no_archive_is_no_npz(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK" + bytes(100))
    with pytest.raises(CheckpointError, match=r"not a readable \.npz file"):
        tensors.open_file(tmp_path / "bad.npz")
    with pytest.raises(CheckpointError, match="no such file"):
        tensors.open_file(tmp_path / "none.npz")


def test_an_npz_that_is_cut_after_it_was_opened_is_told(tmp_path):
    np.savez(tmp_path / "some.npz", x=np.ones(9))
    (stored,) = tensors.open_file(tmp_path / "some.npz").tensors.values()
    whole = (tmp_path / "some.npz").read_bytes()
    (tmp_path / "some.npz").write_bytes(whole[:150])
    with pytest.raises(CheckpointError, match=r"some\.npz: x"):
        stored.load()
