"""What a config claims, held against the weights next to it."""

import json

import pytest
from entries import updates
from tiny_models import llama, trained

from analysis import CheckpointError
from analysis.files.tensors import Stored
from analysis.formats import claims


def stored(*shapes):
    return {str(i): Stored(shape, "F32", lambda: None) for i, shape in enumerate(shapes)}


TINY = stored((64, 16), (16, 16), (48, 16))


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 10**9},
        {"vision_config": {"depths": [2, 10**9]}},
        {"num_attention_heads": 10**6},
        {"hidden_size": 10**9},
        {"hidden_size": 10**5, "intermediate_size": 10**5},
        {"hidden_size": 4000, "num_hidden_layers": 200},
        {"n_positions": 10**6},
        {"max_position_embeddings": 10**12},
    ],
)
def test_a_config_that_claims_what_the_weights_do_not_hold_is_refused(config):
    with pytest.raises(CheckpointError, match=r"here: .* (the )?weights are"):
        claims.refuse_claims(config, TINY, "here")


def test_configs_of_real_models_are_believed():
    billions = stored(*32 * [(14336, 4096), (4096, 14336), (4096, 4096)], (128256, 4096))
    config = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "x": 10**12}
    config |= {"num_hidden_layers": 32, "max_position_embeddings": 131072, "rope_theta": 500000}
    claims.refuse_claims(config, billions, "here")
    small = {"vocab_size": 50257, "n_embd": 16, "n_layer": 2, "n_positions": 1024, "n_inner": None}
    claims.refuse_claims(small, stored((50257, 16), (1024, 16)), "here")


def changed(file, **settings):
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_peft_and_transformers_do_not_see_what_is_refused(tmp_path):
    import peft

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    llama().save_pretrained(base)
    config = peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    config.task_type = "CAUSAL_LM"
    trained(llama(), config).save_pretrained(adapter)
    assert len(updates(adapter, base=base)) > 0
    changed(base / "config.json", num_hidden_layers=10**9)
    with pytest.raises(CheckpointError, match=r"config\.json: num_hidden_layers is 1000000000"):
        updates(adapter, base=base)
    changed(adapter / "adapter_config.json", target_modules="(([a-z._0-9])+)+X")
    with pytest.raises(CheckpointError, match="its expressions take over 1 s to match"):
        updates(adapter, base=base)
