"""Files of torch.save: the same tensors as torch gives, and nothing larger than the file."""

import io
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from analysis import CheckpointError
from analysis.files import pickles, tensors


def zipped(data, path, name="x/data.pkl", **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)
        for key, content in members.items():
            archive.writestr(f"x/data/{key}", content)
    return path


def everything():
    """A state dict with every kind of tensor and value that torch's own loader takes."""
    import torch

    x = torch.arange(24.0).reshape(4, 6)
    return OrderedDict(
        plain=x,
        transposed=x.T,
        strided=x[1:3, ::2],
        bfloat16=x.bfloat16(),
        half=x.half(),
        double=x.double(),
        parameter=torch.nn.Parameter(x),
        empty=torch.zeros(0, 3),
        number=torch.tensor(3.0),
        whole=x.long(),
        complex=torch.complex(x, x),
        sparse=x.to_sparse(),
        nested=torch.nn.Linear(3, 4).state_dict(),
        others=[1, 2.5, None, "x", b"y", {1, 2}, x.shape, torch.float32, 2**70, {"a": (1,)}],
    )


@pytest.mark.parametrize(("new", "protocol"), [(True, 2), (True, 4), (True, 5), (False, 2)])
def test_tensors_are_those_of_torch(tmp_path, new, protocol):
    import torch

    state = everything()
    if new:
        state["float8"] = state["plain"].to(torch.float8_e4m3fn)
        state["meta"] = state["plain"].to("meta")
    file = tmp_path / "x.pt"
    torch.save(state, file, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    stored = tensors.open_file(file).tensors
    expected = {name: x for name, x in state.items() if isinstance(x, torch.Tensor)}
    expected |= {f"nested.{name}": x for name, x in state["nested"].items()}
    assert stored.keys() == expected.keys()
    for name, x in expected.items():
        assert stored[name].shape == tuple(x.shape)
        if x.dtype.is_floating_point and str(x.layout) == "torch.strided" and name != "meta":
            values = stored[name].load().astype("f8")
            np.testing.assert_array_equal(values, x.detach().double().numpy())
        else:
            with pytest.raises(CheckpointError, match=f"{name}: stored as .*; expected floating"):
                stored[name].load()


def bomb(*operations):
    return b"\x80\x02" + b"".join(operations) + b"."


def call(name, argument):
    """The instructions that call a function with one argument."""
    return b"c" + name.replace(".", "\n").encode() + b"\n" + argument + b"\x85R"


HUGE = b"J" + struct.pack("<i", 2**31 - 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bomb(call("os.system", b"X\1\0\0\0x")), r"more than rebuild tensors \(os.system\)"),
        (bomb(call("torch.Tensor", HUGE)), "more than rebuild"),
        (bomb(call("torch.FloatStorage", HUGE)), "more than rebuild"),
        (bomb(call("builtins.range", HUGE)), "more than rebuild"),
        (bomb(b"\x8b", struct.pack("<i", 2**31 - 1), b"x"), "damaged"),
        (bomb(b"X", struct.pack("<I", 2**32 - 1), b"x"), "damaged"),
        (bomb(b"\x96", struct.pack("<Q", 2**40), b"x"), "damaged"),
        (bomb(b")", b"\x85" * 300_000), "over 2.* instructions"),
        (bomb(b"}q\0", b"X\1\0\0\0ah\0s"), "contain themselves"),
        (bomb(b"}", b"X\1\0\0\0a}" * 99, b"s" * 99), "nested too deep"),
        (bomb(b"}X\1\0\0\0aNs", b"b"), "damaged"),
        (bomb(b"Nr", struct.pack("<I", 2**32 - 1), b"0"), "instruction.* POP"),
        (bomb(b"I", b"1" * 10_000, b"\n"), "damaged|instruction"),
        (bomb(b"(" * 10), "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"", "damaged|no end"),
    ],
)
def test_a_pickle_that_builds_what_is_large_is_refused(tmp_path, data, words):
    """Each is a few bytes; those that torch runs take gigabytes or end the interpreter."""
    with pytest.raises(pickles.Refused, match=words):
        pickles.contents(zipped(data, tmp_path / "x.pt"))


def test_a_bytearray_of_any_size_is_not_made(tmp_path):
    data = bomb(b"}X\1\0\0\0a", call("builtins.bytearray", HUGE), b"s")
    assert pickles.contents(zipped(data, tmp_path / "x.pt")).value["a"] is pickles.OPAQUE
    old = pickle.dumps(pickles.MAGIC, 2) + pickle.dumps(1001, 2)
    (tmp_path / "old.pt").write_bytes(old + pickle.dumps({"little_endian": True}, 2) + data)
    with pytest.raises(pickles.Refused, match="damaged"):
        pickles.contents(tmp_path / "old.pt")


def storage_of(numbers, key="0"):
    import torch

    file = io.BytesIO()
    torch.save({"a": torch.ones(numbers)}, file)
    with zipfile.ZipFile(file) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


def test_a_storage_that_is_missing_or_short_is_no_tensor(tmp_path):
    data = storage_of(5)
    with pytest.raises(pickles.Refused, match="has no data/0"):
        pickles.contents(zipped(data, tmp_path / "x.pt"))
    stored = tensors.open_file(zipped(data, tmp_path / "x.pt", **{"0": bytes(16)})).tensors
    with pytest.raises(CheckpointError, match=r"a: is \(5,\), but holds less"):
        stored["a"].load()
    stored = tensors.open_file(zipped(data, tmp_path / "x.pt", **{"0": bytes(20)})).tensors
    assert stored["a"].load().tolist() == [0.0] * 5


@pytest.mark.parametrize("change", ["size", "offset", "disks", "cut", "order"])
def test_a_directory_of_an_archive_that_lies_is_refused(tmp_path, change):
    file = zipped(storage_of(5), tmp_path / "x.pt", **{"0": bytes(20)})
    data = bytearray(file.read_bytes())
    central = data.rindex(b"PK\1\2")
    if change == "size":
        data[central + 20 : central + 28] = struct.pack("<II", 2**30, 2**30)
    elif change == "offset":
        data[central + 42 : central + 46] = struct.pack("<I", 2**30)
    elif change == "disks":
        end = data.rindex(b"PK\5\6")
        locator = b"PK\6\7" + struct.pack("<LQL", 1, 0, 9)
        data[end:end] = b"PK\6\6" + bytes(52) + locator
    elif change == "order":
        zipped(storage_of(5), file, **{"0": bytes(20)})
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("x/byteorder", "big")
        data = bytearray(file.read_bytes())
    else:
        del data[-30:]
    file.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError, match=r"x\.pt: not a readable file of weights"):
            tensors.open_file(file)


@pytest.mark.parametrize("name", ["x" * 1001, "\ud800"])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    import torch

    torch.save({name: torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"expected (at most 1000|text)") as error:
        tensors.open_file(tmp_path / "x.pt")
    assert len(str(error.value)) < 300


def test_a_nested_tensor_and_one_tied_to_another_are_told(tmp_path):
    import torch

    x = torch.arange(6.0).reshape(2, 3)
    both = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save({"a": x, "b": x, "c": both}, tmp_path / "x.pt")
    stored = tensors.open_file(tmp_path / "x.pt").tensors
    assert [stored[name].tied for name in "abc"] == ["", "a", ""]
    assert (stored["c"].shape, stored["c"].dtype) == ((), "nested")
