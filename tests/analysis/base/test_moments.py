"""The reader of second moments: what the writer wrote, other names, and every bad directory."""

import hashlib
import json

import numpy as np
import pytest
from made_moments import write_moments
from made_updates import low_rank
from safetensors.numpy import save_file

from analysis import CheckpointError, UserError
from analysis.base import moments


def of(opened, name, d_in=3):
    update = low_rank(np.ones((4, 1)), np.ones((1, d_in)), name=name)
    return opened.of(update, opened.aligned([name]))


def test_modules_share_a_matrix_and_are_found_below_another_prefix(tmp_path, rng):
    C = np.cov(rng.standard_normal((3, 9)))
    names = [f"model.layers.0.attn.{kind}_proj" for kind in "qkv"]
    opened = moments.open_moments(
        write_moments(tmp_path / "m", {names[0]: C, names[1]: names[0], names[2]: 2 * C})
    )
    np.testing.assert_array_equal(of(opened, names[0]), C)
    np.testing.assert_array_equal(of(opened, names[1]), C)
    np.testing.assert_array_equal(of(opened, names[2]), 2 * C)
    assert of(opened, "model.layers.1.attn.q_proj") is None
    bare = [name.removeprefix("model.") for name in names]
    assert opened.aligned(bare) == dict(zip(bare, names, strict=True))
    assert moments.fingerprint(tmp_path / "m") == "abc"


@pytest.mark.parametrize(
    ("C", "words"),
    [
        (np.eye(4), r"l.q: the second moment is \(4, 4\), but ΔW is \(4, 3\); expected \(3, 3\)"),
        (np.full((3, 3), np.nan), "l.q: the second moment holds NaN or Inf"),
        (np.diag([1.0, np.inf, 1.0]), "l.q: the second moment holds NaN or Inf"),
        (np.triu(np.ones((3, 3))), "l.q: is not symmetric"),
        (-np.eye(3), "l.q: is not symmetric, or has a negative number on its diagonal"),
    ],
)
def test_a_matrix_that_is_no_moment_is_named(tmp_path, C, words):
    opened = moments.open_moments(write_moments(tmp_path / "m", {"l.q": C}))
    with pytest.raises(CheckpointError, match=words):
        of(opened, "l.q")


def test_another_directory_and_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a directory of second moments; expected one that"):
        moments.open_moments(tmp_path)
    path = write_moments(tmp_path / "m", {"l.q": np.eye(3)})
    whole = (path / "moments.safetensors").read_bytes()
    (path / "moments.safetensors").write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(CheckpointError, match=r"is not the file that record.json describes"):
        moments.open_moments(path)
    (path / "moments.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"moments.safetensors: is missing; run multilora"):
        moments.open_moments(path)
    write_moments(path, {"l.q": np.eye(3), "l.k": "l.v"})
    with pytest.raises(CheckpointError, match=r"l.k: 'l.v' is not in moments.safetensors"):
        moments.open_moments(path)
    write_moments(path, {"l.q": np.eye(3)}, base=["no hashes"])
    with pytest.raises(CheckpointError, match=r"sha256 is .*; expected an object"):
        moments.open_moments(path)
    write_moments(path, {"l.q": np.eye(3)}, command="analysis.spectrum")
    with pytest.raises(UserError, match=r"is not a directory of second moments"):
        moments.open_moments(path)


def base_of(tmp_path, name="base"):
    (tmp_path / name).mkdir()
    save_file({"w": np.full(3, len(name), "f4")}, tmp_path / name / "model.safetensors")
    content = (tmp_path / name / "model.safetensors").read_bytes()
    return tmp_path / name, {"model.safetensors": hashlib.sha256(content).hexdigest()}


def test_the_base_that_is_named_must_be_the_moments_own(tmp_path):
    base, sha256 = base_of(tmp_path)
    opened = moments.open_moments(write_moments(tmp_path / "m", {"l.q": np.eye(3)}, base=sha256))
    moments.check_base(opened, base)
    other, _ = base_of(tmp_path, "other")
    with pytest.raises(UserError, match=r"inputs of another model than --base .*other: .*differ"):
        moments.check_base(opened, other)


@pytest.mark.parametrize(
    ("file", "facts"),
    [
        ("run.json", lambda sha256: {"base": {"path": "x", "sha256": sha256}}),
        ("delta_config.json", lambda sha256: {"base_sha256": sha256}),
        ("../run.json", lambda sha256: {"base": {"path": "x", "sha256": sha256}}),
    ],
)
def test_the_base_of_a_run_must_be_the_moments_own(tmp_path, file, facts):
    opened = moments.open_moments(write_moments(tmp_path / "m", {"l.q": np.eye(3)}))
    run = tmp_path / "run" / "checkpoint-1"
    run.mkdir(parents=True)
    moments.check_trained(opened, run)  # nothing says what it was trained from
    (run / file).write_text(json.dumps(facts({"model.safetensors": "00"})))
    moments.check_trained(opened, run)
    (run / file).write_text(json.dumps(facts({"model.safetensors": "11"})))
    with pytest.raises(UserError, match=r"than the base of .*checkpoint-1: .*00… .*11…"):
        moments.check_trained(opened, run)
    (run / file).write_text("[]")
    moments.check_trained(opened, run)
