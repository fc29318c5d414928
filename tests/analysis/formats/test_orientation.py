"""Orientation of factors: decided by the shapes of a whole file, refused where nothing decides."""

import numpy as np
import pytest
from entries import close, scan_parts, updates
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from analysis import CheckpointError
from analysis.files.tensors import Stored
from analysis.formats import Options, orientation
from analysis.spectrum import main


def stored(*shape):
    return Stored(shape, "F32", lambda: np.arange(np.prod(shape), dtype="f4").reshape(shape))


@pytest.mark.parametrize(
    ("B", "A", "ways"),
    [
        ((12, 4), (4, 10), {False}),
        ((4, 12), (10, 4), {True}),
        ((64, 4), (4, 64), {False}),
        ((4, 64), (64, 4), {True}),
        ((64, 1), (1, 64), {False}),
        ((1, 64), (64, 1), {True}),
        ((64, 64), (64, 64), {False, True}),
        ((1, 1), (1, 1), {False}),
        ((8, 64), (64, 4), {False}),  # a rank above both sides, but there is no other way
        ((64, 8), (4, 64), set()),  # two ranks
        ((12, 3), (4, 10), set()),
        ((80, 4), (8, 64), {False}),  # two blocks of a fused layer
        ((64, 4), (8, 64), {False}),  # the same, and x @ A @ B of rank 64 makes 8 by 4
        ((8, 32), (64, 8), {True}),  # not two blocks of rank 32
        ((12, 4, 1, 1), (4, 10, 3, 3), set()),
        ((4, 0), (0, 4), set()),
        ((), (), set()),
    ],
)
def test_readings_of_a_pair(B, A, ways):
    assert orientation.readings(B, A) == ways


@given(d_out=st.integers(1, 40), d_in=st.integers(1, 40), r=st.integers(1, 40), turn=st.booleans())
def test_the_true_reading_is_always_among_them_for_a_rank_below_a_side(d_out, d_in, r, turn):
    B, A = (d_out, r), (r, d_in)
    if r > max(d_out, d_in) or (d_out, d_in, r) == (1, 1, 1):  # numbers, whose order is no matter
        return
    ways = orientation.readings(B[::-1], A[::-1]) if turn else orientation.readings(B, A)
    assert turn in ways


SQUARE = {"q": {"B": stored(8, 8), "A": stored(8, 8)}}
STANDARD = {"k": {"B": stored(6, 2), "A": stored(2, 6)}}
TRANSPOSED = {"v": {"B": stored(2, 6), "A": stored(6, 2)}}
KERNEL = {"c": {"B": stored(6, 2, 1, 1), "A": stored(2, 6, 3, 3)}}
ALONE = {"o": {"A": stored(2, 6)}}


def test_a_file_has_one_orientation():
    def is_transposed(*modules, named=False, **options):
        together = {name: parts for module in modules for name, parts in module.items()}
        return orientation.is_transposed(together, "f.pt", Options(**options), named=named)

    assert not is_transposed(STANDARD, SQUARE, KERNEL, ALONE)
    assert is_transposed(TRANSPOSED, SQUARE, KERNEL, ALONE)
    assert not is_transposed(KERNEL)
    assert not is_transposed()
    assert not is_transposed(SQUARE, named=True)
    for modules in ([TRANSPOSED], [SQUARE], [STANDARD]):
        assert is_transposed(*modules, transposed=True)  # STANDARD is square: it could be
    with pytest.raises(CheckpointError, match=r"f\.pt: k: .* fits only .*, v: .*--factors A B"):
        is_transposed(STANDARD, TRANSPOSED)
    with pytest.raises(CheckpointError, match=r"q: .*no shape .*--transposed.*--factors A B"):
        is_transposed(SQUARE, KERNEL)
    wide = {"w": {"B": stored(7, 2), "A": stored(2, 6)}}
    with pytest.raises(CheckpointError, match=r"w: B is \(7, 2\).*--transposed expects A"):
        is_transposed(wide, transposed=True)
    with pytest.raises(CheckpointError, match=r"v: .*exchange the two patterns of --factors"):
        is_transposed(TRANSPOSED, named=True, factors=("a", "b"))
    with pytest.raises(CheckpointError, match=r"v: .*and A \(r, d_in\); pass --transposed"):
        is_transposed(TRANSPOSED, named=True)  # by the rule of a format


