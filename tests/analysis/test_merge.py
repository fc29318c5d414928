"""Merge adapters on disk: what PEFT loads of the result, and what is refused."""

import csv
import json

import ml_dtypes
import numpy as np
import pytest
from entries import updates
from safetensors.numpy import load_file, save_file

from analysis import CheckpointError, UserError, merge
from analysis.merging import methods
from analysis.merging.settings import Settings
from analysis.pairs.combine import Term


@pytest.fixture
def command(run_main):
    def run(*arguments):
        return run_main(merge.main, *arguments)

    return run


@pytest.fixture
def two(write_adapter, rng):
    """Adapters of rank 4 and 2 for two modules, with other scales."""
    paths = []
    for name, r in (("a", 4), ("b", 2)):
        tensors = {}
        for module in ("l.0.q", "l.0.v"):
            for factor, shape in (("A", (r, 10)), ("B", (12, r))):
                key = f"base_model.model.{module}.lora_{factor}.weight"
                tensors[key] = rng.standard_normal(shape).astype("f4")
        base = {"base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM"}
        paths.append(write_adapter(tensors, name, r=r, lora_alpha=8, **base))
    return paths


def dense(path):
    return {name: update.dense() for (name, _), update in updates(path).items()}


def weighted(paths, weights):
    of = [dense(path) for path in paths]
    return {n: sum(w * d[n] for w, d in zip(weights, of, strict=True)) for n in of[0]}


def close(got, want, tolerance=1e-6):
    assert got.keys() == want.keys()
    for name, W in want.items():
        np.testing.assert_allclose(got[name], W, rtol=0, atol=tolerance * np.abs(W).max())


def test_the_sum_is_written_and_reported(two, command, tmp_path):
    out, report = tmp_path / "out", tmp_path / "report"
    status, printed, err = command(
        f"2:{two[0]}", f"-0.5:{two[1]}", "--out", out, "--report", report
    )
    assert (status, err) == (0, [])
    close(dense(out), weighted(two, (2, -0.5)))
    assert {update.r for update in updates(out).values()} == {6}
    lines = printed.splitlines()
    assert lines[0] == "a: a  (lora)"
    assert "2 adapters merged (sum)" in lines
    assert max(map(len, lines)) <= 80
    assert "2 modules of rank 6" in " ".join(printed.split())
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    with (report / "merged.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["merged_by"] for row in rows] == ["sum", "sum"]
    record = json.loads((out / "record.json").read_text())
    assert record["command"] == "analysis.merge"
    assert any(name.endswith("a/adapter_model.safetensors") for name in record["inputs"])


@pytest.mark.parametrize("method", methods.METHODS)
def test_what_a_method_computes_is_what_is_read_again(two, command, tmp_path, method):
    out = tmp_path / "out"
    status, _, err = command(*(f"1:{p}" for p in two), "--method", method, "--out", out)
    assert (status, err) == (0, [])
    of = [updates(path) for path in two]
    want = {
        key[0]: methods.merge(method, [u[key] for u in of], Settings()).update.dense()
        for key in of[0]
    }
    close(dense(out), want)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_cut_is_optimal_and_says_its_error(two, command, tmp_path, dtype):
    out = tmp_path / "out"
    status, printed, _ = command(
        *(f"1:{path}" for path in two), "--rank", "2", "--out", out, "--dtype", dtype
    )
    assert status == 0
    exact, got = weighted(two, (1, 1)), dense(out)
    lost = {n: np.linalg.svd(W, compute_uv=False)[2:] for n, W in exact.items()}
    size = np.sqrt(sum(np.linalg.norm(W) ** 2 for W in exact.values()))
    optimum = np.sqrt(sum(np.linalg.norm(s) ** 2 for s in lost.values())) / size
    error = np.sqrt(sum(np.linalg.norm(got[n] - W) ** 2 for n, W in exact.items())) / size
    assert error == pytest.approx(optimum, abs=1e-6 if dtype == "float32" else 2e-3)
    assert f"relative error of the cut {optimum:.3g}," in " ".join(printed.split())
    file = load_file if dtype != "bfloat16" else None
    if file:
        assert {M.dtype for M in file(out / "adapter_model.safetensors").values()} == {
            np.dtype(dtype)
        }
    assert {u.B.dtype for u in updates(out).values()} == {
        np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    }


def test_without_out_only_the_report_is_made(two, command, tmp_path):
    status, printed, _ = command(*(f"1:{path}" for path in two), "--json")
    found = json.loads(printed)
    assert status == 0
    assert {"merging", "adapters", "merged", "record", "skipped", "other"} == found.keys()
    assert len(found["adapters"]) == 4
    assert not (tmp_path / "out").exists()
    assert command("--explain")[0] == 0


def test_dare_is_repeatable_by_its_seed(two, tmp_path):
    terms = [Term(1.0, path) for path in two]

    def of(seed):
        merged = merge.merge(terms, "dare", Settings(0.5, seed))
        return {update.name: update.dense() for update in merged.updates}

    close(of(1), of(1), 1e-12)
    with pytest.raises(AssertionError):
        close(of(1), of(2))


# In PEFT


@pytest.fixture
def in_peft(tmp_path):
    """A model with two adapters of PEFT's own, and their directories."""
    pytest.importorskip("peft")
    import tiny_models
    from peft import LoraConfig

    def config(r, **more):
        return LoraConfig(
            r=r, lora_alpha=2 * r, target_modules=["q_proj", "v_proj", "up_proj"], **more
        )

    paths = []
    for name, r in (("a", 4), ("b", 3)):
        torch_model = tiny_models.trained(tiny_models.llama(), config(r), std=0.1 * r)
        torch_model.save_pretrained(tmp_path / name)
        paths.append(tmp_path / name)
    return tiny_models.llama(), paths


def loaded(model, path, adapter="default"):
    """Module → ΔW as PEFT measures it."""
    import tiny_models
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, path, adapter_name=adapter)
    return model, {
        name.removeprefix("model."): layer.get_delta_weight(adapter).detach().double().numpy()
        for name, layer in tiny_models.layers(model).items()
    }


