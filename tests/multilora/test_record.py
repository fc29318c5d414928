import hashlib
import importlib.util
import json
import re
import shutil
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from killed import at_every_call
from threadpoolctl import threadpool_info

from analysis import UserError
from multilora import record


@dataclass(frozen=True)
class Settings:
    rate: float = 0.1
    names: tuple[str, ...] = ("a", "b")


def module_of(path, source):
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    return importlib.util.module_from_spec(spec)


def test_a_fingerprint_is_the_same_at_every_call_and_for_equal_values():
    first = record.fingerprint(Settings(), "text", 3, [1, 2])
    assert len(first) == 12
    int(first, 16)
    assert record.fingerprint(Settings(), "text", 3, [1, 2]) == first
    assert record.fingerprint({"names": ["a", "b"], "rate": 0.1}, "text", 3, [1, 2]) == first
    assert record.fingerprint({"b": 1, "a": 2}) == record.fingerprint({"a": 2, "b": 1})


def test_a_fingerprint_is_the_start_of_the_sha256():
    whole = record.sha256("text", [1])
    assert whole == hashlib.sha256(b'"text"\n[1]\n').hexdigest()
    assert record.fingerprint("text", [1]) == whole[:12]


def test_a_fingerprint_changes_with_every_part():
    parts = [(), ("a",), ("b",), ("a", "b"), ("ab",), (Settings(),), (Settings(rate=0.2),)]
    parts += [(Settings(names=("b", "a")),), (["a", "b"],), (None,), (0,), (False,), ('a""b',)]
    assert len({record.fingerprint(*given) for given in parts}) == len(parts)


def test_a_fingerprint_tells_parts_apart():
    assert record.fingerprint(1, 23) != record.fingerprint(12, 3)


def test_a_fingerprint_changes_with_the_code_of_a_module(tmp_path):
    one = module_of(tmp_path / "one.py", "rate = 1\n")
    two = module_of(tmp_path / "two.py", "rate = 2\n")
    same = module_of(tmp_path / "same.py", "rate = 1\n")
    assert record.fingerprint(one) != record.fingerprint(two)
    assert record.fingerprint(one) == record.fingerprint(same)


def test_what_json_does_not_know_is_refused():
    with pytest.raises(TypeError, match="set"):
        record.fingerprint({1, 2})


def test_hashes_are_those_of_the_files(tmp_path):
    (tmp_path / "b.safetensors").write_bytes(b"weights")
    (tmp_path / "a.safetensors").write_bytes(b"")
    (tmp_path / "c.bin").write_bytes(b"other")
    hashes = record.sha256_of_files(tmp_path)
    assert list(hashes) == ["a.safetensors", "b.safetensors"]
    assert hashes["b.safetensors"] == hashlib.sha256(b"weights").hexdigest()
    assert list(record.sha256_of_files(tmp_path, "*.bin")) == ["c.bin"]


def test_the_environment_is_json_and_names_the_versions():
    environment = json.loads(json.dumps(record.environment(), allow_nan=False))
    assert {"torch", "transformers", "peft"} <= environment["versions"].keys()
    assert environment["threads"] >= 1


def test_the_environment_names_processor_instructions_and_linear_algebra():
    environment = record.environment()
    assert set(record.MACHINE) <= environment.keys()
    assert environment["cpu"]
    assert environment["instructions"] == torch.backends.cpu.get_cpu_capability()
    with record.threads(torch.get_num_threads() + 1):
        assert record.environment()["threads"] == environment["threads"] + 1
    np.linalg.inv(np.eye(3))  # loads a BLAS
    loaded = {one["internal_api"] for one in threadpool_info() if one["user_api"] == "blas"}
    assert {name.split()[0] for name in record.environment()["blas"]} == loaded


CPUINFO = """\
processor\t: 0
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
stepping\t: 1

processor\t: 1
model name\t: AMD EPYC
"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (CPUINFO, "AMD EPYC (cpu family 25, model 17, stepping 1)"),
        ("model name\t: A: B\n", "A: B"),
        ("model\t: 17\n", "by platform (model 17)"),
        ("", "by platform"),
        (None, "by platform"),
    ],
)
def test_the_processor_is_named_with_what_tells_it_from_others(monkeypatch, text, name):
    def read(path, **options):
        if text is None:
            raise FileNotFoundError(path)
        assert str(path) == "/proc/cpuinfo"
        return text

    monkeypatch.setattr(record.Path, "read_text", read)
    monkeypatch.setattr(record.platform, "processor", lambda: "by platform")
    assert record._processor() == name


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "run.json"
    record.write_json(path, {"s": [1.5, None], "name": "ΔW"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"s": [1.5, None], "name": "ΔW"}
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            record.write_json(path, {"s": bad})
    assert json.loads(path.read_text(encoding="utf-8"))["s"] == [1.5, None]
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]  # nothing temporary is left


def test_json_is_read_back(tmp_path):
    value = {"s": [1.5, None], "name": "ΔW", "deep": {"n": 1}}
    record.write_json(tmp_path / "run.json", value)
    assert record.read_json(tmp_path / "run.json") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not readable as JSON: Expecting value"),
        ("{", "not readable as JSON"),
        ("\xff", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[1]", "holds a list; expected a JSON object"),
        ("null", "holds a NoneType; expected a JSON object"),
    ],
)
def test_a_file_that_holds_no_object_is_named(tmp_path, text, words):
    path = tmp_path / "run.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {words}"):
        record.read_json(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        record.read_json(tmp_path / "nowhere.json")


def test_json_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    record.write_json(path, 1)
    write = type(path).write_text

    def full(self, text, **kwargs):
        write(self, text[:1], **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        record.write_json(path, [1, 2])
    assert path.read_text() == "1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_threads_are_as_before_however_it_ends():
    before = torch.get_num_threads()
    with record.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError, match="failed"), record.threads(before + 2):
        raise RuntimeError("failed")
    assert torch.get_num_threads() == before


def test_a_directory_is_made_once(tmp_path):
    calls = []

    def make(temporary):
        assert not (tmp_path / "deep" / "made").exists()
        (temporary / "file").write_text("whole")
        calls.append(temporary)

    assert record.make_once(tmp_path / "deep" / "made", make)
    assert not record.make_once(tmp_path / "deep" / "made", make)
    assert len(calls) == 1
    assert (tmp_path / "deep" / "made" / "file").read_text() == "whole"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["made"]


def test_what_fails_half_way_does_not_appear(tmp_path):
    def fail(temporary):
        (temporary / "file").write_text("half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        record.make_once(tmp_path / "made", fail)
    assert not (tmp_path / "made").exists()
    assert record.make_once(tmp_path / "made", lambda temporary: None)


def test_two_that_make_the_same_get_one_directory(tmp_path):
    both = threading.Barrier(2, timeout=10)
    made = []

    def make(temporary):
        both.wait()  # both have found it missing
        (temporary / "file").write_text("whole")

    def work():
        made.append(record.make_once(tmp_path / "made", make))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False, True]
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "file").read_text() == "whole"


def test_a_failed_make_leaves_nothing_behind(tmp_path):
    def make(path):
        (path / "half").write_text("a")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        record.make_once(tmp_path / "made", make)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_make_left_behind_is_removed(tmp_path):
    def make(path):
        (path / "whole").write_text("a")

    for _ in at_every_call(lambda: record.make_once(tmp_path / "made", make), tmp_path):
        record.make_once(tmp_path / "made", make)
        assert [path.name for path in tmp_path.iterdir()] == ["made"]
        shutil.rmtree(tmp_path / "made")
