"""Training in two processes over gloo: data parallel with the command, sharded in a custom loop.

Run as a script, this file is that loop, in each of the processes that torchrun starts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from analysis import checkpoint
from multilora import delta, train
from multilora.training import prepare
from multilora.training.settings import TrainSettings

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
METHODS = ("multilora", "full")


def run_two(*words):
    """Run torchrun with two processes, one thread each; return their stderr."""
    done = subprocess.run(
        [*TORCHRUN, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def assert_alike(got, want):
    """Assert that two checkpoints of ΔW are equal up to the order of the summation."""
    one, other = (
        {u.name: torch.tensor(u.dense()) for u in checkpoint.read(p)} for p in (got, want)
    )
    assert one.keys() == other.keys()
    assert len(one) == 14
    for name, dW in other.items():
        assert dW.any()
        torch.testing.assert_close(one[name], dW, rtol=0, atol=1e-4 * float(dW.abs().max()))


# Data parallel.


@pytest.mark.parametrize(
    "method", ["multilora", *(pytest.param(m, marks=pytest.mark.slow) for m in ("lora", "full"))]
)
def test_two_processes_train_as_one_does(train_argv, tmp_path, method):
    given = {
        "method": method,
        "max_steps": 6,
        "logging_steps": 1,
        "r": 0 if method == "full" else 2,
    }
    assert train.main(train_argv(tmp_path / "one", **given)) == 0
    given |= {"per_device_train_batch_size": 2}
    argv = train_argv(tmp_path / "two", **given)
    # torchrun takes --r for one of its own options unless "--" stands before it.
    words = ["--", *(word for pair in argv for word in pair.split("=", 1))]
    assert "training on cpu: 2 processes of 1 thread" in run_two("-m", "multilora.train", *words)
    one, two = (json.loads((tmp_path / n / "run.json").read_text()) for n in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    losses = [[entry["loss"] for entry in run["losses"]] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert_alike(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_two_processes_go_on_with_the_same_bits(train_argv, tmp_path):
    """Cut off after their first checkpoint."""
    argv = ["-m", "multilora.train", *train_argv(tmp_path, save_strategy="steps", save_steps=2)]
    run_two(*argv)
    file = tmp_path / "adapter_model.safetensors"
    want = file.read_bytes()
    for name in ("run.json", file.name, "checkpoint-4/rng_state_1.pth"):
        (tmp_path / name).unlink()
    assert f"resuming from {tmp_path}/checkpoint-2" in run_two(*argv)
    assert file.read_bytes() == want


@pytest.mark.slow
def test_accelerates_launcher_says_that_it_starts_one(train_argv, tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", "-m", "multilora.train"]
    done = subprocess.run(
        [sys.executable, *launch, *train_argv(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "1 process of" in done.stderr
    assert "use torchrun --nproc_per_node N" in done.stderr
    assert json.loads((tmp_path / "run.json").read_text())["processes"] == 1


# Sharded.


def train_in_a_loop(base, method, out, rank=0, processes=1):
    """Three steps of AdamW on random tokens, sharded over the processes; rank 0 writes ΔW."""
    torch.manual_seed(0)
    settings = TrainSettings(method=method, r=0 if method == "full" else 2)
    model = prepare.prepare(delta.load_base(base)[0], settings)
    if processes > 1:
        assert dist.get_world_size() == processes
        mesh = init_device_mesh("cpu", (processes,))
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        for layer in inner.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in model.parameters())
        assert any(p.to_local().numel() < p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    tokens = torch.randint(4, 100, (3, 4, 12), generator=torch.Generator().manual_seed(1))
    for batch in tokens:
        ids = batch[rank::processes]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if processes > 1:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole = get_model_state_dict(model, options=options)
        if rank:
            return
        model = prepare.prepare(delta.load_base(base)[0], settings)
        model.load_state_dict(whole)
    delta.save(model, base, Path(out))


def test_a_sharded_model_is_trained_as_a_whole_one(tiny_base, tmp_path):
    run_two(__file__, tiny_base, tmp_path / "two")
    for method in METHODS:
        train_in_a_loop(str(tiny_base), method, tmp_path / "one" / method)
        assert_alike(tmp_path / "two" / method, tmp_path / "one" / method)
        files = [next((tmp_path / n / method).glob("*.safetensors")) for n in ("one", "two")]
        assert load_file(files[0]).keys() == load_file(files[1]).keys()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for each in METHODS:
        home = Path(sys.argv[2]) / each
        train_in_a_loop(sys.argv[1], each, home, dist.get_rank(), dist.get_world_size())
    dist.barrier()
    os._exit(0)  # torch's threads can abort a process whose interpreter ends
