"""loralib's state dicts, against the product written out by hand."""

import json

import numpy as np
import pytest
from entries import close, scan_parts

from analysis.spectrum import main


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_loralib_needs_to_be_told_its_scale(write_file, product, suffix, tmp_path):
    B, A, want = product()
    tensors = {"h.0.q.lora_A": A, "h.0.q.lora_B": B, "h.0.q.bias": np.ones(3, "f4")}
    if suffix == "pt":
        import torch

        path = tmp_path / "lora.pt"
        torch.save({"state_dict": {k: torch.from_numpy(v) for k, v in tensors.items()}}, path)
    else:
        path = write_file(tensors)
    entries = scan_parts(path)
    close(entries["h.0.q", ""], want)
    assert "does not give α" in entries[path.name, ""].what
    entries = scan_parts(path, scale=4.0)
    close(entries["h.0.q", ""], 4 * want)
    assert (path.name, "") not in entries


def test_a_merged_layer_of_loralib_is_read_block_by_block(write_file, rng):
    """MergedLinear with two slices of r = 2 enabled: a grouped convolution of A."""
    import torch

    A, B = rng.standard_normal((4, 7)).astype("f4"), rng.standard_normal((10, 2)).astype("f4")
    kernel = torch.from_numpy(B)[..., None]
    both = torch.nn.functional.conv1d(torch.from_numpy(A)[None], kernel, groups=2)[0].numpy()
    entries = scan_parts(write_file({"h.qkv.lora_A": A, "h.qkv.lora_B": B}), blocks=(5, 5))
    for i in range(2):
        close(entries["h.qkv", f"block{i}"], both[5 * i : 5 * i + 5])
        assert entries["h.qkv", f"block{i}"].of_rows


def test_blocks_are_never_cut_without_their_rows(write_file, rng, capfd):
    """Query and value of 64 and 16 rows: two halves of 40 would be wrong, and nothing says so."""
    A, B = rng.standard_normal((8, 64)).astype("f4"), rng.standard_normal((80, 4)).astype("f4")
    path = write_file({"h.qkv.lora_A": A, "h.qkv.lora_B": B})
    assert main([str(path)]) == 2
    assert "--blocks N,N, with a sum of 80" in capfd.readouterr().err
    assert main([str(path), "--blocks", "64,16", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    s = {(row["part"], row["d_out"], row["d_in"]): row["spectral_norm"] for row in rows}
    for part, rows, of_A in (("block0", slice(0, 64), 0), ("block1", slice(64, 80), 4)):
        want = np.linalg.norm(B[rows].astype(float) @ A[of_A : of_A + 4].astype(float), 2)
        np.testing.assert_allclose(s[part, rows.stop - rows.start, 64], want, rtol=1e-12)
    assert main([str(path), "--blocks", "40,41"]) == 2
    assert "expected 2 blocks with 80 rows in all" in capfd.readouterr().err


def test_an_embedding_and_a_stored_alpha(write_file, product):
    """loralib's Embedding: lora_A (r, entries), lora_B (width, r); a buffer lora_alpha is α."""
    B, A, want = product(d_out=5, r=3, d_in=40)
    tensors = {"emb.lora_A": A, "emb.lora_B": B, "emb.lora_alpha": np.array(6, "f4")}
    entries = scan_parts(write_file(tensors | {"q.alpha": A}))
    close(entries["emb", ""], 2 * want)
    assert {name for name, _ in entries} == {"emb", "q.alpha"}
