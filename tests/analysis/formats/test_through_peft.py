"""Every other PEFT type, merged by PEFT, against the whole model merged in float64."""

import numpy as np
import pytest
import torch
from entries import close, scan, updates
from tiny_models import layers, llama, trained

from analysis import CheckpointError, checkpoint
from analysis.formats import Options, through_peft
from analysis.spectrum import main


def other_types():
    import peft

    return {
        "LOHA": peft.LoHaConfig(r=2, target_modules=["q_proj"]),
        "LOKR": peft.LoKrConfig(r=2, target_modules=["q_proj", "down_proj"]),
        "VERA": peft.VeraConfig(r=2, target_modules=["q_proj"]),
        "IA3": peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "OFT": peft.OFTConfig(
            r=0, oft_block_size=4, target_modules=["q_proj"], use_cayley_neumann=False
        ),
        "BOFT": peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
        "HRA": peft.HRAConfig(r=2, target_modules=["q_proj"]),
        "FOURIERFT": peft.FourierFTConfig(n_frequency=5, target_modules=["q_proj"]),
        "RANDLORA": peft.RandLoraConfig(r=2, target_modules=["q_proj"]),
        "VBLORA": peft.VBLoRAConfig(
            r=2, topk=2, num_vectors=8, vector_length=4, target_modules=["q_proj"]
        ),
    }


@pytest.mark.parametrize(
    "peft_type",
    ["LOHA", "LOKR", "VERA", "IA3", "OFT", "BOFT", "HRA", "FOURIERFT", "RANDLORA", "VBLORA"],
)
def test_every_other_type_is_merged_minus_base(tmp_path, peft_type):
    from peft import PeftModel

    base = tmp_path / "base"
    llama().save_pretrained(base)
    config = other_types()[peft_type]
    config.task_type = "CAUSAL_LM"
    model = trained(llama(), config)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=f"peft_type is '{peft_type}'.*--base DIR"):
        updates(tmp_path / "adapter")
    found = updates(tmp_path / "adapter", base=base)
    # The oracle: the whole model in float64, merged and taken apart again.
    whole = PeftModel.from_pretrained(llama(), tmp_path / "adapter").double()
    names = {name for name, _ in found}
    assert names == layers(whole).keys()
    merged = dict(whole.merge_and_unload().named_parameters())
    for name, W0 in llama().double().named_parameters():
        module = name.removesuffix(".weight")
        if module in names:
            want = (merged[name] - W0).detach().numpy()
            assert found[module, ""].method == f"peft:{peft_type}"
            close(found[module, ""], want)
        else:
            torch.testing.assert_close(merged[name], W0, rtol=0, atol=0)


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("name", ["PromptTuning", "PrefixTuning", "PromptEncoder"])
def test_a_type_that_changes_no_weight_is_refused(tmp_path, name, with_base):
    import peft

    llama().save_pretrained(tmp_path / "base")
    config = getattr(peft, f"{name}Config")(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"changes no weight of the model: there is no ΔW$"):
        updates(tmp_path / "adapter", base=tmp_path / "base" if with_base else None)


@pytest.mark.parametrize("peft_type", sorted(through_peft.REFUSED))
def test_what_has_no_update_is_never_told_to_pass_a_base(write_adapter, peft_type):
    path = write_adapter({"prompt_embeddings": np.ones((3, 4), "f4")}, peft_type=peft_type)
    with pytest.raises(CheckpointError, match=f"peft_type is '{peft_type}', which") as error:
        scan(path)
    assert "--base" not in str(error.value)


def test_every_type_of_peft_is_read_or_merged_or_refused():
    from peft import PeftType

    own = {"MULTILORA", "RLORA", "MTLLORA"}
    known = through_peft.MERGED | through_peft.REFUSED.keys()
    assert {str(t.value) for t in PeftType} - own - known == set()
    assert not through_peft.MERGED & through_peft.REFUSED.keys()


