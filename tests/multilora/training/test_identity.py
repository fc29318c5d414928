"""What a run's fingerprint covers, and when a run counts as finished."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import arguments_of, settings_of, written

import multilora
from multilora import train
from multilora.training import identity


@pytest.fixture(scope="module")
def model_path(tiny_base):
    return str(tiny_base)


def test_a_run_of_epochs_is_done_when_it_is(model_path, tmp_path):
    arguments = arguments_of(tmp_path, max_steps=-1, num_train_epochs=0.5, save_strategy="no")
    settings = settings_of(model_path)
    assert not identity.is_done(settings, arguments)
    train.run(settings, arguments)
    assert written(tmp_path)["step"] == 8  # half of 60 examples, 4 a step
    assert identity.is_done(settings, arguments)
    assert not identity.is_done(settings_of(model_path, n=2), arguments)


def test_a_fingerprint_that_is_known_is_not_computed_again(model_path, tmp_path, monkeypatch):
    settings, arguments = settings_of(model_path), arguments_of(tmp_path)
    made_of = identity.fingerprint(settings, arguments)
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "run.json").write_text(json.dumps({"fingerprint": made_of}))
    monkeypatch.setattr(identity, "fingerprint", lambda *_: pytest.fail("computed again"))
    assert identity.is_done(settings, arguments, made_of)
    assert not identity.is_done(settings, arguments, "another")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"fingerprint": null}', "\xff"])
def test_a_broken_record_is_of_no_finished_run(model_path, tmp_path, text):
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    assert not identity.is_done(settings_of(model_path), arguments_of(tmp_path))


def test_a_fingerprint_covers_settings_arguments_and_code(model_path, tmp_path, monkeypatch):
    settings, arguments = settings_of(model_path), arguments_of(tmp_path)
    made = [identity.fingerprint(settings, arguments)]
    assert identity.fingerprint(settings, arguments_of(tmp_path / "elsewhere")) == made[0]
    kept = replace(settings, token_cache="elsewhere")
    assert identity.fingerprint(kept, arguments_of(tmp_path, save_steps=7)) == made[0]
    made.append(identity.fingerprint(replace(settings, scale=4.0), arguments))
    made.append(identity.fingerprint(settings, arguments_of(tmp_path, seed=1)))
    monkeypatch.setitem(identity.CODE, "rows", "multilora.training.guard")
    made.append(identity.fingerprint(settings, arguments))
    assert len(set(made)) == 4


# What training imports.


ROOT = Path(multilora.__file__).parents[1]
# Modules that the training command imports and that cannot change the result of a run.
WITHOUT_EFFECT = {
    "analysis": "the error types and the version",
    "analysis.files": "opens files; changes no number",
    "analysis.files.exchange": "renames finished files",
    "analysis.command": "prints errors as one line",
    "analysis.extras": "names the extra of a library that is missing",
    "analysis.process": "empty",
    "analysis.process.start": "prepares the process of a command",
    "analysis.numerics": "empty",
    "analysis.store": "renames finished files",
    "multilora": "registers the methods with PEFT",
    "multilora.base": "the base counts by its path, which names what it was made of",
    "analysis.formats": "describes formats; changes no number",
    "analysis.formats.experts": "names the files of a checkpoint",
    "analysis.formats.full": "names the files of a checkpoint",
    "analysis.files.place": "finds the files of a checkpoint",
    "analysis.files.regular": "refuses files that are not regular",
    "analysis.formats.rule": "refuses patterns that take too long",
    "analysis.files.tensors": "refuses broken files; training reads none of their numbers",
    "multilora.checked": "refuses files before they are loaded",
    "multilora.behaviour": "computes the hashes of code",
    "multilora.command": "parses the command line; the parsed values are hashed",
    "multilora.record": "writes records and computes hashes",
    "multilora.methods": "empty",
    "multilora.methods.card": "writes the model card",
    "multilora.methods.serving": "writes exports on request",
    "multilora.methods.weighted": "adds adapters on request",
    "multilora.tasks": "empty",
    "multilora.tasks.builtin": "empty",
    "multilora.tasks.builtin.pretrained": "its copy is named by the hash of the weights",
    "multilora.tasks.public": "empty",
    "multilora.tasks.public.alpaca": "examples from files are hashed themselves",
    "multilora.tasks.public.curation": "examples from files are hashed themselves",
    "multilora.tasks.public.files": "examples from files are hashed themselves",
    "multilora.tasks.public.hub": "examples from files are hashed themselves",
    "multilora.tasks.public.llm_adapters": "examples from files are hashed themselves",
    "multilora.tasks.public.mmlu": "examples from files are hashed themselves",
    "multilora.tasks.public.records": "examples from files are hashed themselves",
    "multilora.tasks.public.sources": "examples from files are hashed themselves",
    "multilora.tasks.public.superglue": "examples from files are hashed themselves",
    "multilora.tasks.public.templates": "examples from files are hashed themselves",
    "multilora.training": "empty",
    "multilora.training.guard": "ends a run with an error, or not at all",
    "multilora.training.identity": "computes the fingerprint",
    "multilora.training.names": "names the output directory",
    "multilora.training.repeat": "compares a run with its repetition",
    "multilora.training.resume": "a resumed run ends with the same bits",
}


def source_of(module):
    path = ROOT.joinpath(*module.split("."))
    package = path / "__init__.py"
    return package if package.is_file() else path.with_suffix(".py")


def imported(module):
    """Modules of our packages that a module imports, also inside functions, and their packages."""
    names = set()
    for node in ast.walk(ast.parse(source_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, module
            names |= {f"{node.module}.{name.name}" for name in node.names} | {node.module}
    parents = {".".join(name.split(".")[:i]) for name in names for i in range(1, 9)}
    ours = {name for name in parents if name.split(".")[0] in ("analysis", "multilora")}
    return {name for name in ours if source_of(name).is_file()}


def test_every_module_that_training_imports_is_hashed_or_has_no_effect():
    """Modules of analysis that have no effect are not followed: they write no numbers here."""
    reached, left = set(), {"multilora.train"}
    while left:
        module = left.pop()
        reached.add(module)
        if module.startswith("multilora") or module in identity.CODE.values():
            left |= imported(module) - reached
    hashed = set(identity.CODE.values())
    assert len(hashed) == len(identity.CODE)
    assert not hashed & set(WITHOUT_EFFECT)
    assert reached - hashed == set(WITHOUT_EFFECT) & reached
    assert hashed <= reached
    for module in WITHOUT_EFFECT.keys() - reached:
        assert module.startswith("multilora.tasks.public"), module


@pytest.mark.parametrize(
    "module", [module for module, why in WITHOUT_EFFECT.items() if why == "empty"]
)
def test_what_is_called_empty_is_empty(module):
    assert not source_of(module).read_text().strip()
