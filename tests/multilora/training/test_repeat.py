import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest

from multilora import record, train
from multilora.training import repeat
from multilora.training.settings import TrainSettings
from multilora.training.trainer import TrainArguments


@pytest.fixture(scope="module")
def was(tmp_path_factory, tiny_base):
    """The directory of a run whose arguments differ from every default that changes a result."""
    out = tmp_path_factory.mktemp("repeat") / "run"
    argv = ["--method=multilora", f"--model={tiny_base}", "--per_task=4", "--per_task_scored=2"]
    argv += ["--r=2", "--n=2", "--dropout=0.1", "--scale_lr_ratio=2", "--seed=3", "--data_seed=4"]
    argv += ["--max_steps=5", "--per_device_train_batch_size=2", "--gradient_accumulation_steps=2"]
    argv += ["--warmup_steps=0", "--lr_scheduler_type=cosine", "--weight_decay=0.1", "--use_cpu"]
    argv += ["--adam_beta2=0.98", "--save_strategy=no", "--disable_tqdm=true", "--report_to=none"]
    with record.threads(1):
        assert train.main([*argv, f"--output_dir={out}"]) == 0
    return out


@pytest.fixture
def copy(was, tmp_path):
    """A copy of it, and a function that changes its run.json."""
    shutil.copytree(was, tmp_path / "run")

    def edit(*keys, value):
        file = tmp_path / "run" / "run.json"
        facts = inner = json.loads(file.read_text())
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        file.write_text(json.dumps(facts))

    return tmp_path / "run", edit


def fails(capsys, *argv):
    assert train.main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


def test_a_run_is_repeated_from_its_record_bit_for_bit(was, tmp_path):
    """In a separate process, which would otherwise use another number of threads."""
    again = tmp_path / "again"
    done = subprocess.run(
        [sys.executable, "-m", "multilora.train", f"--from={was}/run.json", "--output_dir", again],
        env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{again}\n"
    assert done.stderr.splitlines()[-1] == "ΔW is the same, bit for bit"
    for name in ("adapter_model.safetensors", "lora/adapter_model.safetensors"):
        assert (again / name).read_bytes() == (was / name).read_bytes()
    old, new = (json.loads((run / "run.json").read_text()) for run in (was, again))
    assert old["arguments"].pop("output_dir") != new["arguments"].pop("output_dir")
    assert new == old


def test_other_bits_are_told_of(copy, capsys):
    run, edit = copy
    edit("weights", value={"adapter_model.safetensors": "0" * 64})
    assert train.main(["--from", str(run)]) == 0  # the directory will do
    out, err = capsys.readouterr()
    assert out == f"{run}-again\n"
    assert err.splitlines()[-1] == "ΔW is NOT the same, bit for bit"


def test_another_base_is_refused(copy, tiny_base, capsys):
    run, edit = copy
    other = run.parent / "base"
    shutil.copytree(tiny_base, other)
    (other / "further.safetensors").write_bytes(b"")
    said = fails(capsys, "--from", run / "run.json", "--model", other)
    assert f"the weights of {other} are not those of the run's base, {tiny_base}" in said
    edit("settings", "model", value="/nowhere")
    assert "nowhere" in fails(capsys, "--from", run)
    assert train.main(["--from", str(run), "--model", str(tiny_base)]) == 0


def test_other_data_are_refused(copy, capsys):
    run, edit = copy
    edit("data", "sha256", value="0" * 64)
    assert "the code of the tasks has changed" in fails(capsys, "--from", run)
    assert not run.with_name("run-again").exists()


def test_another_number_of_processes_is_refused(copy, capsys):
    run, edit = copy
    edit("processes", value=2)
    said = fails(capsys, "--from", run)
    assert said.endswith("start it with torchrun --nproc_per_node 2")


def test_other_versions_are_told_of(copy, capsys):
    run, edit = copy
    edit("environment", "python", value="3.0")
    assert train.main(["--from", str(run)]) == 0
    assert "python '3.0', here" in capsys.readouterr().err


@pytest.mark.parametrize(("part", "word"), [("settings", "rnak"), ("arguments", "rate")])
def test_an_unknown_key_is_named(copy, capsys, part, word):
    run, edit = copy
    edit(part, word, value=1)
    assert fails(capsys, "--from", run).endswith(f"{run}/run.json: {part}: unknown key {word}")


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("arguments",), [], "arguments is []"),
        (("settings",), 3, "settings is 3"),
        (("base",), {}, "base is {}"),
        (("environment",), {}, "environment is {}"),
        (("settings", "r"), "abc", "settings: r is 'abc'; expected a number"),
        (("arguments", "max_steps"), "3", "arguments: max_steps is '3'; expected a number"),
        (("arguments", "learning_rate"), None, "learning_rate is None; expected a number"),
        (("arguments", "max_steps"), 0, "max_steps is 0; expected at least 1"),
    ],
)
def test_values_of_another_kind_are_named(copy, capsys, keys, value, words):
    run, edit = copy
    edit(*keys, value=value)
    assert words in fails(capsys, "--from", run)