def test_a_type_newer_than_this_project_is_left_to_peft(write_adapter):
    path = write_adapter({"x": np.ones((3, 4), "f4")}, peft_type="NEWER")
    with pytest.raises(CheckpointError, match="if the installed PEFT knows this type, pass the"):
        scan(path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "XLORA"}, "'XLORA', which mixes adapters anew for every input"),
        ({"peft_type": 7}, "peft_type is 7; expected 'LORA'"),
        ({"peft_type": "NOSUCH"}, "PEFT cannot put it into the base"),
        ({"peft_type": "LOHA", "megatron_config": {"x": 1}}, "megatron_config is set"),
    ],
)
def test_what_peft_must_not_load_is_refused(write_adapter, lora_tensors, tmp_path, config, words):
    llama().save_pretrained(tmp_path / "base")
    path = write_adapter(lora_tensors("q"), **config)
    with pytest.raises(CheckpointError, match=words):
        updates(path, base=tmp_path / "base")


def test_weights_that_are_missing_are_not_looked_for_on_the_hub(write_adapter, tmp_path):
    path = write_adapter({}, peft_type="LOHA")
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights; expected adapter_model\.safetens"):
        updates(path, base=tmp_path)


def variant(tmp_path, **config):
    from peft import LoraConfig

    llama().save_pretrained(tmp_path / "base")
    model = trained(llama(), LoraConfig(r=4, task_type="CAUSAL_LM", **config))
    model.save_pretrained(tmp_path / "adapter")
    return model


def test_an_adapter_that_moves_the_base_as_it_loads_is_refused(tmp_path, monkeypatch):
    """KaSA truncates W0: merged minus what is then the base would leave that out."""
    from peft.tuners.lora.config import KasaConfig

    variant(tmp_path, target_modules=["q_proj"], kasa_config=KasaConfig())
    for options in (Options(), Options(base=tmp_path / "base")):
        with pytest.raises(CheckpointError, match=r"kasa_config is set: KaSA puts .* not read$"):
            list(checkpoint.scan(tmp_path / "adapter", options))
    # Another that did so unknown to this project would be seen by its W0.
    monkeypatch.setattr(through_peft, "refuse", lambda *_: None)
    entries = list(checkpoint.scan(tmp_path / "adapter", Options(base=tmp_path / "base")))
    assert len(entries) == 2
    assert all("PEFT changes the base weight" in entry.reason for entry in entries)


def test_the_command_through_peft_is_quiet(tmp_path, capfd):
    import peft

    llama().save_pretrained(tmp_path / "base")
    config = peft.LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trained(llama(), config).save_pretrained(tmp_path / "adapter")
    capfd.readouterr()
    assert main([str(tmp_path / "adapter"), "--base", str(tmp_path / "base")]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "adapter (peft:LOHA)" in out
    # A base of other sizes: one line, and nothing analysed.
    (tmp_path / "base" / "config.json").write_text("{}")
    assert main([str(tmp_path / "adapter"), "--base", str(tmp_path / "base")]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "PEFT cannot put it into the base" in err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not-lora-ia3-opt350m", "peft_type is 'IA3'.*pass .* --base DIR"),
        ("not-lora-unilora", "peft_type is 'UNILORA'.*pass .* --base DIR"),
    ],
)
def test_real_adapters_that_are_not_lora_are_refused(real_adapter, name, words):
    with pytest.raises(CheckpointError, match=words):
        scan(real_adapter(name))


@pytest.mark.parametrize("peft_type", ["IA3", "UNILORA"])
def test_a_type_without_factors_says_what_to_pass(write_adapter, peft_type):
    """A made-up twin of the real adapters."""
    path = write_adapter({"base_model.model.q.ia3_l": np.ones((3, 1))}, peft_type=peft_type)
    with pytest.raises(CheckpointError, match=f"peft_type is '{peft_type}'.*pass .* --base DIR"):
        scan(path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "XLORA"}, "'XLORA', which mixes adapters anew for every input"),
        ({"arrow_config": {"top_k": 1}}, "arrow_config is set, which lets a config choose"),
    ],
)
def test_what_no_base_would_help_is_refused_at_once(write_adapter, lora_tensors, config, words):
    with pytest.raises(CheckpointError, match=words):
        scan(write_adapter(lora_tensors("q"), **config))
