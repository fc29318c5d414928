"""Resuming: real processes that are killed, and checkpoints as a kill leaves them."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from multilora import record, train
from multilora.training import resume, trainer
from multilora.training.settings import TrainSettings

PARTS = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
RANKS = {"lora": 6, "multilora": 2, "full": 0}


def learned(run):
    """{file: SHA-256} of the weights that a run has written."""
    files = [*Path(run).glob("*.safetensors"), *Path(run).glob("lora/*.safetensors")]
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def start(argv, log):
    """`python -m multilora.train` with one thread, since the bits depend on their number."""
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "multilora.train", *argv],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )


def kill_at(process, directory, seconds):
    """Send SIGKILL `seconds` after `directory` appears; False if the process ended before."""
    while not directory.exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


# Killed.


@pytest.mark.parametrize("method", ["multilora", "full"])
def test_a_killed_run_goes_on_with_the_same_bits(train_argv, tmp_path, capsys, method):
    given = {"method": method, "r": RANKS[method], "max_steps": 80}
    with record.threads(1):
        assert train.main(train_argv(tmp_path / "whole", **given)) == 0
    given |= {"save_strategy": "steps", "save_steps": 5}
    cut, log = tmp_path / "cut", tmp_path / "log"
    step, seconds = 5 * random.randint(2, 7), random.uniform(0, 0.03)
    with start(train_argv(cut, **given), log) as process:
        assert kill_at(process, cut / f"checkpoint-{step}", seconds), log.read_text()
    assert not (cut / "run.json").exists()
    with record.threads(1):
        assert train.main(train_argv(cut, **given)) == 0
    assert f"resuming from {cut}/checkpoint-" in capsys.readouterr().err
    assert learned(cut) == learned(tmp_path / "whole"), f"killed {seconds} s into step {step}"
    assert learned(cut)


@pytest.mark.slow
@pytest.mark.parametrize("method", RANKS)
def test_a_run_killed_many_times_ends_with_the_same_bits(train_argv, tmp_path, method):
    """At any moment: while it starts, within accumulation, inside the write of a checkpoint."""
    given = {"method": method, "r": RANKS[method], "max_steps": 400, "save_steps": 3}
    given |= {"gradient_accumulation_steps": 2, "logging_steps": 1, "save_strategy": "steps"}
    given |= {} if method == "full" else {"dropout": 0.1}
    with record.threads(1):
        assert train.main(train_argv(tmp_path / "whole", **given)) == 0
    cut, log = tmp_path / "cut", tmp_path / "log"
    moments, last = [], 0
    for _ in range(6):
        step, seconds = last + 3 * random.randint(1, 8), random.uniform(0, 0.2)
        with start(train_argv(cut, **given), log) as process:
            assert kill_at(process, cut / f"checkpoint-{step}", seconds), log.read_text()
        moments.append((step, seconds))
        last = max(int(path.name.split("-")[1]) for path in cut.glob("checkpoint-*"))
    with start(train_argv(cut, **given), log) as process:
        time.sleep(random.uniform(0, 5))
        process.send_signal(signal.SIGKILL)
    with start(train_argv(cut, **given), log) as process:
        assert process.wait() == 0, log.read_text()
    assert learned(cut) == learned(tmp_path / "whole"), moments
    losses = [
        json.loads((tmp_path / r / "run.json").read_text())["losses"] for r in ("cut", "whole")
    ]
    assert losses[0] == losses[1]


# What a checkpoint must have.


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_base):
    """(directory, mark) of a run with checkpoints 2 and 4."""
    out = tmp_path_factory.mktemp("resume") / "run"
    settings = TrainSettings(model=str(tiny_base), per_task=4, per_task_scored=2, r=2)
    arguments = trainer.TrainArguments(
        output_dir=str(out), max_steps=4, save_steps=2, use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=4, learning_rate=0.01,
    )  # fmt: skip
    train.run(settings, arguments)
    state = json.loads((out / "checkpoint-4" / resume.STATE).read_text())
    return out, state["stateful_callbacks"]["RunMark"]["args"]["mark"]


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, to be broken."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run", trained[1]


def unhashed(checkpoint):
    """The checkpoint without the SHA-256 of its files, as other programs write it."""
    file = checkpoint / resume.STATE
    state = json.loads(file.read_text())
    del state["stateful_callbacks"]["RunMark"]["args"]["files"]
    file.write_text(json.dumps(state))
    return checkpoint


def test_the_newest_checkpoint_is_taken(run):
    out, mark = run
    assert resume.newest(out, mark, 1) == out / "checkpoint-4"
    for name in ("checkpoint-9", "checkpoint-x", "other"):
        (out / name).mkdir()
    (out / "checkpoint-8").write_text("no directory")
    assert resume.newest(out, mark, 1) == out / "checkpoint-4"
    assert resume.newest(out / "nowhere", mark, 1) is None


@pytest.mark.parametrize("name", [*PARTS, resume.STATE])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "changed"])
def test_a_broken_checkpoint_is_passed_over(run, name, damage):
    out, mark = run
    file = out / "checkpoint-4" / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "changed":
        if name.endswith(("safetensors", "json")):
            file.write_bytes(b"\xff" * 8 + data[8:])
        else:  # one bit of a tensor
            with zipfile.ZipFile(file) as archive:
                largest = archive.read(max(archive.infolist(), key=lambda i: i.file_size))
            at = data.index(largest) + len(largest) // 2
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    else:
        file.write_bytes(b"" if damage == "empty" else data[: len(data) * 2 // 3])
    assert name in resume.flaw_of(out / "checkpoint-4", 1)
    assert resume.newest(out, mark, 1) == out / "checkpoint-2"


def test_a_checkpoint_under_another_number_is_passed_over(run):
    out, mark = run
    (out / "checkpoint-4").rename(out / "checkpoint-6")
    assert "step 4" in resume.flaw_of(out / "checkpoint-6", 1)
    assert resume.newest(out, mark, 1) == out / "checkpoint-2"


def test_every_process_has_its_random_numbers(run):
    out, _ = run
    checkpoint = unhashed(out / "checkpoint-4")
    assert resume.flaw_of(checkpoint, 2) == "rng_state_0.pth is missing"
    for rank in (0, 1):
        shutil.copy(checkpoint / "rng_state.pth", checkpoint / f"rng_state_{rank}.pth")
    assert not resume.flaw_of(checkpoint, 2)


def test_every_shard_is_looked_at(run):
    checkpoint = unhashed(run[0] / "checkpoint-4")
    (checkpoint / "adapter_model.safetensors").rename(checkpoint / "model-1.safetensors")
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert not resume.flaw_of(checkpoint, 1)
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2"}}))
    assert resume.flaw_of(checkpoint, 1) == "model-2 is broken"
    index.write_text("{")
    assert resume.flaw_of(checkpoint, 1) == f"{index.name} is broken"
    index.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    assert resume.flaw_of(checkpoint, 1) == f"{index.name} names files elsewhere"


# What a checkpoint's record says of its files.


@pytest.mark.parametrize("name", [*PARTS, "adapter_config.json", "training_args.bin"])
def test_a_single_bit_that_differs_is_noticed(run, capsys, name):
    out, mark = run
    file = out / "checkpoint-4" / name
    data = bytearray(file.read_bytes())
    if name == "adapter_model.safetensors":
        data[-5] ^= 1  # a bit of a weight: the file is a valid one
    elif name.endswith("json"):
        data[-1:] = b"\n\n"
    else:  # of the archive's directory, which its checksums do not cover
        at = data.index(b"PK\x01\x02") + 12
        data[at] ^= 1
    file.write_bytes(data)
    assert resume.choose("auto", out, mark, 1) == out / "checkpoint-2"
    said = capsys.readouterr().err
    assert f"{out}/checkpoint-4 is skipped: {name} is " in said
    if name == "adapter_model.safetensors":
        assert "is altered: its SHA-256 differs\n" in said
    shutil.rmtree(out / "checkpoint-2")
    with pytest.raises(ValueError, match=r"cannot be resumed from: .*; start over with"):
        resume.choose("auto", out, mark, 1)
    with pytest.raises(ValueError, match="checkpoint-4 cannot be resumed from: "):
        resume.choose(str(out / "checkpoint-4"), out, mark, 1)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "scaler.pt", "latest", "rng_state_0.pth"]
)
def test_a_file_that_was_added_is_noticed(run, name):
    out, mark = run
    checkpoint = out / "checkpoint-4"
    (checkpoint / "scores-test.json").write_text("{}")  # as multilora.evaluate writes it
    (checkpoint / "spectra.safetensors").write_text("")  # as --out of an analysis
    shutil.copy(checkpoint / "adapter_model.safetensors", checkpoint / "spectra.safetensors")
    assert not resume.flaw_of(checkpoint, 1)
    source = "adapter_model.safetensors" if name.startswith("model") else "optimizer.pt"
    shutil.copy(checkpoint / source, checkpoint / name)
    assert resume.flaw_of(checkpoint, 1) == f"{name} was added"
    assert resume.newest(out, mark, 1) == out / "checkpoint-2"


@pytest.mark.parametrize("files", [None, [], {}, "x", {"../run.json": "0"}, {"optimizer.pt": 3}])
def test_a_checkpoint_of_this_run_without_hashes_is_passed_over(run, files):
    out, mark = run
    file = unhashed(out / "checkpoint-4") / resume.STATE
    assert resume.newest(out, mark, 1) == out / "checkpoint-2"
    assert not resume.flaw_of(out / "checkpoint-4", 1)  # another program's, if it is named
    state = json.loads(file.read_text())
    state["stateful_callbacks"]["RunMark"]["args"]["files"] = files
    file.write_text(json.dumps(state))
    assert resume.newest(out, mark, 1) == out / "checkpoint-2"


def test_altered_weights_are_not_trained_on(train_argv, tmp_path, capsys):
    """The run continues from the checkpoint before, and ends with the same bits."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    assert train.main(train_argv(tmp_path, **saving)) == 0
    before = learned(tmp_path)
    file = tmp_path / "checkpoint-4" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert train.main(train_argv(tmp_path, **saving)) == 0
    said = capsys.readouterr().err
    assert "checkpoint-4 is skipped: adapter_model.safetensors is altered" in said
    assert f"resuming from {tmp_path}/checkpoint-2" in said
    assert learned(tmp_path) == before


