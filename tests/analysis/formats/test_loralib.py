"""loralib's state dicts, against the product written out by hand."""

import numpy as np
import pytest
from entries import close, scan_parts


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
    entries = scan_parts(write_file({"h.qkv.lora_A": A, "h.qkv.lora_B": B}))
    for i in range(2):
        close(entries["h.qkv", f"block{i}"], both[5 * i : 5 * i + 5])
