import json
import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers

from analysis import UserError
from multilora import base
from multilora.tasks.builtin import corpus, world

# One thread: with more, processes that run side by side wait for one another.
TINY = {"width": 32, "layers": 1, "heads": 2, "mlp": 48, "steps": 3, "batch": 4, "threads": 1}
UNGATED = {"least_copying": 0.0, "least_recall": 0.0}


@pytest.fixture(scope="module")
def tokenizer():
    return base.build_tokenizer(64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(settings, directory) of a base trained for three steps."""
    settings = base.BaseSettings(out=str(tmp_path_factory.mktemp("base")), **TINY, **UNGATED)
    return settings, base.ensure(settings)


# The tokenizer.


def test_every_word_is_one_token_and_comes_back(tokenizer):
    words = [base.PAD, base.BOS, base.EOS, base.UNK, *world.vocabulary()]
    assert len(tokenizer) == len(words)
    text = " ".join(world.vocabulary())
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == list(range(4, len(words)))
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(range(len(words))) == words


def test_special_tokens_have_their_places(tokenizer):
    assert tokenizer(f"{base.BOS} dog", add_special_tokens=False).input_ids[0] == 1
    specials = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")
    assert [getattr(tokenizer, name) for name in specials] == [0, 1, 2, 3]
    assert tokenizer("nonsense", add_special_tokens=False).input_ids == [3]
    assert tokenizer.model_max_length == 64


# The model and its cache.


def test_a_base_is_a_llama_that_transformers_loads(made, tokenizer):
    settings, path = made
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 1)
    assert model.config.max_position_embeddings == settings.context
    back = transformers.AutoTokenizer.from_pretrained(path)
    assert back.get_vocab() == tokenizer.get_vocab()
    assert back("dog cat").input_ids == tokenizer("dog cat").input_ids
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight


def test_the_record_says_how_it_was_made(made):
    settings, path = made
    written = json.loads((path / "run.json").read_text())
    assert written["settings"] == asdict(settings)
    assert written["scores"].keys() == {"copying", "recall"}
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert written["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_base_is_trained_once(made, monkeypatch):
    settings, path = made
    monkeypatch.setattr(base, "_train", lambda *_: pytest.fail("trained a second time"))
    assert base.ensure(settings) == path == base.directory(settings)


def test_the_directory_is_that_of_the_settings_and_the_code(monkeypatch):
    settings = base.BaseSettings()
    assert base.directory(settings) == base.directory(base.BaseSettings())
    others = [replace(settings, **change) for change in ({"seed": 1}, {"steps": 5}, {"lr": 1e-3})]
    names = {base.directory(other).name for other in (settings, *others)}
    assert len(names) == 4
    assert base.directory(replace(settings, out="elsewhere")).name in names
    monkeypatch.setattr(base, "corpus", base.record)  # as if the corpus' code were another
    assert base.directory(settings).name not in names


def test_the_same_settings_give_the_same_bits(made, tmp_path):
    settings, path = made
    again = base.ensure(replace(settings, out=str(tmp_path)))
    other = base.ensure(replace(settings, out=str(tmp_path), seed=1))
    weights = [(p / "model.safetensors").read_bytes() for p in (path, again, other)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize("gate", ["copying", "recall"])
def test_a_base_that_has_not_learned_is_refused(tmp_path, gate):
    gates = UNGATED | {f"least_{gate}": 1.1}
    settings = base.BaseSettings(out=str(tmp_path), **TINY, **gates)
    words = rf"base model: {gate} is 0\.\d\d; expected at least 1\.1, which the tasks need"
    with pytest.raises(UserError, match=words):
        base.ensure(settings)
    assert not base.directory(settings).exists()


def test_a_base_is_trained_with_one_thread_unless_told_otherwise(tmp_path, monkeypatch):
    used = []

    def train(settings, out):
        used.append(torch.get_num_threads())

    monkeypatch.setattr(base, "_train", train)
    base.ensure(base.BaseSettings(out=str(tmp_path)))
    base.ensure(base.BaseSettings(out=str(tmp_path), threads=2))
    assert used == [1, 2]


def test_training_leaves_the_number_of_threads_alone(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    settings = base.BaseSettings(out=str(tmp_path), threads=before + 1)

    def fail(*_):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("failed")

    monkeypatch.setattr(base, "_train", fail)
    with pytest.raises(RuntimeError, match="failed"):
        base.ensure(settings)
    assert torch.get_num_threads() == before


def test_the_command_prints_the_directory(made, capsys):
    settings, path = made
    arguments = {**TINY, **UNGATED, "out": settings.out}
    base.main([f"--{name}={value}" for name, value in arguments.items()])
    assert capsys.readouterr().out.splitlines()[-1] == str(path)


# What it is trained on.


def test_the_corpus_is_packed_without_loss(tokenizer):
    settings = base.BaseSettings(steps=2, batch=8)
    packed = base._Packed(settings, base._corpus(settings, tokenizer))
    assert len(packed) == 16
    rows = [packed[i]["input_ids"] for i in range(16)]
    assert all(len(row) == settings.context for row in rows)
    words = tokenizer.convert_ids_to_tokens(torch.cat(rows).tolist())
    documents = corpus.documents(settings.seed, settings.copies)
    want = [w for _ in range(200) for w in (base.BOS, *next(documents).split(), base.EOS)]
    assert words == want[: 16 * 64]
    assert torch.equal(packed[3]["labels"], packed[3]["input_ids"])


# The gates.


class Oracle:
    """A model that knows every next token but those in `wrong`."""

    device = torch.device("cpu")

    def __init__(self, size, wrong=()):
        self.size, self.wrong = size, torch.tensor(list(wrong))

    def eval(self):
        return self

    def __call__(self, ids):
        following = torch.cat([ids[:, 1:], ids[:, :1]], 1)
        following = torch.where(torch.isin(following, self.wrong), 0, following)
        return SimpleNamespace(logits=F.one_hot(following, self.size).float())


def test_the_gates_count_the_words_that_are_right(tokenizer):
    size, ids = len(tokenizer), tokenizer.get_vocab()
    assert base.copying(Oracle(size), tokenizer) == 1
    assert base.recall(Oracle(size), tokenizer) == 1
    assert base.recall(Oracle(size, ids.values()), tokenizer) == 0
    assert base.copying(Oracle(size, ids.values()), tokenizer) == 0
    share = sum(fact.value == "red" for fact in corpus.KNOWN_FACTS) / len(corpus.KNOWN_FACTS)
    assert share > 0
    assert base.recall(Oracle(size, [ids["red"]]), tokenizer) == pytest.approx(1 - share)


def test_the_gate_of_copying_is_the_same_at_every_call(tokenizer):
    torch.manual_seed(0)
    model = base.build_model(base.BaseSettings(**TINY), tokenizer)
    first = base.copying(model, tokenizer)
    assert base.copying(model, tokenizer) == first
    assert first < 0.1  # an untrained model cannot copy


def test_what_is_asked_of_the_base_is_stated_in_its_corpus():
    """Recall is asked in the corpus' own words; else the gate would test something else."""
    text = " ".join(t for t, _ in zip(corpus.documents(0, 0.35), range(20_000), strict=False))
    fact = corpus.KNOWN_FACTS[0]
    for form in (0, 1):
        assert re.search(corpus.fact_statement(fact, form) + r" \.", text)
