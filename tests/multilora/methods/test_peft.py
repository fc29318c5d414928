"""PEFT's own methods through the training command, and what the analysis reads of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, PeftType
from safetensors.numpy import load_file

from analysis import checkpoint, spectrum
from analysis.formats import Options
from multilora import delta, train
from multilora.methods import peft as peft_methods
from multilora.tasks import scoring
from multilora.tasks.builtin import suite
from multilora.training import prepare, trainer
from multilora.training.settings import TrainSettings, complete

KIN = ("LORA", "RSLORA", "DORA", "PISSA", "OLORA", "ADALORA")
OTHERS = """LOHA LOKR IA3 OFT VERA BOFT HRA FOURIERFT DEFT DELORA FROD GLORA GRALORA HIRA
OSF PEANUT PSOFT PVERA RANDLORA TINYLORA UNILORA BEFT LILY SUPERTUNING""".split()
SIZED = {
    "C3A": "block_size",
    "ROAD": "group_size",
    "VBLORA": "vector_length",
    "WAVEFT": "n_frequency",
}
SIZED |= {"MISS": "r", "SHIRA": "r"}
# What trains on the tiny base's shapes, with the fields that its 32 and 48 columns need.
FIELDS = {name: {"r": 4} for name in KIN} | {name: {} for name in OTHERS}
FIELDS |= {name: {"peft_config": json.dumps({key: 8})} for name, key in SIZED.items()}
# No linear layer's weight changes in these; the analysis says so.
UNREAD = ("BEFT", "LILY")
FEW = ("DORA", "RSLORA", "PISSA", "ADALORA", "LOHA", "IA3", "OFT", "VERA")
MANY = [pytest.param(name, marks=pytest.mark.slow) for name in FIELDS if name not in FEW]


@pytest.fixture
def trained(tiny_base, tmp_path):
    """Train peft:NAME for some steps; the directory."""

    def run(name, out=tmp_path, steps=4, **given):
        settings = TrainSettings(
            method=f"peft:{name}", model=str(tiny_base), per_task=4, per_task_scored=2,
            **(FIELDS[name] | given),
        )  # fmt: skip
        arguments = trainer.TrainArguments(
            output_dir=str(out), max_steps=steps, per_device_train_batch_size=4, use_cpu=True,
            disable_tqdm=True, learning_rate=0.01, save_strategy="no", warmup_steps=0,
        )  # fmt: skip
        return train.run(settings, arguments)

    return run


def config_of(run):
    return json.loads((run / "adapter_config.json").read_text())


@pytest.mark.parametrize("name", [*FEW, *MANY])
def test_a_method_of_pefts_is_trained_scored_and_analysed(trained, tiny_base, name):
    out = trained(name)
    facts = json.loads((out / "run.json").read_text())
    assert facts["method"].split()[0] == f"peft:{name}"
    assert all(np.isfinite(entry["loss"]) for entry in facts["losses"])
    model, tokenizer = delta.load_base(str(tiny_base))
    got = scoring.score(delta.load_tuned(model, out), tokenizer, suite.load("test", 2))
    assert got == facts["scores"]["test"]
    initial = out / peft_methods.INITIAL
    assert initial.is_dir() == (name in ("PISSA", "OLORA"))
    options = Options(base=tiny_base, initial=initial if initial.is_dir() else None)
    found = spectrum.analyse(out, options=options)
    if name in UNREAD:
        assert len(found.skipped) == 14
        return
    assert not found.skipped
    assert len(found.rows) == 14
    assert all(row["spectral_norm"] > 0 for row in found.rows)


def test_the_names_are_options_of_lora(trained, tmp_path):
    for name, key, value in (
        ("DORA", "use_dora", True),
        ("RSLORA", "use_rslora", True),
        ("PISSA", "init_lora_weights", "pissa"),
    ):
        config = config_of(trained(name, tmp_path / name, steps=1, scale=3.0, dropout=0.25))
        assert config[key] == value
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 12, 0.25)


def test_fields_that_are_given_come_last(trained):
    config = config_of(trained("LORA", steps=1, peft_config='{"r": 2, "lora_alpha": 7}'))
    assert (config["r"], config["lora_alpha"]) == (2, 7)


def test_a_rank_that_is_given_is_the_methods(trained, tmp_path):
    assert config_of(trained("LOHA", tmp_path / "own", steps=1))["r"] == 8  # PEFT's default
    assert config_of(trained("LOHA", tmp_path / "given", steps=1, r=3))["r"] == 3


@pytest.mark.parametrize("name", ["PISSA", "OLORA"])
def test_a_start_that_changes_the_base_is_kept(trained, tiny_base, name):
    """ΔW is what the tuned model's weight is less the base's, not the whole of B A."""
    out = trained(name)
    kept = load_file(out / peft_methods.INITIAL / "adapter_model.safetensors")
    assert config_of(out / peft_methods.INITIAL)["init_lora_weights"] is True
    base, _ = delta.load_base(str(tiny_base))
    W0 = {n: p.detach().double().numpy() for n, p in base.named_parameters()}
    tuned = PeftModel.from_pretrained(delta.load_base(str(tiny_base))[0], out).merge_and_unload()
    W = {n: p.detach().double().numpy() for n, p in tuned.named_parameters()}
    options = Options(initial=out / peft_methods.INITIAL)
    updates = list(checkpoint.read(out, options=options))
    assert len(updates) == 14
    for update in updates:
        want = W[f"{update.name}.weight"] - W0[f"{update.name}.weight"]
        np.testing.assert_allclose(
            update.dense(), want, rtol=0, atol=1e-6 * np.abs(want).max() + 1e-6
        )
        B0 = kept[f"base_model.model.{update.name}.lora_B.weight"]
        assert B0.any()
    trained("LORA")  # into the same directory: the start is not its own
    assert not (out / peft_methods.INITIAL).exists()


def test_adalora_moves_its_ranks(trained):
    out = trained("ADALORA", steps=20)
    config = config_of(out)
    assert (config["init_r"], config["target_r"], config["total_step"]) == (6, 4, 20)
    ranks = [sum(kept) for kept in config["rank_pattern"].values()]
    assert len(set(ranks)) > 1
    assert sum(ranks) == 4 * len(ranks)  # on average what was asked for


def test_adalora_does_not_go_on_from_a_checkpoint(train_argv, tmp_path, capsys):
    given = {"method": "peft:ADALORA", "r": 2, "save_strategy": "steps", "save_steps": 2}
    assert train.main(train_argv(tmp_path, **given)) == 0
    assert train.main(train_argv(tmp_path, **given)) == 2
    assert "cannot resume from a checkpoint" in capsys.readouterr().err.splitlines()[-1]
    assert train.main(train_argv(tmp_path, **given, resume_from_checkpoint="no")) == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "peft:NONE"}, "method is 'peft:NONE'; expected peft: and one of ADALORA"),
        ({"method": "peft:MULTILORA"}, "method is 'peft:MULTILORA'; expected peft: and one of"),
        ({"method": "peft:PROMPT_TUNING"}, "adds tokens and changes no weight"),
        ({"method": "peft:LN_TUNING"}, "peft:LN_TUNING cannot be trained here: it trains"),
        ({"method": "peft:XLORA"}, "peft:XLORA cannot be trained here: it mixes"),
        (
            {"method": "peft:LOHA", "scale": 1.0},
            "scale and dropout belong to LoRA; set those of peft:LOHA",
        ),
        ({"method": "lora", "peft_config": "{}"}, "peft_config belongs to the methods peft:NAME"),
        ({"method": "peft:LORA", "peft_config": '{"rnak": 4}'}, "LoraConfig has no field rnak"),
        ({"method": "peft:LORA", "peft_config": "r=4"}, "peft_config 'r=4' is not JSON"),
        ({"method": "peft:LORA", "peft_config": "[4]"}, "expected an object"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        TrainSettings(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "peft:VERA", "r": 0, "target_modules": "no_proj"}, "peft:VERA: .*'no_proj'"),
        (
            {"method": "peft:LORA", "peft_config": '{"init_lora_weights": "eva"}'},
            "'eva', which needs data",
        ),
        ({"method": "peft:IA3", "r": 4}, "peft:IA3: .*'r'"),
        ({"method": "peft:C3A", "peft_config": '{"block_size": 5}'}, "peft:C3A: .*--peft_config"),
    ],
)
def test_what_peft_refuses_is_one_error(tiny_base, given, words):
    model, _ = delta.load_base(str(tiny_base))
    with pytest.raises(ValueError, match=words):
        prepare.prepare(model, TrainSettings(**given))


def test_every_type_of_pefts_is_known_of():
    """A new version of PEFT may bring another; it is to be looked at here."""
    theirs = {kind.value for kind in PeftType} & {
        getattr(kind, "value", kind) for kind in peft_methods.PEFT_TYPE_TO_CONFIG_MAPPING
    }
    prompts = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"}
    prompts |= {"CPT", "CARTRIDGE"}
    assert theirs - {"ADAMSS"} == {*FIELDS, *peft_methods.REFUSED, *prompts} - set(
        peft_methods.LORA_KIN
    ) | {"LORA"}
    for name in (*peft_methods.REFUSED, *prompts):
        with pytest.raises(ValueError, match=name):
            peft_methods.check(f"peft:{name}", "")


def test_the_same_seed_gives_the_same_bits(trained, tmp_path):
    first, again = (trained("VERA", tmp_path / name) for name in ("first", "again"))
    one, other = (Path(run, "adapter_model.safetensors").read_bytes() for run in (first, again))
    assert one == other


def test_defaults_are_those_of_lora_or_the_methods_own():
    for method, rank in (("peft:DORA", 24), ("peft:ADALORA", 24), ("peft:VERA", 0)):
        settings = TrainSettings(method=method)
        arguments = trainer.TrainArguments()
        complete(settings, arguments)
        assert (settings.rank, arguments.learning_rate) == (rank, 3e-3)
        assert settings.run_name(3) == f"{method.replace(':', '-')}-s3"
    assert torch.get_num_threads()
