"""Each adapter beside the others and the merged update, against dense algebra."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from made_updates import dense, from_spectrum, low_rank, merged, orthonormal

from analysis import UserError
from analysis.checkpoint import Run
from analysis.merging import iso, report, tsv
from analysis.merging.settings import Settings
from analysis.numerics import decompose
from analysis.pairs.members import Member
from analysis.pairs.merging import conflict

METHODS = {"sum": lambda updates, _: report.summed(updates)[0], "tsv": tsv.merge, "iso": iso.merge}


def random_update(rng, d_out, d_in, r, scale=-0.7):
    sizes = 0.6 ** np.arange(r)
    return low_rank(rng.standard_normal((d_out, r)) * sizes, rng.standard_normal((r, d_in)), scale)


def members(updates):
    return [
        Member(Run(Path(name), name, None), u.name, u, decompose.decomposition(u))
        for name, u in zip("abcde", updates, strict=False)
    ]


def whole(updates, merged_update=None):
    merged_update = merged_update or report.summed(updates)[0]
    return report.whole(members(updates), merged_update)


def top_spans(W):
    """Bases of the directions that hold 90 % of the energy."""
    U, s, Vh = scipy.linalg.svd(W)
    k = int(np.sum(np.cumsum(s**2) < 0.9 * np.sum(s**2))) + 1
    return U[:, :k], Vh[:k].T


def expected_adapter(Ws, i, M):
    """The slow way: projectors from dense SVDs."""
    W, others = Ws[i], [top_spans(X) for j, X in enumerate(Ws) if j != i]
    P = scipy.linalg.orth(np.hstack([U for U, _ in others]))
    Q = scipy.linalg.orth(np.hstack([V for _, V in others]))
    U, s, _ = scipy.linalg.svd(M)
    left_out = [np.sqrt(np.sum(s[k:] ** 2)) / np.linalg.norm(s) for k in range(len(s) + 1)]
    k = next(k for k, share in enumerate(left_out) if share <= 0.05)
    norm = np.linalg.norm(W)
    return {
        "frobenius_norm": norm,
        "shared_left": np.linalg.norm(P.T @ W) ** 2 / norm**2,
        "shared_right": np.linalg.norm(W @ Q) ** 2 / norm**2,
        "chance_left": P.shape[1] / W.shape[0],
        "chance_right": Q.shape[1] / W.shape[1],
        "alignment": np.linalg.norm(U[:, :k].T @ W) / norm,
        "alignment_chance": np.sqrt(k / W.shape[0]),
        "cosine": np.sum(W * M) / (norm * np.linalg.norm(M)),
    }


def expected_interference(Ws):
    """‖(UᵀU − I) Σ (VᵀV − I)‖₁ of Gargiulo et al., from dense SVDs."""
    U, S, V = [], [], []
    for W in Ws:
        u, s, vh = scipy.linalg.svd(W, full_matrices=False)
        k = int(np.sum(s > 1e-10 * s[0]))
        U, S, V = [*U, u[:, :k]], [*S, s[:k]], [*V, vh[:k].T]
    U, S, V = np.hstack(U), np.concatenate(S), np.hstack(V)
    eye = np.eye(S.size)
    return np.abs((U.T @ U - eye) @ np.diag(S) @ (V.T @ V - eye)).sum(), S.sum()


def check(row, want, tolerance=1e-9):
    for column, value in want.items():
        np.testing.assert_allclose(
            row[column], value, rtol=tolerance, atol=tolerance, err_msg=column
        )


SHAPES = [(40, 30, (5, 2)), (40, 30, (5, 2, 4)), (16, 60, (3, 3, 3, 3)), (6, 7, (5, 5))]


@pytest.mark.parametrize("method", ["sum", "tsv", "iso"])
@pytest.mark.parametrize(("d_out", "d_in", "ranks"), SHAPES)
def test_the_rows_match_dense_algebra(rng, d_out, d_in, ranks, method):
    updates = [random_update(rng, d_out, d_in, r, scale=0.5 + r) for r in ranks]
    Ws = [u.dense() for u in updates]
    result = METHODS[method](updates, Settings())
    M = result.dense()
    adapters, row, s = whole(updates, result)
    assert tuple(row) == report.MERGED
    # Of equal singular values any may be left out.
    aligned = method != "iso"
    for i, adapter in enumerate(adapters):
        assert tuple(adapter) == report.ADAPTER
        want = expected_adapter(Ws, i, M)
        check(adapter, {c: x for c, x in want.items() if aligned or "alignment" not in c})
    sti, sigma = expected_interference(Ws)
    norms = [np.linalg.norm(W) for W in Ws]
    singular = scipy.linalg.svdvals(M)
    np.testing.assert_allclose(s, singular[: s.size], atol=1e-12 * singular[0])
    positive, negative = (np.any([sign * W > 0 for W in Ws], axis=0) for sign in (1, -1))
    check(
        row,
        {
            "interference": sti,
            "interference_relative": sti / sigma,
            "sign_conflict": np.mean(positive & negative),
            "norm_ratio": max(norms) / min(norms),
            "energy": np.linalg.norm(M) ** 2 / np.sum(np.square(norms)),
            "effective_rank": np.exp(scipy.stats.entropy(singular)),
            "top_share_1": singular[0] ** 2 / np.sum(singular**2),
            "effective_rank_before": np.mean(
                [np.exp(scipy.stats.entropy(scipy.linalg.svdvals(W))) for W in Ws]
            ),
            "adapters": len(Ws),
        },
    )


def test_of_two_adapters_the_shares_are_those_of_the_pair(rng):
    a, b = random_update(rng, 40, 30, 5), random_update(rng, 40, 30, 2)
    (of_a, of_b), row, s = whole([a, b])
    pair, s_pair = merged(a, b)
    for one, adapter in (("a", of_a), ("b", of_b)):
        for column in ("shared_left", "shared_right", "chance_left", "chance_right"):
            check(pair, {f"{column}_{one}": adapter[column]})
    np.testing.assert_allclose(s, s_pair, atol=1e-12 * s[0])
    check(
        pair,
        {
            "opposite_sign": row["sign_conflict"],
            "sum_energy": row["energy"],
            "sum_effective_rank": row["effective_rank"],
            "sum_rank_99": row["rank_99"],
            "sum_capacity": row["capacity"],
        },
    )


def test_matrices_and_factors_give_the_same_rows(rng):
    updates = [random_update(rng, 20, 16, r) for r in (3, 4)]
    low, low_row, _ = whole(updates)
    high, high_row, _ = whole([dense(u.dense()) for u in updates])
    other = {"capacity", "key", "rank"}
    for a, b in zip([*low, low_row], [*high, high_row], strict=True):
        check(b, {c: x for c, x in a.items() if isinstance(x, float) and c not in other}, 1e-7)


def test_adapters_without_common_directions_do_not_interfere(rng):
    U, V = orthonormal(rng, 40, 9), orthonormal(rng, 30, 9)
    s = np.array([3.0, 2.0, 1.0])
    updates = [
        from_spectrum(U[:, i : i + 3], s * size, V[:, i : i + 3])
        for i, size in ((0, 1), (3, 2), (6, 4))
    ]
    adapters, row, _ = whole(updates)
    for adapter in adapters:
        check(adapter, {"shared_left": 0, "shared_right": 0, "chance_left": 4 / 40})
    check(row, {"interference": 0, "energy": 1, "norm_ratio": 4})
    # Of one side alone: nothing is crossed, since both must overlap.
    reading = [from_spectrum(U[:, i : i + 3], s, V[:, :3]) for i in (0, 3)]
    of_reading, one_sided, _ = whole(reading)
    check(one_sided, {"interference": 0})
    assert of_reading[0]["shared_right"] > 0.9
    both, same, _ = whole([reading[0], reading[0]])
    check(same, {"interference": 2 * s.sum(), "interference_relative": 1.0})
    check(both[0], {"cosine": 1, "alignment": 1})


def test_random_adapters_hold_in_others_what_chance_gives(rng):
    rows = [
        adapter
        for _ in range(80)
        for adapter in whole([random_update(rng, 24, 60, 4) for _ in range(3)])[0]
    ]
    for side in ("left", "right"):
        above = [row[f"shared_{side}"] - row[f"chance_{side}"] for row in rows]
        assert abs(np.mean(above)) < 4 * np.std(above) / np.sqrt(len(above) / 3)
    wrong = [row["shared_left"] - row["chance_right"] for row in rows]
    assert abs(np.mean(wrong)) > 10 * np.std(wrong) / np.sqrt(len(wrong))


def test_scaling_all_changes_only_the_sizes(rng):
    updates = [random_update(rng, 40, 30, r) for r in (5, 2, 4)]
    scaled = [low_rank(u.B, u.A, 1e150 * u.scale) for u in updates]
    adapters, row, _ = whole(updates)
    others, large, _ = whole(scaled)
    sizes = {"interference", "spectral_norm", "frobenius_norm"}
    for a, b in zip([*adapters, row], [*others, large], strict=True):
        check(b, {c: x for c, x in a.items() if isinstance(x, float) and c not in sizes})
        check(b, {c: 1e150 * a[c] for c in sizes & a.keys()})


def test_a_sum_that_vanishes_has_no_ratios(rng):
    a = random_update(rng, 40, 30, 5)
    b = low_rank(a.B, a.A, -a.scale)
    adapters, row, s = whole([a, b])
    assert not s.any()
    assert (row["energy"], row["rank"], row["sign_conflict"]) == (0, 0, 1)
    missing = ("effective_rank", "top_share_1", "rank_90", "rank_99", "alignment", "alignment_min")
    assert [row[column] for column in missing] == [None] * 6
    assert [adapter["cosine"] for adapter in adapters] == [None] * 2


def test_independent_signs_conflict_as_often_as_chance_says(rng):
    updates = [dense(rng.standard_normal((1000, 1000))) for _ in range(4)]
    for n in (2, 3, 4):
        share, sampled, seed = conflict(updates[:n])
        assert (sampled, seed) == (10**6, None)
        assert abs(share - (1 - 2.0 ** (1 - n))) < 4 * 0.0005


# Of checkpoints


def test_a_module_that_one_lacks_counts_as_zero(write_adapter, lora_tensors):
    paths = [
        write_adapter(lora_tensors("q", "v"), "a"),
        write_adapter(lora_tensors("q"), "b"),
        write_adapter(lora_tensors("q", "v"), "c"),
    ]
    found = report.analyse(paths)
    assert {row["module"]: row["adapters"] for row in found.merged} == {"q": 3, "v": 2}
    assert len(found.rows) == 3 + 1
    (skip,) = found.skipped
    assert (skip["module"], "is missing, but is in" in skip["reason"]) == ("v", True)
    assert [row["key"] for row in found.merged] == ["a+b+c/q", "a+c/v"]
    assert found.merged_s.keys() == {row["key"] for row in found.merged}


def test_an_update_that_is_zero_is_left_out_with_a_word(write_adapter, lora_tensors):
    tensors = [lora_tensors("q") for _ in range(3)]
    tensors[1]["base_model.model.q.lora_B.weight"][:] = 0
    paths = [write_adapter(t, name) for t, name in zip(tensors, "abc", strict=True)]
    found = report.analyse(paths)
    assert [row["adapters"] for row in found.merged] == [2]
    assert ["ΔW is zero" in skip["reason"] for skip in found.skipped] == [True]


def test_one_checkpoint_is_too_few(write_adapter, lora_tensors):
    with pytest.raises(UserError, match="1 checkpoint; expected two or more"):
        report.analyse([write_adapter(lora_tensors("q"))])
