"""LoKr, against the Kronecker product written out, and against LyCORIS itself."""

import numpy as np
import pytest
from entries import close, reasons, scan, updates
from made_updates import orthonormal
from safetensors.numpy import save_file

from analysis import checkpoint
from analysis.numerics import decompose
from analysis.spectrum import analyse
from analysis.update import KroneckerUpdate

NAME = "lycoris_layers_0_q"


def lokr(**parts):
    """The tensors of a layer, by the ends of their names; alpha is a number."""
    alpha = parts.pop("alpha", None)
    tensors = {f"{NAME}.lokr_{part}": np.ascontiguousarray(x, "f4") for part, x in parts.items()}
    return tensors | ({} if alpha is None else {f"{NAME}.alpha": np.array(alpha, "f4")})


@pytest.fixture
def normal(rng):
    return lambda *shape: rng.standard_normal(shape).astype("f4")


def wide(x):
    return x.astype(float)


def test_two_whole_matrices_have_no_scale(write_file, normal):
    w1, w2 = normal(4, 3), normal(5, 6)
    (update,) = checkpoint.read(write_file(lokr(w1=w1, w2=w2, alpha=100)))
    close(update, np.kron(wide(w1), wide(w2)))
    assert (update.name, update.method, update.shape) == ("layers.0.q", "lokr", (20, 18))
    assert (update.capacity, update.r) == (15, 15)


def test_factors_are_scaled_by_alpha_over_their_rank(write_file, normal):
    w1, a, b = normal(4, 3), normal(5, 2), normal(2, 6)
    w2 = wide(a) @ wide(b)
    for tensors, scale in (
        (lokr(w1=w1, w2_a=a, w2_b=b, alpha=6), 3),
        (lokr(w1=w1, w2_a=a, w2_b=b), 1),
    ):
        (update,) = checkpoint.read(write_file(tensors))
        close(update, scale * np.kron(wide(w1), w2))
        assert update.capacity == 6
    (update,) = checkpoint.read(write_file(lokr(w1_a=a, w1_b=b, w2=w1, alpha=6)))
    close(update, 3 * np.kron(w2, wide(w1)))
    both = lokr(w1_a=a, w1_b=b, w2_a=a, w2_b=b, alpha=6)
    (update,) = updates(write_file(both), scale=0.5).values()  # the file gives the scale
    close(update, 3 * np.kron(w2, w2))


def test_kernels_are_flattened_behind_the_inputs(write_file, normal):
    w1, w2 = normal(4, 3), normal(5, 6, 3, 2)
    want = np.kron(wide(w1)[..., None, None], wide(w2)).reshape(20, -1)
    (update,) = checkpoint.read(write_file(lokr(w1=w1, w2=w2)))
    close(update, want)
    a, b = normal(5, 2), normal(2, 6, 3, 2)
    w2 = (wide(a) @ wide(b).reshape(2, -1)).reshape(5, 6, 3, 2)
    want = np.kron(wide(w1)[..., None, None], w2).reshape(20, -1)
    for stored in (b, b.reshape(2, -1)):
        (update,) = checkpoint.read(write_file(lokr(w1=w1, w2_a=a, w2_b=stored)))
        close(update, want)


def test_tucker_form_has_a_core(write_file, normal):
    w1, a, b, core = normal(4, 3), normal(2, 5), normal(2, 6), normal(2, 2, 3, 2)
    w2 = np.einsum("jkxy,jo,ki->oixy", wide(core), wide(a), wide(b))
    want = 2 * np.kron(wide(w1)[..., None, None], w2).reshape(20, -1)
    (update,) = checkpoint.read(write_file(lokr(w1=w1, w2_a=a, w2_b=b, t2=core, alpha=4)))
    close(update, want)
    s = np.linalg.svd(want, compute_uv=False)[: update.capacity]
    np.testing.assert_allclose(decompose.singular_values(update), s, atol=1e-6 * s[0])


