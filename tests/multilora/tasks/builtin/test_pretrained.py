"""The base that comes with the package: its copy, its hash, and what it can do."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from analysis import UserError
from multilora import base, delta
from multilora.tasks.builtin import pretrained

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return pretrained.ensure(tmp_path_factory.mktemp("bases"))


def test_the_copy_has_the_files_of_the_package(copy):
    assert {f.name: f.read_bytes() for f in copy.iterdir()} == {
        f.name: f.read_bytes() for f in pretrained.FILES.iterdir()
    }
    got = hashlib.sha256((copy / WEIGHTS).read_bytes()).hexdigest()
    assert got == pretrained.SHA256
    assert copy.name == f"pretrained-{got[:12]}"


def test_it_is_copied_once(tmp_path, monkeypatch):
    first = pretrained.ensure(tmp_path / "deep" / "bases")
    monkeypatch.setattr(pretrained, "_copy", lambda _: pytest.fail("copied a second time"))
    assert pretrained.ensure(tmp_path / "deep" / "bases") == first
    assert [path.name for path in first.parent.iterdir()] == [first.name]


@pytest.mark.parametrize("damage", ["edited", "cut short", "gone"])
def test_a_damaged_copy_is_refused(tmp_path, damage):
    file = pretrained.ensure(tmp_path) / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "edited" else content[:1000])
    with pytest.raises(
        UserError, match=f"{WEIGHTS}: SHA-256 is .*; expected {pretrained.SHA256}"
    ) as e:
        pretrained.ensure(tmp_path)
    assert "remove the directory, or install the package again" in str(e.value)
    assert str(file.parent) in str(e.value)


def test_a_directory_of_the_whole_package_passes():
    pretrained.check(pretrained.FILES)


def test_an_empty_model_is_the_pretrained_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = base.path_of("", "")
    assert Path(path) == Path("runs/base") / f"pretrained-{pretrained.SHA256[:12]}"
    assert (tmp_path / path / WEIGHTS).is_file()
    assert base.path_of("models/own", "") == "models/own"
    with pytest.raises(UserError, match="pass --model with --tasks"):
        base.path_of("", "alpaca:a.json")


def test_it_is_what_its_settings_make(copy):
    """The settings that are recorded beside it are the defaults; so are size and vocabulary."""
    facts = json.loads((copy / "run.json").read_text())
    usual = json.loads(json.dumps(vars(base.BaseSettings())))
    assert {k: v for k, v in facts["settings"].items() if k != "out"} == {
        k: v for k, v in usual.items() if k != "out"
    }
    model, tokenizer = delta.load_base(str(copy))
    assert model.num_parameters() == facts["parameters"]
    assert model.config.hidden_size == usual["width"]
    assert tokenizer.get_vocab() == base.build_tokenizer(usual["context"]).get_vocab()
    assert tokenizer("dog").input_ids == base.build_tokenizer(usual["context"])("dog").input_ids
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_it_has_learned_what_the_tasks_build_on(copy):
    model, tokenizer = delta.load_base(str(copy))
    facts = json.loads((copy / "run.json").read_text())
    settings = base.BaseSettings()
    # Another processor may change a word or two of 800.
    copying = base.copying(model, tokenizer)
    assert copying == pytest.approx(facts["scores"]["copying"], abs=0.01)
    assert facts["scores"]["copying"] >= settings.least_copying
    assert facts["scores"]["recall"] >= settings.least_recall
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert base.copying(model, tokenizer, lists=10) < 0.1
