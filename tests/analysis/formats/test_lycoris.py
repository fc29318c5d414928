"""LoHa in kohya's files, against PEFT's own ΔW."""

import numpy as np
from entries import close, scan_parts

from analysis import checkpoint
from analysis.spectrum import analyse


def test_loha_is_the_product_entry_by_entry_that_peft_makes(write_file):
    import torch
    from peft import LoHaConfig, get_peft_model

    torch.manual_seed(0)
    config = LoHaConfig(r=3, alpha=6, target_modules=["0"], init_weights=False)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(7, 5)), config)
    layer = model.base_model.model[0]
    tensors = {
        f"lora_unet_mid_0.{name}": getattr(layer, name)["default"].detach().numpy()
        for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    }
    want = layer.get_delta_weight("default").detach().numpy()
    tensors["lora_unet_mid_0.alpha"] = np.array(6, "f4")
    (update,) = checkpoint.read(write_file(tensors))
    close(update, want)
    assert (update.name, update.method) == ("unet.mid.0", "loha")
    tensors["lora_unet_mid_0.hada_w2_a"] = np.ones((4, 3), "f4")
    (entry,) = scan_parts(write_file(tensors)).values()
    assert "expected two pairs of equal shapes" in entry.reason


def test_loha_of_small_rank_is_factored_without_a_matrix(write_file, rng):
    """Its singular values are those of the product entry by entry; r = 3 has nine directions."""
    w = [rng.standard_normal(shape).astype("f4") for shape in ((40, 3), (3, 30)) * 2]
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors = {f"lora_unet_q.{name}": x for name, x in zip(names, w, strict=True)}
    (update,) = checkpoint.read(write_file(tensors))
    want = (w[0].astype(float) @ w[1]) * (w[2].astype(float) @ w[3])
    assert (update.B.shape, update.A.shape) == ((40, 9), (9, 30))
    close(update, want)
    np.testing.assert_allclose(update.sizes[0], np.sqrt(2) * update.B)
    assert update.stored == (np.dtype("f4"), np.dtype("f4"))
    (spectrum,) = analyse(write_file(tensors)).s.values()
    np.testing.assert_allclose(spectrum, np.linalg.svd(want, compute_uv=False)[:9], rtol=1e-9)


def test_loha_in_tucker_form_is_the_product_that_peft_makes(write_file):
    import torch
    from peft import LoHaConfig, get_peft_model

    torch.manual_seed(0)
    config = LoHaConfig(
        r=3, alpha=6, target_modules=["0"], init_weights=False, use_effective_conv2d=True
    )
    model = get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(7, 5, (3, 2))), config)
    layer = model.base_model.model[0]
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    tensors = {
        f"lora_unet_mid_0.{name}": getattr(layer, name)["default"].detach().numpy()
        for name in names
    }
    want = layer.get_delta_weight("default").detach().numpy().reshape(5, -1)
    tensors["lora_unet_mid_0.alpha"] = np.array(6, "f4")
    (update,) = checkpoint.read(write_file(tensors))
    close(update, want)
    core = tensors.pop("lora_unet_mid_0.hada_t1")
    (entry,) = scan_parts(write_file(tensors)).values()
    assert "expected hada_w1_a, hada_w1_b" in entry.reason
    tensors["lora_unet_mid_0.hada_t1"] = core[:2]
    (entry,) = scan_parts(write_file(tensors)).values()
    assert "the core (r, r, *kernel)" in entry.reason


def test_locon_in_tucker_form_is_of_low_rank(write_file, rng):
    up, down, mid = (
        rng.standard_normal(shape).astype("f4")
        for shape in ((6, 3, 1, 1), (3, 5, 1, 1), (3, 3, 3, 2))
    )
    tensors = {"lora_unet_a.lora_up.weight": up, "lora_unet_a.lora_down.weight": down}
    tensors |= {"lora_unet_a.lora_mid.weight": mid, "lora_unet_a.alpha": np.array(6, "f4")}
    args = (x.astype(float) for x in (mid, up[..., 0, 0], down[..., 0, 0]))
    want = 2 * np.einsum("jkxy,oj,ki->oixy", *args).reshape(6, -1)
    (update,) = checkpoint.read(write_file(tensors))
    close(update, want)
    assert (update.method, update.capacity, update.shape) == ("locon", 3, (6, 30))
    assert update.stored == (np.dtype("f4"), np.dtype("f4"))
    assert update.sizes[1].shape == update.A.shape
    assert (update.sizes[1] >= np.abs(update.A) / 3).all()
    tensors["lora_unet_a.lora_mid.weight"] = mid[:2]
    (entry,) = scan_parts(write_file(tensors)).values()
    assert "the core (r, r, *kernel)" in entry.reason
    tensors["lora_unet_a.lora_down.weight"] = np.ones((3, 5, 3, 3), "f4")
    (entry,) = scan_parts(write_file(tensors)).values()
    assert "expected kernels of size 1 next to lora_mid.weight" in entry.reason


def test_a_matrix_out_of_proportion_to_its_file_is_skipped(write_file):
    """A matrix of 600 million entries, 5 GB, made of 50,000 numbers."""
    row, column = np.ones((1, 25_000), "f4"), np.ones((25_000, 1), "f4")
    loha = {f"lora_unet_a.hada_w{i}_{x}": m for i in (1, 2) for x, m in (("a", column), ("b", row))}
    (entry,) = scan_parts(write_file(loha)).values()
    assert "makes a matrix (25000, 25000) of 100000 numbers" in entry.reason
    groups = {"lora_unet_a.lora_up.weight": column[..., None, None]}
    groups |= {"lora_unet_a.lora_down.weight": column[..., None, None]}
    (entry,) = scan_parts(write_file(groups)).values()
    assert "makes a matrix (25000, 25000) of 50000 numbers" in entry.reason