def test_peft_loads_the_merge_as_it_was_computed(in_peft, tmp_path):
    _, paths = in_peft
    import tiny_models

    terms = [Term(weight, path) for weight, path in zip((0.7, -0.4), paths, strict=True)]
    for method in ("sum", "tsv", "iso", "knots"):
        result = merge.merge(terms, method)
        merge.write(result, tmp_path / method)
        _, found = loaded(tiny_models.llama(), tmp_path / method)
        want = {update.name.removeprefix("model."): update.dense() for update in result.updates}
        close(found, want, 2e-6)


def test_the_sum_is_pefts_cat_and_a_cut_is_no_worse_than_its_svd(in_peft, tmp_path):
    model, paths = in_peft
    import tiny_models

    both, _ = loaded(model, paths[0], "a")
    both.load_adapter(paths[1], "b")
    both.add_weighted_adapter(["a", "b"], [1.0, 2.0], "cat", combination_type="cat")
    both.add_weighted_adapter(["a", "b"], [1.0, 2.0], "svd", combination_type="svd", svd_rank=3)

    def of(adapter):
        return {
            name.removeprefix("model."): layer.get_delta_weight(adapter).detach().double().numpy()
            for name, layer in tiny_models.layers(both).items()
        }

    terms = [Term(1.0, paths[0]), Term(2.0, paths[1])]
    merge.write(merge.merge(terms), tmp_path / "sum")
    _, summed = loaded(tiny_models.llama(), tmp_path / "sum")
    close(summed, of("cat"), 2e-6)
    merge.write(merge.merge(terms, settings=Settings(rank=3)), tmp_path / "cut")
    _, cut = loaded(tiny_models.llama(), tmp_path / "cut")
    exact, theirs = weighted(paths, (1, 2)), of("svd")
    for name, W in exact.items():
        own = np.linalg.norm(cut[name.removeprefix("model.")] - W)
        assert own <= np.linalg.norm(theirs[name.removeprefix("model.")] - W) * (1 + 1e-6)
        optimum = np.linalg.norm(np.linalg.svd(W, compute_uv=False)[3:])
        assert own / np.linalg.norm(W) == pytest.approx(optimum / np.linalg.norm(W), abs=1e-6)


def test_embeddings_and_convolutions_keep_their_shape(tmp_path):
    pytest.importorskip("peft")
    import tiny_models
    from peft import LoraConfig

    targets = ["emb", "lin", "turned", "conv2", "point"]
    paths = []
    for name, r in (("a", 2), ("b", 3)):
        config = LoraConfig(r=r, lora_alpha=4, target_modules=targets)
        tiny_models.trained(tiny_models.tiny(), config, std=0.2 * r).save_pretrained(
            tmp_path / name
        )
        paths.append(tmp_path / name)
    result = merge.merge([Term(1.0, path) for path in paths])
    merge.write(result, tmp_path / "sum")
    close(dense(tmp_path / "sum"), weighted(paths, (1, 1)), 2e-6)
    from peft import PeftModel

    model = PeftModel.from_pretrained(tiny_models.tiny(), tmp_path / "sum")
    for name, layer in tiny_models.layers(model).items():
        measured = tiny_models.matrix(layer.get_delta_weight("default"), layer)
        want = weighted(paths, (1, 1))[name]
        np.testing.assert_allclose(measured, want, atol=2e-6 * np.abs(want).max())


