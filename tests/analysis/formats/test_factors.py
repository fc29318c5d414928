"""Any pair of factors by the patterns of its names, and what all readers of pairs share."""

import numpy as np
import pytest
from entries import close, scan_parts
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, checkpoint
from analysis.formats import Options, stated
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
    [("lora_A.weight", "lora_B.weight", "lora_E"), ("lora_A", "lora_B", "lora_E")],
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


@pytest.mark.parametrize("more", ["lora_magnitude_vector", "lora_magnitude_vector.weight"])
def test_dora_in_a_file_is_refused_as_such(write_file, product, more):
    B, A, want = product()
    tensors = {"unet.q.lora_A.weight": A, "unet.q.lora_B.weight": B}
    path = write_file(tensors | {f"unet.q.{more}": np.ones(6, "f4")})
    with pytest.raises(CheckpointError, match=r"lora_magnitude_vector.* is set: DoRA rescales"):
        scan_parts(path)
    close(scan_parts(path, direction_only=True)["unet.q", ""], want)


def test_the_real_ranks_of_sam(real_adapter, capfd):
    """One task at five ranks: each file's own directory is a run."""
    root = real_adapter("sam-lora-ranks")
    paths = [root / f"rank{r}" for r in (2, 4, 6, 8, 16)]
    found = analyse(paths, options=Options(factors=(r"w_a_(\d+)", r"w_b_(\d+)")))
    assert (len(found.rows), found.skipped) == (5 * 24, [])
    assert {line["what"] for line in found.other} == {stated.UNSCALED}
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
    assert found.skipped == []
    assert [line["what"] for line in found.other] == 2 * [stated.UNSCALED]
    assert {(row["run"], row["capacity"]) for row in found.rows} == {("rank2", 2), ("rank4", 4)}
    assert found.s.keys() == wants.keys()
    for key, want in wants.items():
        s = np.linalg.svd(want, compute_uv=False)[: found.s[key].size]
        np.testing.assert_allclose(found.s[key], s, rtol=1e-12)
    assert main([str(paths[0])]) == 2
    assert "expected lora_A and lora_B" in capfd.readouterr().err
    assert main([str(paths[0]), "--factors", "(", "x"]) == 2
    assert "not a regular expression" in capfd.readouterr().err


PEFT_NAMES = (r"(.*)\.lora_A\.weight", r"(.*)\.lora_B\.weight")


@pytest.mark.parametrize("alpha", ["alpha", "lora_alpha"])
def test_an_alpha_next_to_a_pair_is_used(write_file, product, alpha):
    B, A, want = product()
    stem = "diffusion_model.blocks.0.q"
    tensors = {f"{stem}.lora_down.weight": A, f"{stem}.lora_up.weight": B, "other.alpha": A}
    patterns = (r"(.*)\.lora_down\.weight", r"(.*)\.lora_up\.weight")
    path = write_file(tensors | {f"{stem}.{alpha}": np.array(6, "f4")})
    entries = scan_parts(path, factors=patterns)
    assert {name for name, _ in entries} == {stem, "other.alpha"}  # no remark on the scale
    close(entries[stem, ""], 2 * want)
    close(scan_parts(path, factors=patterns, scale=0.5)[stem, ""], 2 * want)  # α is what counts
    path = write_file(tensors)
    entries = scan_parts(path, factors=patterns)  # negative control
    close(entries[stem, ""], want)
    assert entries[path.name, ""].what == stated.UNSCALED


@pytest.mark.parametrize("more", ["lora_E", "lora_mid.weight", "dora_scale"])
def test_pairs_with_more_than_two_factors_are_not_read_by_patterns(write_file, product, more):
    B, A, want = product()
    tensors = {"q.lora_A.weight": A, "q.lora_B.weight": B, f"q.{more}": np.ones((3, 1), "f4")}
    path = write_file(tensors)
    entries = scan_parts(path, factors=PEFT_NAMES)
    assert f"{more} is not read next to A and B" in entries["q", ""].reason
    close(scan_parts(path, factors=PEFT_NAMES, direction_only=True)["q", ""], want)


def test_patterns_that_do_not_tell_two_modules_apart_are_refused(write_file, product):
    B, A, _ = product()
    path = write_file({"a.b|c.A": A, "a.b|c.B": B, "a|b.c.A": A, "a|b.c.B": B})
    assert len(scan_parts(path, factors=(r"(.*)\.A", r"(.*)\.B"), scale=1.0)) == 2
    with pytest.raises(CheckpointError, match="two pairs have the same name"):
        scan_parts(path, factors=(r"(.*)\|(.*)\.A", r"(.*)\|(.*)\.B"))


@pytest.mark.parametrize("d_out", [64, 48, 8])
def test_mlx_names_with_patterns_need_transposed(write_file, rng, d_out, capfd):
    """mlx-lm stores lora_a (d_in, r), lora_b (r, d_out); as B @ A these would be 8 x 8 updates."""
    A = rng.standard_normal((64, 8)).astype("f4")
    B = rng.standard_normal((8, d_out)).astype("f4")
    path = write_file({"m.q.lora_a": A, "m.q.lora_b": B})
    line = [str(path), "--factors", r"(.*)\.lora_a", r"(.*)\.lora_b", "--scale", "20"]
    assert main(line) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "--transposed if the layer computes x @ A @ B" in err
    assert main([*line, "--transposed"]) == 0
    (update,) = checkpoint.read(
        path,
        options=Options(factors=(line[2], line[3]), scale=20.0, transposed=True),
    )
    close(update, 20.0 * (A.astype(float) @ B.astype(float)).T)
    assert (update.shape, update.capacity) == ((d_out, 64), 8)


def test_fused_blocks_by_patterns(write_file, rng):
    B, A = rng.standard_normal((10, 2)).astype("f4"), rng.standard_normal((4, 7)).astype("f4")
    path = write_file({"h.qkv.down": A, "h.qkv.up": B, "h.qkv.alpha": np.array([4.0], "f4")})
    patterns = (r"(.*)\.down", r"(.*)\.up")
    assert (
        "--blocks N,N, with a sum of 10" in scan_parts(path, factors=patterns)["h.qkv", ""].reason
    )
    entries = scan_parts(path, factors=patterns, blocks=(7, 3))
    close(entries["h.qkv", "block0"], 2.0 * (B[:7].astype(float) @ A[:2].astype(float)))
    close(entries["h.qkv", "block1"], 2.0 * (B[7:].astype(float) @ A[2:].astype(float)))
