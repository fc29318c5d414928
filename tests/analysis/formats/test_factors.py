"""Any pair of factors by the patterns of its names, and what all readers of pairs share."""

import numpy as np
import pytest
from entries import close, scan_parts
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import Options
from analysis.spectrum import analyse, main
from analysis.update import Skipped


def test_any_pair_by_the_patterns_of_its_names(write_file, product):
    B, A, want = product()
    path = write_file({"w_a_000": A, "w_b_000": B, "w_a_001": A, "other": A})
    entries = scan_parts(path, factors=(r"w_a_(\d+)", r"w_b_(\d+)"), scale=2.0)
    close(entries["000.w", ""], 2 * want)
    assert "001.w: has A but no B" in entries["001.w", ""].reason
    assert entries["other", ""].what == "matches neither pattern"
    path = write_file({"h.q.down": A, "h.q.up": B}, "named.safetensors")
    (update,) = checkpoint.read(path, options=Options(factors=(r"(.*)\.down", r"(.*)\.up")))
    assert (update.name, update.method) == ("h.q", "factors")
    with pytest.raises(CheckpointError, match="inner ranks differ"):
        list(checkpoint.read(path, options=Options(factors=(r"(.*)\.up", r"(.*)\.down"))))
    with pytest.raises(CheckpointError, match="no name matches"):
        list(checkpoint.scan(path, Options(factors=("x", "y"))))
    with pytest.raises(ValueError, match="not a regular expression"):
        list(checkpoint.scan(path, Options(factors=("(", "y"))))


@pytest.mark.parametrize(
    ("A_name", "B_name", "more"),
    [
        ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
        ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"),
        ("lora_A", "lora_B", "lora_E"),
    ],
)
def test_what_is_more_than_two_factors_is_not_their_product(
    write_file, product, A_name, B_name, more
):
    B, A, _ = product()
    tensors = {f"unet.q.{A_name}": A, f"unet.q.{B_name}": B, "unet.q.lora_B.bias": B[:, 0].copy()}
    entries = scan_parts(write_file(tensors | {f"unet.q.{more}": np.ones((3, 1), "f4")}))
    assert f"{more.split('.')[0]} is not read next to" in entries["unet.q", ""].reason
    assert not isinstance(
        scan_parts(write_file(tensors))["unet.q", ""], Skipped
    )  # negative control


def test_the_real_ranks_of_sam(real_adapter, capfd):
    """One task at five ranks: each file's own directory is a run."""
    root = real_adapter("sam-lora-ranks")
    paths = [root / f"rank{r}" for r in (2, 4, 6, 8, 16)]
    found = analyse(paths, options=Options(factors=(r"w_a_(\d+)", r"w_b_(\d+)")))
    assert (len(found.rows), found.skipped, found.other) == (5 * 24, [], [])
    assert {(row["run"], row["capacity"]) for row in found.rows} == {
        (f"rank{r}", r) for r in (2, 4, 6, 8, 16)
    }
    assert {row["kind"] for row in found.rows} == {"w"}
    raw = load_file(paths[0] / "lora_rank2.safetensors")
    want = np.linalg.svd(raw["w_b_003"].astype(float) @ raw["w_a_003"].astype(float))[1][:2]
    np.testing.assert_allclose(found.s["rank2/003.w"], want, rtol=1e-12)
    assert main([str(paths[0])]) == 2
    assert "expected lora_A and lora_B" in capfd.readouterr().err
    assert main([str(paths[0]), "--factors", "(", "x"]) == 2
    assert "not a regular expression" in capfd.readouterr().err


def test_one_task_at_several_ranks(tmp_path, product, capfd):
    """A made-up twin of the real files: each directory is a run, paired by --factors alone."""
    wants = {}
    for r in (2, 4):
        tensors = {}
        for i in range(3):
            B, A, wants[f"rank{r}/{i:03}.w"] = product(r=r)
            tensors |= {f"w_a_{i:03}": A, f"w_b_{i:03}": B}
        (tmp_path / f"rank{r}").mkdir()
        save_file(tensors, tmp_path / f"rank{r}" / f"lora_rank{r}.safetensors")
    paths = [tmp_path / "rank2", tmp_path / "rank4"]
    found = analyse(paths, options=Options(factors=(r"w_a_(\d+)", r"w_b_(\d+)")))
    assert (found.skipped, found.other) == ([], [])
    assert {(row["run"], row["capacity"]) for row in found.rows} == {("rank2", 2), ("rank4", 4)}
    assert found.s.keys() == wants.keys()
    for key, want in wants.items():
        s = np.linalg.svd(want, compute_uv=False)[: found.s[key].size]
        np.testing.assert_allclose(found.s[key], s, rtol=1e-12)
    assert main([str(paths[0])]) == 2
    assert "expected lora_A and lora_B" in capfd.readouterr().err
    assert main([str(paths[0]), "--factors", "(", "x"]) == 2
    assert "not a regular expression" in capfd.readouterr().err
