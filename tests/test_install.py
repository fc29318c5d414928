"""What .ci/install.py tells uv of pip's configuration, and when pip installs instead."""

import importlib.util
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / ".ci" / "install.py"


@pytest.fixture(scope="module")
def install():
    spec = importlib.util.spec_from_file_location("install", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pips_places_are_uvs_places(install):
    told = install.settings(
        [
            ":env:.find-links='/wheels'",
            "global.constraint='/etc/constraints.txt'",
            "global.extra-index-url='\\nfile:///one/simple\\nhttps://two.example/simple'",
            "global.find-links='/other'",
            "global.index-url='https://index.example/simple'",
            "download.index-url='https://elsewhere.example'",
        ]
    )
    assert install.for_uv(told) == {
        "UV_FIND_LINKS": "/wheels",
        "UV_CONSTRAINT": "/etc/constraints.txt",
        "UV_INDEX": "file:///one/simple https://two.example/simple",
        "UV_DEFAULT_INDEX": "https://index.example/simple",
    }


def test_without_a_configuration_uv_is_told_nothing(install):
    assert install.for_uv(install.settings([])) == {}


def test_what_says_where_the_configuration_is_is_no_place(install):
    lines = [":env:.config-file='/dev/null'", "global.no-cache-dir='true'"]
    assert install.for_uv(install.settings(lines)) == {}


@pytest.mark.parametrize("name", ["proxy", "trusted-host", "no-index", "client-cert"])
def test_what_uv_cannot_be_told_leaves_it_to_pip(install, name):
    assert install.for_uv({name: "x"}) is None


@pytest.fixture
def calls(install, monkeypatch, tmp_path):
    """Run with a uv of the given status, or none; returns the programs that were started."""

    def run(status):
        if status is not None:
            uv = tmp_path / "uv"
            uv.write_text(f"#!/bin/sh\nexit {status}\n")
            uv.chmod(uv.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path))
        started, real = [], subprocess.run

        def recorded(command, **options):
            if "list" in command:
                return subprocess.CompletedProcess(command, 0, "global.find-links='/w'\n", "")
            started.append([Path(command[0]).name, *command[1:]])
            if command[0] == sys.executable:
                return subprocess.CompletedProcess(command, 0)
            assert options["env"]["UV_FIND_LINKS"] == "/w"
            assert options["env"].keys() >= os.environ.keys()
            return real(command, **options)

        monkeypatch.setattr(install.subprocess, "run", recorded)
        assert install.install(["-c", "c.txt", "x"]) == 0
        return [command[0] for command in started]

    return run


PYTHON = Path(sys.executable).name


@pytest.mark.parametrize(
    ("status", "programs"), [(None, [PYTHON]), (0, ["uv"]), (1, ["uv", PYTHON])]
)
def test_uv_installs_if_it_can_and_else_pip(calls, status, programs):
    assert calls(status) == programs