def test_multilora_is_merged_with_lora(in_peft, tmp_path):
    import tiny_models
    from peft import LoraConfig

    from multilora import MultiLoraConfig

    targets = ["q_proj", "v_proj"]
    paths = []
    for name, config in (
        ("multilora", MultiLoraConfig(r=2, n=3, lora_alpha=4, target_modules=targets)),
        ("lora", LoraConfig(r=2, lora_alpha=4, target_modules=targets)),
    ):
        tiny_models.trained(tiny_models.llama(), config).save_pretrained(tmp_path / name)
        paths.append(tmp_path / name)
    want = weighted(paths, (1, 1))
    for order in (paths, paths[::-1]):
        merge.write(merge.merge([Term(1.0, path) for path in order]), tmp_path / "m", force=True)
        assert {update.r for update in updates(tmp_path / "m").values()} == {8}
        _, found = loaded(tiny_models.llama(), tmp_path / "m")
        close(found, {name.removeprefix("model."): W for name, W in want.items()}, 2e-6)


# What does not go together


def refused(terms, **more):
    with pytest.raises((UserError, CheckpointError)) as caught:
        merge.merge(terms, **more)
    return str(caught.value)


def test_adapters_of_other_bases(two, write_adapter):
    tensors = load_file(two[0] / "adapter_model.safetensors")
    other = write_adapter(tensors, "other", base_model_name_or_path="org/another")
    terms = [Term(1.0, two[0]), Term(1.0, other)]
    message = refused(terms)
    for words in (str(other), "is org/another", "is org/base", "--same-base"):
        assert words in message
    assert len(merge.merge(terms, same_base=True).updates) == 2


def test_two_of_three_may_share_no_module(two, write_adapter):
    tensors = load_file(two[0] / "adapter_model.safetensors")
    q, v = (
        write_adapter({k: M for k, M in tensors.items() if f".{name}." in k}, name) for name in "qv"
    )
    result = merge.merge([Term(1.0, two[0]), Term(1.0, q), Term(1.0, v)], partly=True)
    W = dense(two[0])
    close({u.name: u.dense() for u in result.updates}, {name: 2 * M for name, M in W.items()})


def test_modules_that_one_lacks_and_other_names(two, write_adapter, rng):
    tensors = load_file(two[0] / "adapter_model.safetensors")
    fewer = write_adapter({k: M for k, M in tensors.items() if ".q." in k}, "fewer")
    message = refused([Term(1.0, two[0]), Term(1.0, fewer)])
    for words in (f"{fewer}: l.0.v: is missing", str(two[0]), "--map", "--partly"):
        assert words in message
    result = merge.merge([Term(1.0, two[0]), Term(2.0, fewer)], partly=True)
    W = dense(two[0])
    got = {update.name: update.dense() for update in result.updates}
    close(got, {"l.0.q": 3 * W["l.0.q"], "l.0.v": W["l.0.v"]})
    renamed = write_adapter({k.replace("l.0.", "h.0."): M for k, M in tensors.items()}, "renamed")
    terms = [Term(1.0, two[0]), Term(1.0, renamed)]
    assert "share no module" in refused(terms)
    result = merge.merge(terms, rename=[(r"^h\.", "l.")])
    close({u.name: u.dense() for u in result.updates}, {n: 2 * M for n, M in W.items()})


def test_other_shapes_parts_and_kinds_of_updates(two, write_adapter, write_delta, rng):
    tensors = load_file(two[0] / "adapter_model.safetensors")
    wide = {
        key: rng.standard_normal((4, 11)).astype("f4") if "lora_A" in key else M
        for key, M in tensors.items()
    }
    message = refused([Term(1.0, two[0]), Term(1.0, write_adapter(wide, "wide"))])
    assert "l.0.q: shapes differ" in message
    assert "(12, 10)" in message
    assert "(12, 11)" in message
    full = write_delta({"l.0.q": np.ones((12, 10), "f4"), "l.0.v": np.ones((12, 10), "f4")})
    message = refused([Term(1.0, two[0]), Term(1.0, full)])
    assert f"{full}: l.0.q: ΔW is no product of two factors" in message
    fused = {
        "base_model.model.l.0.q.lora_A.weight": rng.standard_normal((4, 6)).astype("f4"),
        "base_model.model.l.0.q.lora_B.weight": rng.standard_normal((8, 2, 1)).astype("f4"),
    }
    parts = write_adapter(fused, "fused", r=2, enable_lora=[True, True, False])
    assert "has parts (slice0)" in refused([Term(1.0, parts), Term(1.0, two[0])], partly=True)