# A run.json of a stranger.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("push_to_hub", True),
        ("hub_model_id", "stranger/model"),
        ("hub_strategy", "all_checkpoints"),
        ("report_to", ["wandb"]),
        ("run_name", "x"),
        ("logging_dir", "/tmp/elsewhere"),
        ("eval_strategy", "steps"),
        ("resume_from_checkpoint", "/tmp/stranger/checkpoint-2"),
        ("output_dir", "/tmp/elsewhere"),
    ],
)
def test_what_would_report_or_write_elsewhere_is_not_taken(copy, capsys, name, value):
    run, edit = copy
    edit("arguments", name, value=value)
    edit("settings", "token_cache", value="/tmp/elsewhere")
    settings, arguments, _ = repeat.parse(["--from", str(run)], TrainSettings, TrainArguments)
    usual = TrainArguments(output_dir=f"{run}-again").to_dict()
    if name != "logging_dir":
        assert arguments.to_dict()[name] == usual[name]
    assert settings.token_cache == TrainSettings().token_cache
    said = capsys.readouterr().err
    silent = name in ("resume_from_checkpoint", "output_dir")
    assert said == (
        "" if silent else f"{run}/run.json: arguments: {name} not taken from the file\n"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deepspeed", "/tmp/ds.json"),
        ("fsdp", ["full_shard"]),
        ("fsdp_config", {"a": 1}),
        ("parallelism_config", {"a": 1}),
        ("accelerator_config", {"split_batches": True}),
        ("torch_compile", True),
        ("torch_compile_backend", "mine"),
        ("optim_args", "a=b"),
        ("optim_target_modules", "(a+)+$"),
        ("use_liger_kernel", True),
        ("liger_kernel_config", {"a": True}),
        ("debug", ["underflow_overflow"]),
        ("enable_jit_checkpoint", True),
        ("ddp_backend", "mine"),
        ("dataloader_multiprocessing_context", "fork"),
        ("load_best_model_at_end", True),
        ("save_only_model", True),
    ],
)
def test_what_could_run_code_is_refused(copy, capsys, name, value):
    run, edit = copy
    edit("arguments", name, value=value)
    assert f"arguments: {name} cannot be repeated from a file" in fails(capsys, "--from", run)


def test_every_argument_has_a_rule():
    """Taken, left, or refused: a new one of transformers is refused until it is listed."""
    known = {field.name for field in fields(TrainArguments)}
    assert known >= repeat.TAKEN
    assert not repeat.TAKEN & repeat.LEFT
    assert not any(name.startswith(("hub_", "push_", "report")) for name in repeat.TAKEN)


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("settings", "peft_config"), '{"megatron_core": "evil"}', "names code to import"),
        (("settings", "peft_config"), '{"auto_mapping": {"a": "b"}}', "names code to import"),
        (("settings", "method"), 3, "settings: method is 3; expected text"),
        (("settings", "tasks"), ["a"], "settings: tasks is .'a'.; expected text"),
        (("arguments", "optim"), "no such", "arguments: .*no such"),
        (("arguments", "lr_scheduler_type"), [], "arguments: lr_scheduler_type is "),
        (("environment", "threads"), "2", "threads is '2'; expected 1 to"),
        (("environment", "threads"), 10**9, "expected 1 to"),
        (("base", "path"), 3, "base: path is 3"),
    ],
)
def test_values_that_could_do_harm_are_named(copy, capsys, keys, value, words):
    run, edit = copy
    edit(*keys, value=value)
    assert re.search(words, fails(capsys, "--from", run))


def test_what_is_no_record_of_a_training_is_refused(tmp_path, tiny_base, capsys):
    file = tmp_path / "run.json"
    for text, words in (
        ("{", ": not readable as JSON"),
        ("[]", ": holds a list; expected a JSON object"),
        ("{}", " lacks settings"),
    ):
        file.write_text(text)
        assert f"{file}{words}" in fails(capsys, "--from", file)
    assert "lacks arguments" in fails(capsys, "--from", tiny_base)  # the record of a base
    assert "nowhere" in fails(capsys, "--from", tmp_path / "nowhere")


def test_a_run_is_not_repeated_onto_itself(was, capsys):
    said = fails(capsys, "--from", was, "--output_dir", was)
    assert "is the run itself; choose another --output_dir" in said
    with pytest.raises(SystemExit, match="2"):
        train.main(["--from", str(was), "--learning_rate", "1"])
