import pytest

from multilora import base
from multilora.tasks import encoding, tokens
from multilora.tasks.builtin import suite
from multilora.tasks.example import Example


@pytest.fixture(scope="module")
def tokenizer():
    return base.build_tokenizer(64)


@pytest.fixture
def examples():
    too_long = Example("sort", "instruction", "train", "dog", " ".join(["cat"] * 70))
    long = Example("sort", "instruction", "train", " ".join(["dog"] * 70), "cat")
    return [*suite.load("train", 2), too_long, long]


def test_what_comes_back_is_what_encoding_gives(tokenizer, examples, tmp_path, monkeypatch):
    tasks = list(suite.TASKS)
    want = encoding.encode_all(tokenizer, examples, 64, tasks)
    assert want[-2] is None
    assert want[-1].cut
    assert tokens.cached(tokenizer, examples, 64, tasks, tmp_path) == want
    # Once there, nothing is tokenised again, for whatever tasks.
    monkeypatch.setattr(tokens, "encode_all", None)
    assert tokens.cached(tokenizer, examples, 64, tasks, tmp_path) == want
    assert tokens.cached(tokenizer, examples, 64, [], tmp_path) == [
        row if row is None else row._replace(task=None) for row in want
    ]


def test_other_texts_contexts_and_tokenizers_have_files_of_their_own(tokenizer, examples, tmp_path):
    def files():
        return len(list(tmp_path.glob("*.npz")))

    tokens.cached(tokenizer, examples, 64, [], tmp_path)
    assert files() == 1
    tokens.cached(tokenizer, examples[1:], 64, [], tmp_path)
    assert files() == 2
    tokens.cached(tokenizer, examples, 60, [], tmp_path)
    assert files() == 3
    other = base.learn_tokenizer([e.prompt for e in examples], 300, 64)
    tokens.cached(other, examples, 64, [], tmp_path)
    assert files() == 4


def test_of_no_examples_there_are_no_tokens_and_no_file(tokenizer, tmp_path):
    assert tokens.cached(tokenizer, [], 64, [], tmp_path) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", [b"", b"no archive", None])
def test_a_broken_file_is_made_anew(broken, tokenizer, examples, tmp_path):
    want = tokens.cached(tokenizer, examples, 64, [], tmp_path)
    (path,) = tmp_path.glob("*.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if broken is None else broken)
    assert tokens.cached(tokenizer, examples, 64, [], tmp_path) == want
    assert path.read_bytes() == whole