# The run that a checkpoint belongs to.


def test_a_run_does_not_go_on_from_another(run):
    out, mark = run
    with pytest.raises(
        ValueError, match=r"checkpoint-4 belongs to another run .* no to start from"
    ):
        resume.choose("auto", out, "another", 1)
    assert resume.choose("no", out, "another", 1) is None
    assert resume.choose("auto", out, mark, 1) == out / "checkpoint-4"
    path = out / "checkpoint-2"
    assert resume.choose(str(path), out, "another", 1) == path
    (path / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-2 cannot be resumed from: optimizer\.pt"):
        resume.choose(str(path), out, mark, 1)


def test_what_is_passed_over_is_told_of(run, capsys):
    out, mark = run
    (out / "checkpoint-4" / "optimizer.pt").unlink()
    assert resume.choose("auto", out, mark, 1) == out / "checkpoint-2"
    said = capsys.readouterr().err
    assert f"{out}/checkpoint-4 is skipped: optimizer.pt is missing\n" in said
    (out / "checkpoint-2" / "scheduler.pt").unlink()
    with pytest.raises(ValueError, match=r"cannot be resumed from: optimizer\.pt is missing; "):
        resume.choose("auto", out, mark, 1)


def test_deepspeed_keeps_the_optimiser_elsewhere(run):
    checkpoint = unhashed(run[0] / "checkpoint-4")
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "latest").write_text("global_step4")
    assert not resume.flaw_of(checkpoint, 1)


