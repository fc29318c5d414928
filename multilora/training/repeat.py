"""Repeat a training run from its run.json.

    python -m multilora.train --from RUN/run.json [--output_dir DIR] [--model DIR]

The repetition uses the settings, the arguments and the number of threads of the run, and goes to
RUN-again unless --output_dir is given. Base and data must have the recorded SHA-256. Other versions
or another machine can give other bits, which is reported.

A run.json can come from a stranger. Only the arguments in TAKEN are taken from it, which say how
weights are trained. Those in LEFT say what is reported, uploaded or written elsewhere; they are
left at their defaults, with a line on stderr. Any other argument that was changed, such as
deepspeed or optim_args, is refused.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from transformers.trainer_pt_utils import AcceleratorConfig

from analysis import UserError
from multilora import delta, record

# Arguments that are taken from a run.json.
TAKEN = frozenset(
    """
    activation_checkpointing adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size
    average_tokens_across_devices bf16 data_seed dataloader_drop_last dataloader_in_order
    dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory
    dataloader_prefetch_factor ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters
    ddp_static_graph ddp_timeout disable_tqdm fp16 full_determinism gradient_accumulation_steps
    gradient_checkpointing label_smoothing_factor learning_rate logging_first_step
    logging_nan_inf_filter logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type
    max_grad_norm max_steps neftune_noise_alpha num_train_epochs optim per_device_train_batch_size
    remove_unused_columns save_steps save_strategy save_total_limit seed tf32
    torch_empty_cache_steps train_sampling_strategy use_cpu warmup_steps weight_decay
    """.split()
)
# Arguments that do not change what is trained: left at their defaults.
LEFT = frozenset(
    """
    batch_eval_metrics bf16_full_eval do_eval do_predict do_train eval_accumulation_steps eval_delay
    eval_do_concat_batches eval_on_start eval_steps eval_strategy eval_use_gather_object
    fp16_full_eval greater_is_better hub_always_push hub_model_id hub_private_repo hub_revision
    hub_strategy hub_token include_for_metrics include_num_input_tokens_seen local_rank log_level
    log_level_replica log_on_each_node logging_dir metric_for_best_model per_device_eval_batch_size
    prediction_loss_only project push_to_hub report_to resume_from_checkpoint run_name
    save_on_each_node skip_memory_metrics trackio_bucket_id trackio_space_id
    trackio_static_space_id
    """.split()
)
# Fields of PEFT's configs that name code to import.
IMPORTED = ("auto_mapping", "megatron_config", "megatron_core")
MOST_THREADS = 1024
# What a run.json must contain to be repeated.
NEEDED = ("settings", "arguments", "base", "data", "processes", "environment", "weights")


def is_asked(argv: Sequence[str]) -> bool:
    """Return whether a command line contains --from."""
    return any(word.split("=")[0] == "--from" for word in argv)


def parse(argv: Sequence[str], settings: type, arguments: type) -> tuple[Any, Any, dict[str, Any]]:
    """Read the run that --from names.

    argv: the command line; settings, arguments: the types to fill. Returns (settings, arguments,
    content of run.json). Raises UserError, naming the file, if it is not the run.json of a
    training run.
    """
    parser = argparse.ArgumentParser("multilora.train --from", description=__doc__)
    parser.add_argument("--from", dest="file", type=Path, required=True)
    parser.add_argument("--output_dir", help="directory of the repetition")
    parser.add_argument("--model", help="the base, if it has been moved")
    given = parser.parse_args(list(argv))
    file = given.file / "run.json" if given.file.is_dir() else given.file
    was = _read(file)
    directory = file.resolve().parent
    out = given.output_dir or f"{directory}-again"
    if Path(out).resolve() == directory:
        raise UserError(f"{directory} is the run itself; choose another --output_dir")
    asked = {name: v for name, v in was["settings"].items() if name != "token_cache"}
    if given.model:
        asked["model"] = given.model
    _check_imports(asked.get("peft_config"), f"{file}: settings")
    taken = _taken(was["arguments"], arguments, file) | {"output_dir": out}
    return (
        _filled(settings, asked, where=f"{file}: settings"),
        _filled(arguments, taken, where=f"{file}: arguments"),
        was,
    )


def _taken(given: Mapping[str, Any], kind: type, file: Path) -> dict[str, Any]:
    """Return the arguments in TAKEN; say which are left, and raise UserError for any other."""
    where = f"{file}: arguments"
    usual = {field.name: field.default for field in fields(kind)}
    if unknown := sorted(given.keys() - usual.keys() - LEFT):
        raise UserError(f"{where}: unknown key {', '.join(unknown)}")
    changed = {
        name
        for name, value in given.items()
        if name not in TAKEN and name != "output_dir" and not _is_usual(value, usual.get(name))
    }
    if refused := sorted(changed - LEFT):
        raise UserError(
            f"{where}: {', '.join(refused)} cannot be repeated from a file, which could run code or"
            " lead elsewhere; repeat the command instead"
        )
    if left := sorted(changed - {"resume_from_checkpoint", "local_rank"}):
        print(f"{where}: {', '.join(left)} not taken from the file", file=sys.stderr)
    return {name: value for name, value in given.items() if name in TAKEN}


def _is_usual(value: Any, default: Any) -> bool:
    """Return whether an argument has its default, as a run.json states it."""
    if isinstance(value, dict) and value.items() <= AcceleratorConfig().to_dict().items():
        return True  # transformers fills in the defaults
    nothing: tuple[Any, ...] = (None, "", "none", [], {}, False, MISSING)
    return value == default or (value in nothing and default in nothing)


def _check_imports(peft_config: object, where: str) -> None:
    """Raise UserError if the fields of a PEFT config, as JSON, name code to import."""
    try:
        values = json.loads(peft_config) if isinstance(peft_config, str) and peft_config else {}
    except (ValueError, RecursionError):
        return  # refused when the settings are filled in
    if named := [name for name in IMPORTED if isinstance(values, dict) and values.get(name)]:
        raise UserError(f"{where}: peft_config has {named[0]}, which names code to import")


def _read(file: Path) -> dict[str, Any]:
    """Read a run.json; raise UserError unless it has all that a repetition needs."""
    was = record.read_json(file)
    lacking = [key for key in NEEDED if key not in was]
    if lacking:
        raise UserError(f"{file} lacks {', '.join(lacking)}; expected the run.json of a training")
    needed_of = {
        "settings": (),
        "arguments": (),
        "data": (),
        "base": ("path", "sha256"),
        "environment": ("threads",),
    }
    for key, parts in needed_of.items():
        if not isinstance(was[key], dict) or any(part not in was[key] for part in parts):
            raise UserError(f"{file}: {key} is {was[key]!r}; expected what a training writes")
    threads = was["environment"]["threads"]
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        raise UserError(
            f"{file}: environment: threads is {threads!r}; expected 1 to {MOST_THREADS}"
        )
    if not isinstance(was["base"]["path"], str):
        raise UserError(f"{file}: base: path is {was['base']['path']!r}; expected a directory")
    return was


def _filled(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """An instance of a dataclass with these values; UserErrors begin with `where`."""
    known = {field.name for field in fields(kind) if field.init}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"{where}: unknown key {', '.join(unknown)}")
    for field in fields(kind):
        number = isinstance(field.default, int | float)  # bool too
        if number and not isinstance(values.get(field.name, 0), int | float):
            raise UserError(f"{where}: {field.name} is {values[field.name]!r}; expected a number")
        if isinstance(field.default, str) and not isinstance(values.get(field.name, ""), str):
            raise UserError(f"{where}: {field.name} is {values[field.name]!r}; expected text")
    try:
        return kind(**values)
    except UserError:
        raise
    except (TypeError, ValueError, OverflowError, ImportError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{where}: {text}") from None


def check(was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UserError unless base, data and number of processes are those of the run.

    was: run.json of the run; now: inputs of its repetition (identity.inputs). Other versions or
    another machine are reported on stderr.
    """
    if now["base"]["sha256"] != was["base"]["sha256"]:
        raise UserError(
            f"the weights of {now['base']['path']} are not those of the run's base, "
            f"{was['base']['path']} (SHA-256 differs)"
        )
    if now["data"] != was["data"]:
        raise UserError(
            f"the training examples are {now['data']}; the run had {was['data']}: "
            "the code of the tasks has changed"
        )
    if now["processes"] != was["processes"]:
        raise UserError(
            f"the run had {was['processes']} processes, its repetition {now['processes']}; "
            f"start it with torchrun --nproc_per_node {was['processes']}"
        )
    here = record.environment()
    others = [
        f"{key} {then!r}, here {here.get(key)!r}"
        for key, then in was["environment"].items()
        if key not in ("threads", "cpus") and then != here.get(key)
    ]
    if others:
        print(f"the run had {'; '.join(others)}: the bits may differ", file=sys.stderr)


def report_differences(was: Mapping[str, Any], out: Path) -> None:
    """Print on stderr whether the repetition has the same ΔW as the run, bit for bit."""
    same = bool(was["weights"]) and delta.hashes(out) == was["weights"]
    print(f"ΔW is {'the same' if same else 'NOT the same'}, bit for bit", file=sys.stderr)
