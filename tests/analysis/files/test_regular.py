"""What is no regular file is not opened."""

import os

import pytest
from entries import scan

from analysis import CheckpointError, UserError
from analysis.files import tensors
from analysis.files.regular import open_regular, read_text


def test_a_link_to_a_file_is_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"abc"


def test_pipes_devices_and_directories_are_not(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(CheckpointError, match=f"{name}: is a named pipe, a socket or a device"):
            open_regular(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")


def test_a_text_is_read_and_anything_else_is_not(tmp_path):
    (tmp_path / "text").write_text("naïve", encoding="utf-8")
    assert read_text(tmp_path / "text") == "naïve"
    (tmp_path / "latin").write_bytes("naïve".encode("latin-1"))
    for path, words in (
        (tmp_path / "latin", "can't decode"),
        (tmp_path / "none", "No such file"),
        (tmp_path, "is a directory"),
        ("/dev/zero", "a named pipe, a socket or a device"),
    ):
        with pytest.raises(UserError, match=f"not readable as UTF-8 text: .*{words}"):
            read_text(path)


@pytest.mark.parametrize("name", ["x.json", "x.safetensors", "x.bin"])
def test_no_reader_waits_for_a_pipe(tmp_path, name):
    os.mkfifo(tmp_path / name)
    read = tensors.read_json if name == "x.json" else tensors.open_file
    with pytest.raises(CheckpointError, match=f"{name}: .*expected a regular file"):
        read(tmp_path / name)


def test_an_adapter_whose_config_is_a_pipe_is_refused(write_adapter, lora_tensors):
    config = write_adapter(lora_tensors("q")) / "adapter_config.json"
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(CheckpointError, match="expected a regular file"):
        scan(config.parent)