def test_what_is_half_written_is_nobodys(run):
    """A run that was killed in its first save starts from the beginning."""
    out, _ = run
    for step in (2, 4):
        (out / f"checkpoint-{step}" / resume.STATE).unlink()
    assert resume.choose("auto", out, "another", 1) is None


def test_another_number_of_threads_is_told_of(run, capsys):
    out, mark = run
    threads = record.environment()["threads"]
    with record.threads(threads + 1):
        resume.choose("auto", out, mark, 1)
    assert f"it used {threads} threads, this run {threads + 1}" in capsys.readouterr().err


def test_the_command_refuses_to_mix_two_runs(train_argv, tmp_path, capsys):
    saving = {"save_strategy": "steps", "save_steps": 2}
    assert train.main(train_argv(tmp_path, **saving)) == 0
    before = learned(tmp_path)
    assert train.main(train_argv(tmp_path, seed=1, **saving)) == 2
    assert "belongs to another run" in capsys.readouterr().err.splitlines()[-1]
    assert learned(tmp_path) == before
    again = {"seed": 1, "resume_from_checkpoint": "no"}
    assert train.main(train_argv(tmp_path, **saving, **again)) == 0
    assert learned(tmp_path) != before


def test_saving_more_often_is_the_same_run(train_argv, tmp_path, capsys):
    saving = {"save_strategy": "steps", "save_steps": 2}
    assert train.main(train_argv(tmp_path, **saving)) == 0
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert train.main(train_argv(tmp_path, **saving | {"save_steps": 1})) == 0
    assert f"resuming from {tmp_path}/checkpoint-2" in capsys.readouterr().err


def test_a_whole_run_gives_its_bits_again(train_argv, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    assert train.main(train_argv(tmp_path, **saving)) == 0
    before = learned(tmp_path)
    (tmp_path / "run.json").unlink()  # as if it had been cut off after its last checkpoint
    assert train.main(train_argv(tmp_path, **saving)) == 0
    assert learned(tmp_path) == before
    assert json.loads((tmp_path / "run.json").read_text())["step"] == 4


def test_a_checkpoint_of_somebody_elses_is_gone_on_from_when_named(train_argv, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    assert train.main(train_argv(tmp_path, **saving)) == 0
    before = learned(tmp_path)
    file = tmp_path / "checkpoint-2" / resume.STATE
    state = json.loads(file.read_text())
    del state["stateful_callbacks"]["RunMark"]
    file.write_text(json.dumps(state))
    saving["resume_from_checkpoint"] = tmp_path / "checkpoint-2"
    assert train.main(train_argv(tmp_path, **saving)) == 0
    assert learned(tmp_path) == before
