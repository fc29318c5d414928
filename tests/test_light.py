"""The base install: what runs with its libraries alone, and what is said where one is missing."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import multilora_command
from analysis import extras

ROOT = Path(__file__).resolve().parents[1]
# Only the libraries of the base install, and nothing in the working directory.
LIGHT = """
import sys
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in KNOWN | sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
sys.meta_path.insert(0, Missing())
import multilora_command
sys.exit(multilora_command.main(sys.argv[1:]))
"""
OURS = {"analysis", "multilora", "multilora_command"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def light(project):
    """Runs the command with the base install's libraries: words -> CompletedProcess."""
    known = OURS | {Requirement(line).name for line in project["dependencies"]}

    def run(*words, cwd=ROOT):
        code = LIGHT.replace("KNOWN", repr(known))
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, words)],
            cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def adapter(write_adapter, lora_tensors):
    return write_adapter(lora_tensors("layers.0.q_proj"), "a")


@pytest.fixture
def other(write_adapter, lora_tensors):
    return write_adapter(lora_tensors("layers.0.q_proj"), "b")


@pytest.mark.parametrize("command", ["spectrum", "similarity", "page"])
def test_adapters_are_analysed_by_the_base_install(light, adapter, other, command, tmp_path):
    words = ["--out", tmp_path / "page.html"] if command == "page" else []
    done = light(command, adapter, other, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    ("words", "library"),
    [
        (["spectrum", "A", "--figures", "x"], "matplotlib"),
        (["similarity", "A", "--base", "A"], "torch"),
        (["train", "--help"], "peft"),
        (["reproduce"], "peft"),
        (["cuts", "A"], "peft"),
    ],
)
def test_a_missing_library_is_one_line_with_its_extra(light, adapter, words, library, tmp_path):
    done = light(*(adapter if word == "A" else word for word in words), cwd=tmp_path)
    extra = extras.EXTRA_OF[library]
    line = rf"multilora {words[0]}: needs {library}: python -m pip install 'multilora\[{extra}\]'\n"
    assert re.fullmatch(line, done.stderr)
    assert done.returncode == 2


def test_a_name_on_the_hub_says_what_fetches_it(light):
    done = light("spectrum", "no/adapter")
    assert done.returncode == 2
    assert "no/adapter: no such file or directory" in done.stderr
    assert "multilora[hub]" in done.stderr


def test_a_whole_model_says_what_it_needs(light, tmp_path):
    import torch
    from safetensors.torch import save_file

    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file({"q.weight": torch.randn(4, 4)}, tmp_path / name / "model.safetensors")
    done = light("spectrum", tmp_path / "tuned", "--base", tmp_path / "base")
    assert "needs torch: python -m pip install 'multilora[dense]'" in done.stderr
    assert (done.returncode, done.stdout) == (2, "")


def test_every_extra_that_is_named_brings_its_library(project):
    """Through other extras of this package too."""
    given = project["optional-dependencies"]

    def brought(extra):
        found = set()
        for requirement in map(Requirement, given[extra]):
            more = (
                [brought(e) for e in requirement.extras] if requirement.name == "multilora" else []
            )
            found |= {requirement.name.lower().replace("-", "_")}.union(*more)
        return found

    # jupyter brings IPython, and lm-eval is imported by another name than its own.
    other = {"IPython": "jupyter"}
    for library, extra in extras.EXTRA_OF.items():
        assert other.get(library, library) in brought(extra), f"{extra} lacks {library}"


def test_other_libraries_keep_their_error():
    with pytest.raises(ModuleNotFoundError, match="no_such_library") as caught, extras.named():
        import no_such_library  # noqa: F401
    assert not isinstance(caught.value, extras.MissingLibraryError)


# The command


def test_every_command_is_a_module_with_a_main():
    for name, (module, what) in multilora_command.COMMANDS.items():
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert path.is_file(), name
        assert "\ndef main(argv" in path.read_text(), name
        assert what


def test_no_module_with_a_main_is_left_out():
    known = {module for module, _ in multilora_command.COMMANDS.values()}
    for top in ("analysis", "multilora"):
        for path in (ROOT / top).glob("*.py"):
            if "\ndef main(argv" in path.read_text():
                assert f"{top}.{path.stem}" in known


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_overview_lists_every_command(words, capsys):
    assert multilora_command.main(words) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in multilora_command.COMMANDS)
    assert max(map(len, out.splitlines())) <= 80


def test_an_unknown_command_is_an_error(capsys):
    assert multilora_command.main(["spectra", "x"]) == 2
    out, err = capsys.readouterr()
    assert (out, "no command 'spectra'" in err) == ("", True)


def test_usage_and_errors_name_the_command_as_it_was_called(light):
    assert light("spectrum", "--help").stdout.startswith("usage: multilora spectrum ")
    assert light("spectrum", "nowhere").stderr.startswith("multilora spectrum: ")


def test_the_command_ignores_the_working_directory(adapter, tmp_path):
    """A project with an analysis/ of its own, and the command as it is installed."""
    for name in ("analysis", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text("open('RAN', 'w')")
    script = tmp_path / "bin" / "multilora"
    script.parent.mkdir()
    script.write_text("import sys, multilora_command\nsys.exit(multilora_command.main())\n")
    done = subprocess.run(
        [sys.executable, script, "spectrum", adapter],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize("shell", multilora_command.COMPLETIONS)
def test_completion_knows_the_commands(shell, capsys):
    assert multilora_command.main(["--completion", shell]) == 0
    assert "spectrum similarity" in capsys.readouterr().out


def test_bash_completes_a_command_and_an_option(tmp_path):
    script = tmp_path / "multilora"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -m analysis.spectrum --help\n")
    script.chmod(0o755)
    ask = """
    eval "$COMPLETION"
    COMP_WORDS=(multilora spec); COMP_CWORD=1; _multilora; echo "${COMPREPLY[@]}"
    COMP_WORDS=(multilora spectrum --fig); COMP_CWORD=2; _multilora; echo "${COMPREPLY[@]}"
    """
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COMPLETION": multilora_command.COMPLETIONS["bash"].replace(
            "COMMANDS", " ".join(multilora_command.COMMANDS)
        ),
    }
    done = subprocess.run(
        ["bash", "-c", ask], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["spectrum", "--figures"]