def test_a_known_spectrum_comes_back_without_a_dense_matrix(write_file, rng, monkeypatch):
    """A hundred million entries from two small matrices: ΔW is not formed."""
    s1, s2 = np.array([3.0, 1.0, 0.5]), np.array([2.0, 1.0])
    w1 = (orthonormal(rng, 100, 3) * s1) @ orthonormal(rng, 100, 3).T
    a, b = orthonormal(rng, 100, 2) * s2, orthonormal(rng, 100, 2).T
    path = write_file(lokr(w1=w1, w2_a=a, w2_b=b))
    monkeypatch.setattr(np, "kron", None)
    result = analyse(path)
    (row,) = result.rows
    assert (row["d_out"], row["d_in"], row["algorithm"]) == (10_000, 10_000, "kronecker")
    (s,) = result.s.values()
    assert s.size == 200  # w1 is stored whole
    want = np.sort(np.outer(s1, s2).ravel())[::-1]
    np.testing.assert_allclose(s[:6], want, rtol=1e-5)
    assert s[6:].max() < 1e-5


def test_an_untrained_layer_is_zero(write_file, normal):
    path = write_file(lokr(w1=normal(4, 3), w2_a=normal(5, 2), w2_b=np.zeros((2, 6))))
    (row,) = analyse(path).rows
    assert (row["rank"], row["spectral_norm"]) == (0, 0)
    (update,) = checkpoint.read(path)
    assert not decompose.decomposition(update).s.any()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"w1": (4, 3)}, "has alpha, lokr_w1; expected lokr_w2, or lokr_w2_a"),
        ({"w1": (4, 3), "w2_a": (5, 2)}, "expected lokr_w2, or lokr_w2_a and lokr_w2_b"),
        ({"w1": (4, 3), "w2_a": (5, 2), "w2_b": (3, 6)}, "inner ranks differ"),
        ({"w1": (4,), "w2": (5, 2)}, "lokr_w1 is (4,); expected a matrix"),
        ({"w1": (4, 0), "w2": (5, 2)}, "lokr_w1 is (4, 0); expected a matrix"),
        ({"w1": (4, 3), "w2": (5, 2), "w2_a": (5, 2)}, "next to its factors; expected a matrix"),
        ({"w1": (4, 3), "w2": (5, 2), "w3": (5, 2)}, "lokr_w3 is not read next to LoKr's tensors"),
        (
            {"w1": (4, 3), "w2_a": (2, 5), "w2_b": (2, 6), "t2": (2, 3, 3)},
            "the core (r, r, *kernel)",
        ),
        (
            {"w1_a": (4, 1), "w1_b": (1, 3), "w2_a": (5, 2), "w2_b": (2, 6)},
            "w1 has rank 1, w2 2; expected one",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_skipped(write_file, normal, parts, words):
    tensors = lokr(**{part: normal(*shape) for part, shape in parts.items()}, alpha=1)
    assert words in reasons(write_file(tensors))["layers.0.q"]


def test_a_product_out_of_proportion_to_its_file_is_skipped(write_file):
    whole = np.ones((150, 150))
    words = reasons(write_file(lokr(w1=whole, w2=whole)))["layers.0.q"]
    assert "is (22500, 22500), of 45000 stored numbers; expected at most 268435456" in words


def test_without_a_limit_of_rank_the_null_is_one_matrix(write_file, normal):
    (row,) = analyse(write_file(lokr(w1=normal(4, 4), w2=normal(5, 6)))).rows
    assert (row["r"], row["capacity"], row["d_out"], row["d_in"]) == (None, 20, 20, 24)
    assert 0.5 < row["democracy"] < 1.1
    assert row["outliers"] is None  # the edge is that of one matrix, not of a product
    limited = lokr(w1=normal(4, 4), w2_a=normal(5, 2), w2_b=normal(2, 6))
    (row,) = analyse(write_file(limited)).rows
    assert (row["r"], row["capacity"], row["outliers"]) == (8, 8, None)


def test_not_a_number_is_told(write_file, normal):
    w1 = normal(4, 3)
    w1[0, 0] = np.nan
    (skipped,) = analyse(write_file(lokr(w1=w1, w2=normal(5, 6)))).skipped
    assert "ΔW holds NaN or Inf" in skipped["reason"]


def test_layers_of_lycoris_itself(tmp_path):
    """The modules of LyCORIS, with ΔW by their get_weight, and their merge for DoRA."""
    pytest.importorskip("lycoris.modules")
    tensors, base, want = layers_of_lycoris()
    save_file(tensors, tmp_path / "some.safetensors")
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base/model.safetensors")
    found = scan(tmp_path / "some.safetensors", base=tmp_path / "base")
    assert found.keys() == want.keys()
    for name, update in found.items():
        W = want[name]
        np.testing.assert_allclose(update.dense(), W, rtol=0, atol=1e-6 * np.abs(W).max())
    assert sum(isinstance(update, KroneckerUpdate) for update in found.values()) == 6


def layers_of_lycoris():
    """Tensors, the base's tensors, and ΔW of layers with random values."""
    import torch
    from lycoris.modules.full import FullModule
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule
    from torch.nn import Conv2d, Linear

    torch.manual_seed(0)
    dora = {"weight_decompose": True}
    made = {
        "lokr.whole": (LokrModule, Linear(24, 20), {"lora_dim": 100}),
        "lokr.low": (LokrModule, Linear(48, 40), {"factor": 4}),
        "lokr.both": (LokrModule, Linear(96, 64), {"factor": 8, "decompose_both": True}),
        "lokr.root": (LokrModule, Linear(48, 40), {"factor": 4, "rs_lora": True}),
        "lokr.kernel": (LokrModule, Conv2d(48, 40, 3), {"factor": 4}),
        "lokr.tucker": (LokrModule, Conv2d(48, 40, 3), {"factor": 4, "use_tucker": True}),
        "lokr.dora": (LokrModule, Linear(48, 40), {"factor": 4, **dora}),
        "loha.linear": (LohaModule, Linear(24, 20), {}),
        "loha.kernel": (LohaModule, Conv2d(24, 20, 3), {}),
        "loha.tucker": (LohaModule, Conv2d(24, 20, 3), {"use_tucker": True}),
        "loha.dora": (LohaModule, Linear(24, 20), dora),
        "locon.kernel": (LoConModule, Conv2d(24, 20, 3), {}),
        "locon.tucker": (LoConModule, Conv2d(24, 20, 3), {"use_tucker": True}),
        "locon.dora": (LoConModule, Conv2d(24, 20, 3), dora),
        "locon.columns": (LoConModule, Conv2d(24, 20, 3), {**dora, "wd_on_out": False}),
        "full.linear": (FullModule, Linear(24, 20), {}),
    }
    tensors, base, want = {}, {}, {}
    for name, (kind, layer, options) in made.items():
        flat = f"lycoris_layers_0_{name.replace('.', '_')}"
        module = kind(flat, layer, 1.0, **{"lora_dim": 2, "alpha": 3} | options).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            if options.get("weight_decompose"):
                module.dora_scale.abs_().add_(0.5)
            W0 = layer.weight.detach()
            if kind is FullModule:
                delta, state = module.weight, {"diff": module.weight}
            else:
                locon = kind is LoConModule
                delta = (
                    module.make_weight() * module.scale if locon else module.get_weight(W0.shape)
                )
                state = module.custom_state_dict()
            if options.get("weight_decompose"):
                double = module.apply_weight_decompose(W0 + delta).double()
                delta = double - W0.double()
        key = f"layers.0.{name.replace('.', '_')}"
        want[key] = delta.detach().double().reshape(len(W0), -1).numpy()
        base[f"layers.0.{name}.weight"] = W0.numpy()
        tensors |= {f"{flat}.{part}": x.detach().numpy().copy() for part, x in state.items()}
    return tensors, base, want
