"""Errors that end a run early: one line, status 2, nothing lost, nothing half written."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys

import pytest
import torch
import transformers

from analysis.files import exchange
from multilora import train
from multilora.training import guard, resume


@pytest.fixture
def fails(capsys):
    """Run the command with these arguments; its error, which is one line."""

    def run(argv):
        assert train.main(argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        last = err.splitlines()[-1]
        assert last.startswith("multilora.train: ")
        return last

    return run


def left(directory):
    """Names of everything in a directory, including temporary files."""
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def whole(checkpoint):
    return checkpoint.is_dir() and not resume.flaw_of(checkpoint, 1)


# A loss that is not a number.


@pytest.mark.parametrize("method", ["full", "multilora"])
def test_a_diverged_run_stops_at_its_step_and_keeps_what_was_good(
    train_argv, tmp_path, fails, method
):
    given = {"method": method, "learning_rate": 1e30, "max_steps": 50, "logging_steps": 1}
    given |= {"save_strategy": "steps", "save_steps": 1, "max_grad_norm": 0, "warmup_steps": 0}
    said = fails(train_argv(tmp_path, **given))
    assert "training diverged: " in said
    assert "the learning rate is 1e+30, try a lower one" in said
    steps = [path for path in tmp_path.iterdir() if path.name.startswith("checkpoint-")]
    assert 0 < len(steps) < 5  # at once
    assert left(tmp_path) == {path.name for path in steps}
    newest = max(steps, key=lambda path: int(path.name.split("-")[1]))
    assert whole(newest)
    assert said.endswith(f"the last complete checkpoint is {newest}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_step_of_a_loss_that_is_not_a_number_is_named(value):
    guard.check_loss(torch.tensor(3.0), 7)
    with pytest.raises(guard.DivergedError, match=f"the loss of step 7 is {value}"):
        guard.check_loss(torch.tensor(value), 7)


def test_a_diverged_model_is_not_saved(train_argv, tmp_path, fails, monkeypatch):
    """The loss of the step that spoils the weights is still a number."""
    step = torch.optim.AdamW.step

    def spoil(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 3:
            self.param_groups[0]["params"][0].data.view(-1)[0] = float("nan")
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    said = fails(train_argv(tmp_path, save_strategy="steps", save_steps=1))
    assert "contains NaN or Inf after step 3" in said
    assert said.endswith(f"the last complete checkpoint is {tmp_path / 'checkpoint-2'}")
    assert left(tmp_path) == {"checkpoint-1", "checkpoint-2"}


# A full disk.


@pytest.mark.parametrize(
    ("file", "limit"), [("adapter_model.safetensors", 64_000), ("optimizer.pt", 132_000)]
)
def test_a_checkpoint_that_cannot_be_written_leaves_nothing_half(
    train_argv, tmp_path, fails, file, limit
):
    """A limit on the size of files, which the weights or the optimiser's state exceed."""
    argv = train_argv(tmp_path / "run", save_strategy="steps", save_steps=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        last = fails(argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert last.startswith(f"multilora.train: {tmp_path}/run/checkpoint-2 cannot be written: ")
    assert last.endswith("no checkpoint was written")
    assert left(tmp_path / "run") == set()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["multilora", "full"])
def test_a_full_disk_keeps_the_last_whole_checkpoint(train_argv, tmp_path, method):
    """A disk too small for two checkpoints; with more room the run is resumed."""
    home = tmp_path / "disk"
    home.mkdir()
    argv = train_argv(home / "run", method=method, save_strategy="steps", save_steps=2)
    room = {"multilora": "500k", "full": "430k"}[method]
    script = """
        mount -t tmpfs -o size=$1 tmpfs $2 || exit 77
        "${@:4}"; status=$?
        cp -r $2/run $3; exit $status
    """
    words = [room, str(home), str(tmp_path / "kept"), sys.executable, "-m", "multilora.train"]
    shell = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script, "bash"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*shell, *words, *argv], env=environment, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no unshare")
    if done.returncode in (1, 77):
        pytest.skip(f"no disk of its own: {done.stderr}")
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "No space left on device" in last
    assert last.endswith("checkpoint-2")
    assert left(tmp_path / "kept") == {"checkpoint-2"}
    assert whole(tmp_path / "kept" / "checkpoint-2")
    shutil.copytree(tmp_path / "kept", home / "run")
    assert train.main(argv) == 0


