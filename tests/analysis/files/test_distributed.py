"""Distributed checkpoints: two processes save shards, torch's own conversion is the oracle."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from entries import updates

from analysis import CheckpointError, checkpoint
from analysis.files import distributed
from analysis.spectrum import main

torch = pytest.importorskip("torch")

# Two processes, each with its half of every matrix, as FSDP saves them.
SAVE = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
rank, store, out, scale = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
weights = {
    "model.layers.0.q.weight": torch.randn(7, 5),
    "model.layers.1.q.weight": torch.randn(6, 5).bfloat16(),
    "model.norm.weight": torch.randn(5),
    "lm_head.weight": torch.randn(11, 5).double(),
}
step = {n: scale * torch.randn(w.shape).to(w.dtype) for n, w in weights.items()}
split = {n: distribute_tensor(w + step[n], mesh, [Shard(0)]) for n, w in weights.items()}
moments = {f"state.{n}.exp_avg": w for n, w in split.items()}
dcp.save({"model": split, "optimizer": moments, "step": 3}, checkpoint_id=out)
dist.barrier()
os._exit(0)  # torch's threads can abort a process whose interpreter ends
"""


def save(out, scale):
    """The processes that save a checkpoint together."""
    store = out.parent / f"{out.name}.store"
    arguments = [str(store), str(out), str(scale)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen([sys.executable, "-c", SAVE, str(rank), *arguments], env=env)
        for rank in (0, 1)
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directories of a base and of a model tuned from it."""
    home = tmp_path_factory.mktemp("dcp")
    processes = [*save(home / "base", 0.0), *save(home / "tuned", 0.1)]
    assert [process.wait(timeout=300) for process in processes] == [0] * 4
    return home / "base", home / "tuned"


def whole(path, file):
    """All tensors of a distributed checkpoint, put together by torch."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(path, file)
    return torch.load(file)["model"]


def test_every_tensor_is_what_torch_puts_together(saved, tmp_path):
    want = whole(saved[1], tmp_path / "whole.pt")
    tensors = distributed.open_metadata(saved[1] / ".metadata")
    assert tensors.keys() == {f"model.{name}" for name in want}  # no optimizer
    for name, tensor in want.items():
        stored = tensors[f"model.{name}"]
        assert stored.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(
            stored.load().astype(float), tensor.double().numpy().astype(float)
        )


@pytest.mark.parametrize("below", ["", "pytorch_model_fsdp_0"])
def test_a_model_is_read_in_place_with_its_base(saved, tmp_path, below):
    base, tuned = saved
    place = tmp_path / "run/checkpoint-5"
    place.mkdir(parents=True)
    if not below:
        place.rmdir()
    (place / below).symlink_to(tuned)
    want, before = whole(tuned, tmp_path / "t.pt"), whole(base, tmp_path / "b.pt")
    found = updates(tmp_path / "run/checkpoint-5", base=base)
    matrices = {name for name, x in want.items() if x.ndim == 2}
    assert {f"{name.removeprefix('model.')}.weight" for name, _ in found} == matrices
    for (name, _), update in found.items():
        key = f"{name.removeprefix('model.')}.weight"
        delta = (want[key].double() - before[key].double()).numpy()
        np.testing.assert_allclose(update.dense(), delta, rtol=0, atol=1e-6)
    files = {file.suffix or file.name for file in checkpoint.inputs(place)}
    assert files == {".metadata", ".distcp"}


def test_the_command_reads_one(saved, capsys):
    base, tuned = saved
    assert main([str(tuned), "--base", str(base)]) == 0
    assert main([str(tuned)]) == 2
    assert "is a whole model; pass the one" in capsys.readouterr().err
    assert main([str(tuned / "__0_0.distcp"), "--base", str(base)]) == 2
    assert "is a piece of a distributed checkpoint; pass its directory" in capsys.readouterr().err


def test_factors_of_lora_are_read_without_a_base(tmp_path, rng):
    import torch.distributed.checkpoint as dcp

    A, B = (rng.standard_normal(shape).astype("f4") for shape in ((2, 5), (7, 2)))
    state = {"layers.0.q.lora_A": torch.from_numpy(A), "layers.0.q.lora_B": torch.from_numpy(B)}
    dcp.save({"model": state}, checkpoint_id=tmp_path / "lora", no_dist=True)
    (update,) = updates(tmp_path / "lora", scale=2.0).values()
    np.testing.assert_allclose(update.dense(), 2 * B.astype(float) @ A, rtol=0, atol=1e-12)


# Broken and hostile


@pytest.fixture
def small(tmp_path):
    """A distributed checkpoint of one process, and a function that replaces its metadata."""
    import torch.distributed.checkpoint as dcp

    path = tmp_path / "small"
    dcp.save({"q.weight": torch.ones(4, 3)}, checkpoint_id=path, no_dist=True)

    def write(data):
        (path / ".metadata").write_bytes(data)
        return path / ".metadata"

    return path, write


class Runs:
    """Unpickled, it would run a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_the_metadata_runs_no_code(small, tmp_path):
    _, write = small
    mark = tmp_path / "mark"
    file = write(pickle.dumps(Runs(f"touch {mark}")))
    with pytest.raises(CheckpointError, match=r"not readable as metadata of dcp: it names 'posix"):
        distributed.open_metadata(file)
    assert not mark.exists()


deep = b"\x80\x04}(" + b")" + b"\x85" * 500_000 + b"K\x01u."


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not readable as metadata"),
        (b"\x80\x04.", "not readable as metadata"),
        (b"\x80\x04}.", "holds a dict; expected metadata"),
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", "not readable as metadata"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "holds a dict"),  # a memo of 2³¹ entries
        (deep, "a dict of other keys"),  # its hash would end the process
        (b"\x80\x04\x8c\x05torch\x94\x8c\x04load\x94\x93.", "it names 'torch.load'"),
        (b"\x80\x04cos\nsystem\n.", "it names 'os.system'"),
        (b"x" * 100, "not readable as metadata"),
    ],
    ids=range(9),
)
def test_hostile_metadata_is_refused(small, data, words):
    _, write = small
    with pytest.raises(CheckpointError, match=words):
        distributed.open_metadata(write(data))


def changed(path, change):
    """Unpickle the metadata as torch does, change it, and write it back."""
    file = path / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    change(metadata)
    file.write_bytes(pickle.dumps(metadata))
    return file


def of_piece(metadata):
    (place,) = metadata.storage_data.values()
    return place


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: setattr(of_piece(m), "relative_path", "../secret"), "expected a plain name"),
        (lambda m: setattr(of_piece(m), "relative_path", "/etc/passwd"), "expected a plain name"),
        (lambda m: setattr(of_piece(m), "relative_path", "gone.distcp"), "no such piece"),
        (lambda m: setattr(of_piece(m), "offset", 10**9), "the file is cut short"),
        (lambda m: setattr(of_piece(m), "offset", -1), "no such piece"),
        (lambda m: setattr(of_piece(m), "length", 9), "not a readable piece"),
        (lambda m: setattr(of_piece(m), "transform_descriptors", ["zip"]), "is transformed"),
        (lambda m: m.storage_data.clear(), "pieces do not match those that are stored"),
        (
            lambda m: setattr(m.state_dict_metadata["q.weight"], "size", torch.Size([9, 9])),
            "pieces do not fill its shape",
        ),
        (
            lambda m: m.state_dict_metadata["q.weight"].chunks.clear(),
            "pieces do not match",
        ),
        (
            lambda m: setattr(m.state_dict_metadata["q.weight"].properties, "dtype", torch.float64),
            "is F32; expected F64",
        ),
    ],
    ids=range(11),
)
def test_metadata_that_lies_costs_its_tensor(small, change, words):
    path, _ = small
    file = changed(path, change)
    stored = distributed.open_metadata(file)["q.weight"]
    with pytest.raises(CheckpointError, match=words):
        stored.load()


def test_pieces_larger_than_their_files_are_refused(small):
    path, _ = small

    def twice(metadata):
        ((index, place),) = metadata.storage_data.items()
        other = type(index)("r.weight", index.offset)
        metadata.storage_data[other] = place
        metadata.state_dict_metadata["r.weight"] = metadata.state_dict_metadata["q.weight"]

    with pytest.raises(CheckpointError, match=r"bytes into __0_0\.distcp, which holds fewer"):
        distributed.open_metadata(changed(path, twice))


def test_damaged_metadata_is_refused_in_words(small, rng):
    path, write = small
    data = bytearray((path / ".metadata").read_bytes())
    reasons = []
    for _ in range(300):
        broken = bytearray(data)
        for i in rng.integers(0, len(data), 3):
            broken[i] = rng.integers(256)
        try:
            for stored in distributed.open_metadata(write(bytes(broken))).values():
                stored.load()
            reasons.append("")
        except CheckpointError as error:
            reasons.append(str(error))
    assert len(set(reasons)) > 10  # kinds of damage
    assert not any("\n" in reason for reason in reasons)


def test_the_state_of_an_optimizer_alone_is_no_model(tmp_path):
    import torch.distributed.checkpoint as dcp

    dcp.save({"optim": {"q": torch.ones(2, 2)}}, checkpoint_id=tmp_path / "o", no_dist=True)
    with pytest.raises(CheckpointError, match="has no weights; is it the state of an optimizer"):
        distributed.open_metadata(tmp_path / "o/.metadata")


def test_a_piece_may_not_be_a_link(small):
    path, _ = small
    (piece,) = path.glob("*.distcp")
    piece.rename(path.parent / "elsewhere")
    piece.symlink_to(path.parent / "elsewhere")
    with pytest.raises(CheckpointError, match="no such piece"):
        distributed.open_metadata(path / ".metadata")["q.weight"].load()
