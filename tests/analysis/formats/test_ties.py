"""Heads and embeddings: which are tied, and which rows are entries."""

import json

import pytest

from analysis.files.place import Place
from analysis.files.tensors import Stored
from analysis.formats import ties


@pytest.mark.parametrize(
    ("name", "head", "entries"),
    [
        ("lm_head.weight", True, True),
        ("model.lm_head.weight", True, True),
        ("output.weight", True, True),
        ("cls.predictions.decoder.weight", True, True),
        ("transformer.wte.weight", False, True),
        ("transformer.wpe.weight", False, True),
        ("shared.weight", False, True),
        ("bert.embeddings.position_embeddings.weight", False, True),
        ("score.weight", False, False),
        ("classifier.weight", False, False),
        ("layers.0.attention.output.weight", False, False),
        ("layers.0.mlp.shared_expert.gate.weight", False, False),
        ("lm_head.bias", False, False),
    ],
)
def test_heads_and_weights_with_a_row_for_each_entry(name, head, entries):
    assert (ties.is_head(name), ties.has_entries(name)) == (head, entries)


@pytest.mark.parametrize(
    ("config", "names", "tied"),
    [
        ({"tie_word_embeddings": True}, [], True),
        ({"tie_word_embeddings": False}, [], False),
        ({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, [], False),
        ({"architectures": ["GPT2LMHeadModel"]}, ["wte.weight"], True),
        ({"architectures": ["GPT2LMHeadModel"]}, ["lm_head.weight"], False),
        ({"architectures": ["LlamaModel"]}, [], False),
        ({"architectures": 7}, [], False),
        ({}, [], False),
    ],
)
def test_the_config_says_whether_a_head_is_tied(tmp_path, config, names, tied):
    assert not ties.is_tied(Place(tmp_path), names)  # no config
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ties.is_tied(Place(tmp_path), names) is tied
    (tmp_path / "model.pth").touch()
    assert ties.is_tied(Place(tmp_path / "model.pth"), names) is tied


def test_the_embedding_is_the_first_of_the_heads_width():
    def stored(*shape):
        return Stored(shape, "F32", lambda: None)

    tensors = {
        "vision.embed_tokens.weight": stored(5, 3),
        "model.embed_tokens.weight": stored(9, 4),
        "model.layers.0.wte.weight": stored(9, 4),
    }
    assert ties.embedding(tensors, 4) == "model.embed_tokens.weight"
    assert ties.embedding(tensors, 3) == "vision.embed_tokens.weight"
    assert ties.embedding(tensors, 7) == ""