def test_a_result_that_cannot_be_written_costs_no_older_one(
    train_argv, tmp_path, fails, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    saving = {"save_strategy": "steps", "save_steps": 4}
    monkeypatch.setattr(train.delta, "save_as_lora", full)
    said = fails(train_argv(tmp_path, **saving))
    assert said.endswith(f"{tmp_path}: the result cannot be written: No space left on device")
    assert left(tmp_path) == {"checkpoint-4"}
    monkeypatch.undo()
    assert train.main(train_argv(tmp_path, **saving)) == 0  # from the checkpoint
    assert json.loads((tmp_path / "run.json").read_text())["step"] == 4


# An output directory of a stranger.


@pytest.mark.parametrize("name", ["../precious", "/tmp/precious", "..", "", 3])
def test_experts_outside_the_output_directory_are_refused(tmp_path, name):
    listed = {"format": "multilora-experts", "version": 1, "tasks": ["law", name]}
    (tmp_path / "experts.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"experts\.json: names .*; expected directories beside"):
        guard.check_output(tmp_path)


def test_the_command_refuses_them_and_touches_nothing(train_argv, tmp_path, fails):
    precious, out = tmp_path / "precious", tmp_path / "out"
    for directory in (precious, out):
        directory.mkdir()
    (precious / "adapter_config.json").write_text("{}")
    listed = {"format": "multilora-experts", "version": 1, "tasks": ["../precious"]}
    (out / "experts.json").write_text(json.dumps(listed))
    assert "names '../precious'" in fails(train_argv(out))
    assert left(precious) == {"adapter_config.json"}
    assert left(out) == {"experts.json"}


@pytest.mark.parametrize(
    "name", ["checkpoint-2", "checkpoint-2/optimizer.pt", "initial", "spectra", "runs"]
)
def test_links_that_a_write_could_follow_are_refused(tmp_path, name):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match=f"{name}: is a link"):
        guard.check_output(out)


def test_a_link_that_waits_to_be_moved_into_place_is_refused(train_argv, tmp_path, fails):
    precious, out = tmp_path / "precious", tmp_path / "out"
    precious.mkdir()
    (out / exchange.NEXT).mkdir(parents=True)
    (out / exchange.NEXT / "checkpoint-2").symlink_to(precious)
    argv = train_argv(out, save_strategy="steps", save_steps=2)
    assert "checkpoint-2: is a link" in fails(argv)
    assert left(precious) == set()


def test_other_files_and_links_stand_in_no_way(tmp_path):
    guard.check_output(tmp_path / "nowhere")
    (tmp_path / "last").symlink_to(tmp_path)
    (tmp_path / "lora").symlink_to(tmp_path)  # replaced, not followed
    (tmp_path / "checkpoint-2").mkdir()
    for text in ("{", "[]", '{"tasks": 3}', '{"tasks": ["law"]}'):
        (tmp_path / "experts.json").write_text(text)
        guard.check_output(tmp_path)


# What is wrong before the first step.


def test_a_missing_tokenizer_is_named(train_argv, tiny_base, tmp_path, fails):
    lost = tmp_path / "base"
    shutil.copytree(tiny_base, lost, ignore=shutil.ignore_patterns("tokenizer*"))
    said = fails(train_argv(tmp_path / "run", model=lost))
    assert re.search(rf"{re.escape(str(lost))}: no (readable )?tokenizer ", said)
    assert left(tmp_path / "run") == set()


@pytest.mark.parametrize("method", ["lora", "multilora", "full", "peft:VERA"])
def test_targets_that_match_nothing_are_named(train_argv, tmp_path, fails, method):
    said = fails(train_argv(tmp_path / "run", method=method, target_modules="no_proj"))
    assert "no_proj" in said
    assert left(tmp_path / "run") == set()


def test_an_unknown_key_is_named(train_argv, tmp_path, fails):
    assert "--no_such_key" in fails([*train_argv(tmp_path), "--no_such_key=1"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_steps": 0}, "max_steps is 0; expected at least 1"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
        ({"method": "full", "r": 5}, "r and dropout belong to adapters"),
        ({"scale": "nan"}, "a finite scale"),
        ({"r": -3}, "expected r ≥ 0"),
    ],
)
def test_numbers_that_train_nothing_are_refused(train_argv, tmp_path, fails, given, words):
    assert words in fails(train_argv(tmp_path / "run", **{"method": "lora", **given}))
    assert left(tmp_path / "run") == set()


# How it is launched.


@pytest.mark.parametrize("how", ["--fsdp", "environment"])
def test_fsdp_on_a_cpu_is_refused(train_argv, tmp_path, fails, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    given = {"fsdp": "full_shard"} if how == "--fsdp" else {}
    assert "FSDP was requested on the CPU" in fails(train_argv(tmp_path, **given))


def test_the_number_of_processes_is_said(train_argv, tmp_path, capsys, monkeypatch):
    assert train.main(train_argv(tmp_path / "a", max_steps=1)) == 0
    said = capsys.readouterr().err
    assert "training on cpu: 1 process of " in said
    assert "torchrun" not in said
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # as accelerate launch --cpu sets it
    assert train.main(train_argv(tmp_path / "b", max_steps=1)) == 0
    assert "use torchrun --nproc_per_node N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096"
                         " bytes. Error code 12"), "4096 bytes",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB."), "1.50 GiB"),
        (MemoryError(), "what was needed"),
    ],
)  # fmt: skip
def test_too_little_memory_is_one_line_with_the_size(
    train_argv, tmp_path, fails, monkeypatch, error, size
):
    def step(*given, **named):
        raise error

    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    line = fails(train_argv(tmp_path / "run"))
    assert f"out of memory: {size} could not be allocated" in line
    assert "--max_length" in line
    assert "no checkpoint was written" in line


def test_other_errors_are_not_of_memory():
    assert guard.not_allocated(RuntimeError("shapes differ")) == ""
