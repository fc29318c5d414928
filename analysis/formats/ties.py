"""Find the head of a language model, and the embedding that it is tied to.

A tied head shares its memory with the embedding, so that a file holds the embedding alone. After a
training that unties them, the head's W0 is that embedding.
"""

import re
from collections.abc import Collection, Mapping

from analysis.files.place import Place
from analysis.files.tensors import Stored, read_json

CONFIG = "config.json"
# Heads whose rows are the entries of the vocabulary, by the names that Transformers gives them.
HEAD = re.compile(
    r"(.*\.)?(lm_head|embed_out|proj_out|output_projection|lm_head\.decoder|predictions\.decoder)"
    r"\.weight|output\.weight"
)
# Embeddings of the vocabulary; the first name that a model has is the one that its head shares.
EMBEDDINGS = ("shared", "embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings")
# Further weights with one row for each entry: positions and types of tokens.
ROWS = re.compile(r"(.*\.)?(wpe|[^.]*embed[^.]*|tok_embeddings)\.weight")
# Classes of Transformers with a head; one whose file holds no head is tied.
WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")


def is_head(name: str) -> bool:
    """Return whether a tensor of that name is the head of a language model.

    >>> is_head("lm_head.weight"), is_head("model.layers.0.self_attn.output.weight")
    (True, False)
    """
    return bool(HEAD.fullmatch(name))


def has_entries(name: str) -> bool:
    """Return whether the rows of a tensor of that name are entries, to which others can be added.

    >>> has_entries("model.embed_tokens.weight"), has_entries("score.weight")
    (True, False)
    """
    return (
        is_head(name)
        or name.rpartition(".weight")[0].endswith(EMBEDDINGS)
        or bool(ROWS.fullmatch(name))
    )


def embedding(tensors: Mapping[str, Stored], width: int | None = None) -> str:
    """Return the name of the vocabulary's embedding of that width, or of any; "" if none."""
    for last in EMBEDDINGS:
        for name, tensor in tensors.items():
            is_matrix = len(tensor.shape) == 2 and width in (None, tensor.shape[1])
            if is_matrix and re.fullmatch(rf"(.*\.)?{last}\.weight", name):
                return name
    return ""


def shared(name: str, tensors: Collection[str]) -> str:
    """Return the embedding that an encoder and a decoder share under one name; "" if none.

    >>> shared("encoder.embed_tokens.weight", ["shared.weight"])
    'shared.weight'
    """
    other = re.sub(r"(encoder|decoder)\.embed_tokens\.weight$", "shared.weight", name)
    return other if other != name and other in tensors else ""


def is_tied(place: Place, names: Collection[str]) -> bool:
    """Return whether the head of the model at `place` is its embedding.

    names: those of its tensors. The config decides; where it says nothing, a model of a class with
    a head whose file holds none is tied.
    """
    directory = place.path if place.path.is_dir() else place.path.parent
    if not (directory / CONFIG).is_file():
        return False
    config = place.json(CONFIG) if directory == place.path else read_json(directory / CONFIG)
    text = config.get("text_config")
    for part in (text if isinstance(text, dict) else {}, config):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return part["tie_word_embeddings"]
    classes = config.get("architectures")
    known = isinstance(classes, list) and any(str(c).endswith(WITH_HEAD) for c in classes)
    return known and not any(map(is_head, names))