def test_numbers_weights_ranks_and_counts(two, write_adapter):
    tensors = load_file(two[1] / "adapter_model.safetensors")
    tensors["base_model.model.l.0.v.lora_A.weight"][0, 0] = np.nan
    broken = write_adapter(tensors, "broken", r=2)
    message = refused([Term(1.0, two[0]), Term(1.0, broken)])
    assert "l.0.v" in message
    assert "NaN" in message
    terms = [Term(1.0, path) for path in two]
    assert "expected at most 6" in refused(terms, settings=Settings(rank=7))
    assert "expected two or more" in refused(terms[:1])
    assert "a weight of 0 leaves it out" in refused([terms[0], Term(0.0, two[1])])
    assert "given twice" in refused([terms[0], terms[0]])
    assert "--method 'mean'" in refused(terms, method="mean")


def test_dora_is_refused_without_its_base(two, write_adapter):
    tensors = load_file(two[0] / "adapter_model.safetensors")
    for module in ("l.0.q", "l.0.v"):
        tensors[f"base_model.model.{module}.lora_magnitude_vector"] = np.ones(12, "f4")
    dora = write_adapter(tensors, "dora", use_dora=True)
    message = refused([Term(1.0, two[0]), Term(1.0, dora)])
    assert "use_dora" in message
    assert message.endswith("make a LoRA of it first with python -m analysis.extract")


def test_an_output_that_exists_stays_as_it_is(two, command, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    arguments = [*(f"1:{path}" for path in two), "--out", out]
    status, _, err = command(*arguments)
    assert status == 2
    assert "exists" in err[0]
    assert [file.name for file in out.iterdir()] == ["notes.txt"]
    assert command(*arguments, "--force")[0] == 0
    assert (out / "adapter_model.safetensors").is_file()


def test_a_weight_that_is_none(two, command):
    status, _, err = command(two[0], f"1:{two[1]}")
    assert status == 2
    assert "expected WEIGHT:PATH, as 0.5:adapter/" in err[0]
    assert "--combine" not in err[0]


# Heads, biases


def with_head(path, value):
    tensors = load_file(path / "adapter_model.safetensors")
    tensors["base_model.model.score.weight"] = np.full((3, 10), value, "f4")
    save_file(tensors, path / "adapter_model.safetensors")
    config = json.loads((path / "adapter_config.json").read_text())
    config |= {"modules_to_save": ["score"], "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("value", [1.0, 2.0])
def test_saved_heads_are_taken_over_if_equal_and_else_on_request(two, command, tmp_path, value):
    with_head(two[0], 1.0)
    with_head(two[1], value)
    terms, out = [*(f"1:{path}" for path in two)], tmp_path / "out"
    status, printed, err = command(*terms, "--out", out)
    name = "base_model.model.score.weight"
    if value != 1.0:
        assert status == 2
        for words in (name, "not the same", f"--saved first to take those of {two[0]}"):
            assert words in err[0]
        assert not out.exists()
        status, printed, _ = command(*terms, "--out", out, "--saved", "first")
    assert status == 0
    assert load_file(out / "adapter_model.safetensors")[name][0, 0] == 1.0
    assert json.loads((out / "adapter_config.json").read_text())["modules_to_save"] == ["score"]
    assert f"with 1 tensor of {two[0]}" in " ".join(printed.split())
    status, printed, _ = command(*terms, "--out", out, "--force", "--saved", "none")
    assert status == 0
    assert name not in load_file(out / "adapter_model.safetensors")
    assert json.loads((out / "adapter_config.json").read_text())["modules_to_save"] is None
    assert "without 1 tensor that the adapters save" in " ".join(printed.split())


def test_a_bias_of_lora_b_is_refused(two):
    tensors = load_file(two[0] / "adapter_model.safetensors")
    tensors["base_model.model.l.0.q.lora_B.bias"] = np.ones(12, "f4")
    save_file(tensors, two[0] / "adapter_model.safetensors")
    assert "lora_bias" in refused([Term(1.0, path) for path in two])


def test_real_adapters_of_one_base_merge(real_adapter, tmp_path):
    paths = [
        real_adapter("roberta-portuguese-run/checkpoint-8610"),
        real_adapter("roberta-mrpc-monteclora"),
    ]
    result = merge.merge([Term(1.0, path) for path in paths], "tsv", keep_saved="first")
    merge.write(result, tmp_path / "out")
    got, want = dense(tmp_path / "out"), {u.name: u.dense() for u in result.updates}
    assert len(got) == 24
    close(got, want)
