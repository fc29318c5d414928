"""`multilora.train --quantised`: a base in 4 or 8 bits."""

import importlib.util
import json

import pytest

from analysis import UserError, spectrum
from multilora import delta, evaluate, train
from multilora.training.settings import TrainSettings

NEEDS = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@NEEDS
@pytest.mark.parametrize("bits", [4, 8])
def test_a_run_on_a_quantised_base_ends_like_any_other(bits, train_argv, tmp_path, run_main):
    out = tmp_path / "run"
    status, printed, err = run_main(
        train.main, *train_argv(out, quantised=bits, r=2, logging_steps=1)
    )
    assert status == 0, err
    assert printed.strip() == str(out)
    facts = json.loads((out / "run.json").read_text())
    assert facts["settings"]["quantised"] == bits
    losses = [entry["loss"] for entry in facts["losses"]]
    assert losses
    rows = spectrum.analyse(str(out)).rows
    assert rows
    assert all(row["frobenius_norm"] > 0 for row in rows)
    # It is scored on the base that it was trained on.
    status, printed, err = run_main(
        evaluate.main, out, "--per_task=2", "--resamples=10", "--json", "--split=validation"
    )
    assert status == 0, err
    assert json.loads(printed)["rows"]


@NEEDS
@pytest.mark.parametrize("method", ["lora", "rlora", "mtllora", "expert"])
def test_the_other_methods_take_a_quantised_base_too(method, train_argv, tmp_path, run_main):
    out = tmp_path / method
    given = {"quantised": 4, "r": 2, "method": method, "max_steps": 2}
    status, _, err = run_main(train.main, *train_argv(out, **given))
    assert status == 0, err
    assert spectrum.analyse(str(out)).rows


@pytest.mark.parametrize("bits", [2, 16, -4])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(UserError, match=f"quantised is {bits}; expected 4 or 8 bits, or 0"):
        TrainSettings(quantised=bits)


def test_quantised_weights_are_not_trained_themselves():
    with pytest.raises(UserError, match="cannot be trained by method full"):
        TrainSettings(quantised=4, method="full")


def test_the_number_of_bits_is_part_of_the_name_of_a_run():
    assert "quantised=4" in TrainSettings(quantised=4).run_name(1)
    assert TrainSettings(quantised=0).run_name(1) == TrainSettings().run_name(1)


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed"
)
def test_without_bitsandbytes_the_extra_is_named(tiny_base):
    words = r"needs bitsandbytes: python -m pip install 'multilora\[quantised\]'"
    with pytest.raises(UserError, match=words):
        delta.load_base(str(tiny_base), quantised=4)
