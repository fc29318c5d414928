"""A stranger's base and adapter: refused in one line, before a library does harm."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from analysis import UserError
from multilora import budget, checked, delta, evaluate, train

CONFIG = checked.ADAPTER


@pytest.fixture(scope="module")
def lora(tiny_base, tmp_path_factory):
    """A LoRA trained for one step."""
    out = tmp_path_factory.mktemp("checked") / "lora"
    given = {"model": tiny_base, "method": "lora", "r": 2, "output_dir": out, "max_steps": 1}
    given |= {"per_task": 2, "per_task_scored": 1, "use_cpu": True, "disable_tqdm": True}
    assert train.main([f"--{name}={value}" for name, value in given.items()]) == 0
    return out


@pytest.fixture
def copies(lora, tiny_base, tmp_path):
    """Copies of the LoRA and of its base, to be spoiled."""
    return shutil.copytree(lora, tmp_path / "lora"), shutil.copytree(tiny_base, tmp_path / "base")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def evaluated(run_main, adapter, base):
    """Status and the last line on stderr."""
    words = [adapter, "--model", base, "--per_task", "1"]
    status, out, err = run_main(evaluate.main, *words, "--out", adapter / "scores")
    assert (status == 0) == bool(out)
    return status, err[-1] if err else ""


def test_what_is_whole_is_scored(copies, run_main):
    """Negative control."""
    (copies[0] / "run.json").unlink()
    assert evaluated(run_main, *copies)[0] == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected at most 200"),
        ({"num_labels": 10**9}, "num_labels is 1000000000; expected at most 100000"),
        ({"vocab_size": 10**12}, "describes a model of .* numbers, but its weight files have"),
        ({"head_dim": 10**9}, "describes a model of .* numbers"),
        ({"hidden_size": "x"}, "config.json: cannot be loaded: .*'hidden_size'"),
        ({"num_attention_heads": 0}, "config.json: cannot be loaded: ZeroDivisionError"),
        ({"model_type": "x"}, "config.json: cannot be loaded: .*model type `x`"),
        ({"intermediate_size": 50}, "base: cannot be loaded: RuntimeError"),
    ],
)
def test_a_base_whose_config_is_not_its_own(copies, run_main, config, words):
    (copies[0] / "run.json").unlink()
    change(copies[1] / "config.json", **config)
    status, line = evaluated(run_main, *copies)
    assert status == 2
    with pytest.raises(UserError, match=words):
        raise UserError(line)


def test_code_beside_a_base_is_never_run(copies, run_main, monkeypatch):
    (copies[0] / "run.json").unlink()
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(True) or "y")
    (copies[1] / "evil.py").write_text(f"open({str(copies[1] / 'RAN')!r}, 'w')")
    evil = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": "evil.T"}
    tokenizer = {"tokenizer_class": "evil", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
    change(copies[1] / "tokenizer_config.json", **tokenizer)
    assert evaluated(run_main, *copies)[0] == 2
    change(copies[1] / "config.json", model_type="evil", auto_map=evil)
    assert evaluated(run_main, *copies)[0] == 2
    with pytest.raises(ValueError, match="custom code"):
        budget.config_of(str(copies[1]))
    assert not asked
    assert not (copies[1] / "RAN").exists()


def test_a_tokenizer_larger_than_the_embedding(copies, run_main):
    (copies[0] / "run.json").unlink()
    _, base = copies
    tensors = load_file(base / "model.safetensors")
    rows = len(tensors["model.embed_tokens.weight"]) - 1
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:rows].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    change(base / "config.json", vocab_size=rows)
    assert evaluated(run_main, *copies) == (
        2,
        f"multilora.evaluate: {base}: its tokenizer has a token {rows}, but the model's embedding"
        f" has {rows} rows; expected the tokenizer of this model",
    )


def test_pipes_and_devices_are_not_opened(copies, run_main):
    adapter, base = copies
    (adapter / "run.json").unlink()
    for directory in (base, adapter):
        pipe = directory / "generation_config.json"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        want = f"multilora.evaluate: {pipe}: is neither a file nor a directory; remove it"
        assert evaluated(run_main, *copies) == (2, want)
        pipe.unlink()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 10**9}, "r is 1000000000, but no side of the adapter_model"),
        ({"rank_pattern": {"q_proj": 10**9}}, "q_proj is 1000000000, but no side"),
        ({"r": None}, "lora: cannot be loaded: TypeError"),
        ({"peft_type": "X"}, "lora: cannot be loaded: KeyError"),
        ({"target_modules": 5}, "lora: cannot be loaded: TypeError"),
        ({"target_modules": "(([a-z._0-9])+)+X"}, "its expressions take over .* s to match"),
        ({"exclude_modules": "(([a-z._0-9])+)+X"}, "its expressions take over .* s to match"),
    ],
)
def test_an_adapter_whose_config_is_not_its_own(copies, run_main, config, words):
    (copies[0] / "run.json").unlink()
    change(copies[0] / CONFIG, **config)
    status, line = evaluated(run_main, *copies)
    assert status == 2
    with pytest.raises(UserError, match=words):
        raise UserError(line)


@pytest.mark.parametrize("content", ["[]", "[" * 10**5, "", b"\xff"])
def test_files_that_are_no_json(copies, run_main, content):
    adapter, base = copies
    data = content if isinstance(content, bytes) else content.encode()
    for file in (adapter / "run.json", adapter / CONFIG, base / "config.json"):
        file.write_bytes(data)
        status, line = evaluated(run_main, *copies)
        assert status == 2
        assert line.startswith("multilora.evaluate: ")
        (adapter / "run.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "facts",
    [
        {"base": 5},
        {"base": {"path": 5, "sha256": {}}},
        {"base": {"path": "x\x1b"}},
        {"settings": []},
        {"settings": {"tasks": 5}},
        {"settings": {"tasks": "alpaca:/dev/zero"}},
    ],
)
def test_a_run_json_of_a_stranger(copies, run_main, facts):
    change(copies[0] / "run.json", **facts)
    assert evaluated(run_main, *copies)[0] == 2


def test_a_full_fine_tuning_without_modules(tiny_base, tmp_path, run_main):
    """The case delta_no_modules: a config that says nothing of the modules."""
    save_file({"x": torch.zeros(2, 2)}, tmp_path / "delta.safetensors")
    config = {"format": "multilora-delta", "version": 1, "method": "full"}
    (tmp_path / "delta_config.json").write_text(json.dumps(config))
    assert evaluated(run_main, tmp_path, tiny_base)[0] == 2


# The parts


def test_only_what_is_counted_is_counted():
    real = {
        "num_hidden_layers": 126, "n_layer": 48, "num_experts": 512, "num_experts_per_tok": 8,
        "n_positions": 10**6, "vocab_size": 10**6, "shared_expert_intermediate_size": 20480,
        "label2id": {"LABEL_200000": 200000}, "layer_norm_eps": 1e-5, "rope_theta": 10**8,
        "text_config": {"encoder_layers": 32, "layer_types": ["full"] * 32},
    }  # fmt: skip
    checked.counts(real, "config.json")
    for key in ("num_hidden_layers", "n_layer", "encoder_layers", "num_local_experts"):
        with pytest.raises(UserError, match=f"config.json: {key} is 2000000; expected at most"):
            checked.counts({"inner": [{key: 2 * 10**6}]}, "config.json")


def test_a_budget_is_not_built_from_a_billion_layers(tmp_path, tiny_base):
    config = json.loads((tiny_base / "config.json").read_text()) | {"num_hidden_layers": 10**9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(UserError, match="num_hidden_layers is 1000000000"):
            budget.sizes_of(str(path))
    (tmp_path / "config.json").write_text("[" * 10**5)
    with pytest.raises(UserError, match="cannot be loaded: RecursionError"):
        budget.sizes_of(str(tmp_path))


def test_an_architecture_names_a_model_and_nothing_else(tmp_path, tiny_base, monkeypatch):
    """Any other name in transformers would be called."""
    config = json.loads((tiny_base / "config.json").read_text())
    called = []
    monkeypatch.setattr(transformers, "pipeline", called.append)
    parameters = []
    for names in (["LlamaForCausalLM"], ["pipeline", "Trainer", "nonsense"]):
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": names}))
        parameters.append(budget.sizes_of(str(tmp_path)).parameters)
    assert parameters[0] == parameters[1]
    assert not called


def test_lokr_may_have_any_rank(tmp_path):
    """A rank above both sides means full factors there."""
    from safetensors.numpy import save_file as save

    save({"w": np.zeros((2, 2), "f4")}, tmp_path / "adapter_model.safetensors")
    for kind, refused in (("LOKR", False), ("LOHA", True)):
        (tmp_path / CONFIG).write_text(json.dumps({"peft_type": kind, "r": 10**5}))
        if refused:
            with pytest.raises(UserError, match="r is 100000"):
                checked.adapter(tmp_path, ["q"])
        else:
            checked.adapter(tmp_path, ["q"])


def test_what_a_library_raises_is_one_line():
    class PanicException(BaseException):
        pass

    for error in (KeyError("x"), RuntimeError("x\ny"), PanicException("x")):
        words = rf"^p: cannot be loaded: {type(error).__name__}: '?x'?$"
        with pytest.raises(UserError, match=words), checked.loading("p"):
            raise error
    for kept in (KeyboardInterrupt(), OSError("x"), UserError("x")):
        with pytest.raises(type(kept)), checked.loading("p"):
            raise kept


def test_a_base_is_loaded_as_before(tiny_base):
    model, tokenizer = delta.load_base(str(tiny_base))
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings
