import json
import time
from fractions import Fraction

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from multilora import MultiLoraConfig, budget

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=24),
    "llama-tied": transformers.LlamaConfig(**SIZES, intermediate_size=24, tie_word_embeddings=True),
    "gpt2": transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=32),
    "bert": transformers.BertConfig(**SIZES, intermediate_size=24, max_position_embeddings=32),
    "bert-mlm": transformers.BertConfig(
        **SIZES, intermediate_size=24, architectures=["BertForMaskedLM"]
    ),
    "opt": transformers.OPTConfig(
        **SIZES, ffn_dim=24, word_embed_proj_dim=8, max_position_embeddings=32
    ),
    "t5": transformers.T5Config(
        **{"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4},
        architectures=["T5ForConditionalGeneration"],
    ),
}
TARGETS = {"gpt2": "c_attn,c_proj", "bert": "query,value", "bert-mlm": "query,value", "t5": "q,wo"}


def counted(name, config):
    """Trained parameters of a real PEFT model, on the meta device."""
    model = budget.build(CONFIGS[name])
    with torch.device("meta"):
        adapted = get_peft_model(model, config)
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def printed(capsys, *argv):
    assert budget.main(list(argv)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("all_linear", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_those_of_peft(name, all_linear):
    text = "all-linear" if all_linear else TARGETS.get(name, "q_proj,v_proj")
    targets = text if all_linear else text.split(",")
    sizes = budget.measure(budget.build(CONFIGS[name]), text)
    assert sizes.layers > 0
    ranks, counts = (1, 3, 40), (1, 4)
    loras = {
        rank: counted(name, LoraConfig(r=rank, target_modules=targets))
        for rank in {n * r for n in counts for r in ranks}
    }
    for r in ranks:
        assert sizes.lora(r) == loras[r]
        for n in counts:
            config = MultiLoraConfig(n=n, r=r, target_modules=targets)
            assert sizes.multilora(n, r) == counted(name, config)
            assert sizes.multilora(n, r) == loras[n * r] + n * sizes.d_out


@pytest.mark.parametrize("name", CONFIGS)
def test_the_base_is_counted_as_it_is_with_weights(name):
    model = type(budget.build(CONFIGS[name]))(CONFIGS[name])
    sizes = budget.measure(budget.build(CONFIGS[name]))
    assert sizes.parameters == sum(p.numel() for p in model.parameters())
    assert sizes.parameters == model.num_parameters()
    head = model.get_output_embeddings()
    ends = {p for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    ends |= set(head.parameters()) if head is not None else set()
    assert sizes.outside == sum(p.numel() for p in model.parameters() if p not in ends)
    assert 0 < sizes.outside < sizes.parameters


def test_the_sums_of_a_llama_are_those_of_the_paper():
    """Exact sizes, as its weights have them."""
    known = {"7b": 6738415616, "13b": 13015864320, "30b": 32528943616, "65b": 65285660672}
    for name, parameters in known.items():
        sizes = budget.sizes_of(f"llama-{name}")
        assert sizes.parameters == parameters
        width, layers, _, mlp = budget.LLAMA[f"llama-{name}"]
        assert sizes.outside == parameters - 2 * 32000 * width
        assert sizes.layers == 7 * layers
        assert sizes.d_out == layers * (5 * width + 2 * mlp)
        assert sizes.d_in == layers * (6 * width + mlp)


def test_the_largest_takes_seconds():
    start = time.process_time()
    budget.measure(budget.build(budget.config_of("llama-65b")))
    assert time.process_time() - start < 10


@pytest.mark.parametrize("share", ["0.7%", "2.5%", "31%"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rows_are_the_largest_within_the_budget(name, share):
    sizes = budget.measure(budget.build(CONFIGS[name]))
    part = budget.share_of(share)
    limit = part * sizes.parameters
    found = {row.n: row for row in budget.rows(sizes, part, range(1, 9))}
    for n in range(1, 9):
        ranks = [r for r in range(1, 200) if sizes.multilora(n, r) <= limit]
        if not ranks:
            assert n not in found
            continue
        row = found[n]
        assert row.r == max(ranks)
        assert row.parameters == sizes.multilora(n, row.r)
        assert row.share == row.parameters / sizes.parameters <= float(part)
        assert row.share_outside == row.parameters / sizes.outside > row.share
        distance = abs(row.lora_parameters - row.parameters)
        assert row.lora_parameters == sizes.lora(row.lora_rank)
        assert distance == min(abs(sizes.lora(r) - row.parameters) for r in range(1, 400))


def test_the_nearest_rank_is_nearest():
    sizes = budget.Sizes(10_000, 9_000, 1, 10, 7, 7)
    for limit in [*range(1, 900, 7), Fraction(1, 3)]:
        for n in (1, 2, 5):
            got = abs(sizes.multilora(n, sizes.nearest_rank(Fraction(limit), n)) - limit)
            assert got == min(abs(sizes.multilora(n, r) - limit) for r in range(1, 200))


@pytest.mark.parametrize("r", [1, 2, 3, 4])
def test_of_two_equally_near_ranks_the_smaller_is_taken(r):
    """Odd and even: a rule that rounds halves to even, or up, differs for some of them."""
    sizes = budget.Sizes(parameters=10_000, outside=9_000, layers=1, d_in=11, d_out=7, full=7)
    for n in (1, 2, 5):
        between = Fraction(sizes.multilora(n, r) + sizes.multilora(n, r + 1), 2)
        assert sizes.nearest_rank(between, n) == r
        assert sizes.nearest_rank(between - 1, n) == r
        assert sizes.nearest_rank(between + 1, n) == r + 1
    between = (sizes.lora(r) + sizes.lora(r + 1)) // 2
    assert 2 * between == sizes.lora(r) + sizes.lora(r + 1)
    assert sizes.nearest_lora(between) == sizes.nearest_lora(between - 1) == r
    assert sizes.nearest_lora(between + 1) == r + 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("2.5%", Fraction(1, 40)), ("2.5 %", Fraction(1, 40)), ("0.025", Fraction(1, 40)), ("1", 1)],
)
def test_a_share_is_exact(text, value):
    assert budget.share_of(text) == value


@pytest.mark.parametrize("text", ["2.5", "0", "-1%", "101%", "a", "", "nan", "inf%", "1/0"])
def test_a_share_that_is_none_is_refused(text, capsys):
    with pytest.raises(ValueError, match="expected a percentage"):
        budget.share_of(text)
    assert budget.main(["--share=" + text]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("multilora.budget: share is ")
    assert err.count("\n") == 1


def test_the_claim_is_checked_for_every_llama(capsys):
    out = printed(capsys)
    for name in budget.LLAMA:
        assert f"\n{name}: " in f"\n{out}"
    assert "Nearest to 2.50 % of all parameters: n = 1, r = 67 (2.50 %);" in out
    assert "Nearest to 2.50 % of those outside embeddings and head: n = 1, r = 64 (2.49 %);" in out
    for n, r, share in [(3, 22, "2.51"), (3, 27, "2.48"), (3, 35, "2.50"), (3, 43, "2.50")]:
        assert f"n = {n}, r = {r} ({share} %)" in out


def test_json_alone_is_printed(capsys):
    answer = json.loads(printed(capsys, "--model", "llama-7b", "--n", "3", "5", "--json"))
    assert answer["share"] == 0.025
    (model,) = answer["models"]
    assert model["model"] == "llama-7b"
    assert [(row["n"], row["r"], row["parameters"]) for row in model["rows"]] == [
        (3, 21, 161488896),
        (5, 12, 156712960),
    ]
    assert len(model["words"]) == 2


@pytest.mark.parametrize("name", CONFIGS)
def test_a_directory_and_its_json_file_are_read(tmp_path, capsys, name):
    CONFIGS[name].save_pretrained(tmp_path)
    arguments = ["--share", "40%", "--n", "1", "--json"]
    file = printed(capsys, "--model", str(tmp_path / "config.json"), *arguments)
    directory = printed(capsys, "--model", str(tmp_path), *arguments)
    models = [json.loads(text)["models"][0] for text in (file, directory)]
    assert models[0]["rows"] == models[1]["rows"]
    assert models[0]["parameters"] == budget.measure(budget.build(CONFIGS[name])).parameters


def test_a_saved_model_is_counted_without_its_weights(tmp_path, capsys):
    model = transformers.LlamaForCausalLM(CONFIGS["llama"])
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    text = printed(capsys, "--model", str(tmp_path), "--share", "50%")
    assert f"{model.num_parameters():,} parameters" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "llama-7b", "--share", "0.001%"], "llama-7b: no MultiLoRA of n = 1, 2, 3"),
        (["--model", "llama-7b", "--target_modules", "nothing"], "llama-7b: Target modules"),
        (["--model", "llama-7b", "--target_modules", "(q"], "'(q' is not a valid regex"),
        (
            ["--model", "llama-7b", "--target_modules", "norm"],
            "norm is of type LlamaRMSNorm",
        ),
        (["--model", "llama-7b", "--n", "0"], "n is 0; expected at least 1"),
        (["--model", "/no/such/model"], "/no/such/model"),
    ],
)
def test_what_cannot_be_answered_is_one_line_and_status_2(argv, words, capsys, recwarn):
    assert budget.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("multilora.budget: ")
    assert err.count("\n") == 1
    assert words in err
    assert not [w for w in recwarn if issubclass(w.category, FutureWarning)]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "hidden_size": 0},
        {"model_type": "llama", "hidden_size": "wide"},
        {"model_type": "llama", "num_attention_heads": 0},
        {"model_type": "nothing"},
        {"model_type": "vit"},
        {},
        [],
        "{",
    ],
)
def test_a_config_that_is_none_is_one_line_and_status_2(config, tmp_path, capsys):
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    status = budget.main(["--model", str(tmp_path)])
    out, err = capsys.readouterr()
    if config == {"model_type": "vit"}:  # not a language model, and yet a model
        assert status == 0
        return
    assert (status, out) == (2, "")
    said = err.splitlines()[-1]
    assert said.startswith(f"multilora.budget: {tmp_path}: ")


def test_more_rank_than_a_layer_has_is_told_of():
    sizes = budget.Sizes(10_000, 9_000, 1, 10, 7, 7)
    few, many = (budget.words(sizes, Fraction(share), [1]) for share in ("1/200", "1/20"))
    assert len(few) == 2
    assert many[2] == "n·r above 7 exceeds the full rank of the smallest adapted layer."


def test_an_endless_exponent_is_refused_at_once():
    with pytest.raises(ValueError, match="expected a percentage"):
        budget.share_of("1e-99999999")


def test_each_llama_has_the_rank_nearest_to_its_share():
    rows = budget.llama_budget("2.5%", (1, 3))
    assert {(row["model"], row["n"]) for row in rows} == {
        (model, n) for model in budget.LLAMA for n in (1, 3)
    }
    row = next(row for row in rows if (row["model"], row["n"]) == ("llama-7b", 3))
    # Touvron et al.'s shapes: q, k, v, o are 4096², gate and up 11008 × 4096, down 4096 × 11008.
    d_in, d_out = 32 * (6 * 4096 + 11008), 32 * (5 * 4096 + 2 * 11008)

    def share(r):
        return (3 * r * (d_in + d_out) + 3 * d_out) / 6_738_415_616

    assert row["share"] == pytest.approx(share(row["r"]), rel=1e-12)
    away = {r: abs(share(r) - 0.025) for r in range(1, 60)}
    assert min(away, key=away.get) == row["r"]