def test_oriented_turns_matrices_and_nothing_else():
    modules = {("q", "a"): TRANSPOSED["v"] | {"alpha": stored(2, 1)}} | {("c", ""): KERNEL["c"]}
    after = orientation.oriented(modules, "f", Options())
    assert after["q", "a"]["B"].shape == (6, 2)
    np.testing.assert_array_equal(after["q", "a"]["B"].load(), modules["q", "a"]["B"].load().T)
    assert after["q", "a"]["alpha"].shape == (2, 1)
    assert after["c", ""]["A"] is KERNEL["c"]["A"]
    same = {"k": STANDARD["k"]}
    assert orientation.oriented(same, "f", Options()) is same


@pytest.mark.parametrize(("d_out", "d_in"), [(64, 64), (48, 64), (64, 16)])
@pytest.mark.parametrize("r", [1, 4])
def test_factors_of_x_a_b_under_the_names_of_loralib(write_file, rng, d_out, d_in, r, capfd):
    """Three layers that compute x @ A @ B; read as B @ A, square ones would be r x r updates."""
    tensors, wants = {}, {}
    for i in range(3):
        A = rng.standard_normal((d_in, r)).astype("f4")
        B = rng.standard_normal((r, d_out)).astype("f4")
        tensors |= {f"layers.{i}.wq.lora_A": A, f"layers.{i}.wq.lora_B": B}
        wants[f"layers.{i}.wq", ""] = (A.astype(float) @ B.astype(float)).T
    path = write_file(tensors)
    for options in ({}, {"transposed": True}):
        entries = scan_parts(path, scale=1.0, **options)
        for key, want in wants.items():
            close(entries[key], want)
            assert (entries[key].shape, entries[key].capacity) == ((d_out, d_in), r)
    assert "read as x @ A @ B" in scan_parts(path, scale=1.0)[path.name, ""].what
    assert main([str(path)]) == 0
    capfd.readouterr()
    for name in list(tensors):
        tensors[name] = np.ascontiguousarray(tensors[name].T)
    entries = scan_parts(write_file(tensors, "plain.safetensors"))  # negative control
    for key, want in wants.items():
        close(entries[key], want)
    assert "x @ A @ B" not in entries["plain.safetensors", ""].what


def test_a_file_that_tells_nothing_is_refused_with_what_helps(write_file, rng, capfd):
    tensors = {f"q.lora_{f}": rng.standard_normal((5, 5)).astype("f4") for f in "AB"}
    path = write_file(tensors)
    assert main([str(path)]) == 2
    err = capfd.readouterr().err
    assert "--transposed" in err
    assert "--factors A B" in err
    B, A = tensors["q.lora_B"].astype(float), tensors["q.lora_A"].astype(float)
    close(scan_parts(path, transposed=True)["q", ""], (A @ B).T)
    patterns = (r"(.*)\.lora_A", r"(.*)\.lora_B")
    close(scan_parts(path, factors=patterns)["q", ""], B @ A)


@pytest.mark.parametrize(
    ("names", "file"),
    [
        (("unet.x.to_q.lora_A.weight", "unet.x.to_q.lora_B.weight"), "a.safetensors"),
        (("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight"), "b.safetensors"),
        (
            ("layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"),
            "adapter.pt",
        ),
    ],
)
def test_a_format_that_fixes_the_orientation_is_checked_and_can_be_overruled(
    tmp_path, rng, names, file
):
    """64 × 4 and 4 × 64 as B @ A would be one 4 × 4 update of rank 64."""
    import torch

    A, B = rng.standard_normal((64, 4)), rng.standard_normal((4, 64))
    tensors = dict(zip(names, (A, B), strict=True))
    if file.endswith(".pt"):
        torch.save({k: torch.from_numpy(x) for k, x in tensors.items()}, tmp_path / file)
    else:
        save_file(tensors, tmp_path / file)
    with pytest.raises(CheckpointError, match=r"a rank of 64 is above both sides.*--transposed"):
        scan_parts(tmp_path / file, scale=1.0)
    (update,) = updates(tmp_path / file, scale=1.0, transposed=True).values()
    close(update, (A @ B).T)
