"""The built-in base model: a small LLaMA of Transformers, pretrained on the built-in corpus.

    python -m multilora.base [--out DIR] [--seed 0] [--steps 2000] …

prints the directory of the model. It is trained once: the directory is named by the hash of the
settings and of the corpus' code. Before it is handed out it must have learned to copy any list of
words and to recall its facts, which the tasks build upon.
"""

import itertools
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from multilora import command, record
from multilora.tasks import corpus, world

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"


@dataclass(frozen=True)
class BaseSettings:
    """Size, data and schedule of the built-in base."""

    out: str = field(default="runs/base", metadata={"help": "where bases are kept"})
    seed: int = 0
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 344
    context: int = 64
    steps: int = 2000
    batch: int = field(default=32, metadata={"help": "sequences of `context` tokens a step"})
    lr: float = 3e-3
    copies: float = field(default=0.35, metadata={"help": "share of documents that are copies"})
    threads: int = field(default=2, metadata={"help": "of the CPU; its bits depend on them"})
    least_copying: float = 0.9
    least_recall: float = 0.9


def directory(settings: BaseSettings) -> Path:
    """Where the base of these settings lies, made or not."""
    made_of = {key: value for key, value in asdict(settings).items() if key != "out"}
    return Path(settings.out) / record.fingerprint(made_of, world, corpus, sys.modules[__name__])


def ensure(settings: BaseSettings) -> Path:
    """The directory of the base model, which is trained now if it was not before."""
    path = directory(settings)
    if not path.is_dir() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"{path} is not there; make it with one process: python -m multilora.base")
    with record.threads(settings.threads):
        record.make_once(path, lambda temporary: _train(settings, temporary))
    return path


def build_tokenizer(context: int) -> Any:
    """Word-level tokenizer of the built-in vocabulary: words are split at blanks."""
    words = [PAD, BOS, EOS, UNK, *world.vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=context,
    )


def build_model(settings: BaseSettings, tokenizer: Any) -> Any:
    """The untrained model; the caller has set the seed."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.LlamaForCausalLM(config)


class _PackedCorpus(torch.utils.data.Dataset):
    """`count` sequences of `context` tokens of the corpus, cut from one stream."""

    def __init__(self, settings: BaseSettings, tokenizer: Any) -> None:
        ids = tokenizer.get_vocab()
        documents = corpus.documents(settings.seed, settings.copies)
        words = (w for text in documents for w in (BOS, *text.split(), EOS))
        size = settings.steps * settings.batch * settings.context
        stream = np.fromiter((ids[word] for word in itertools.islice(words, size)), np.int16, size)
        self.sequences = torch.from_numpy(stream.reshape(-1, settings.context))

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        sequence = self.sequences[i].long()
        return {"input_ids": sequence, "labels": sequence}


def _train(settings: BaseSettings, out: Path) -> None:
    transformers.set_seed(settings.seed)
    tokenizer = build_tokenizer(settings.context)
    model = build_model(settings, tokenizer)
    arguments = transformers.TrainingArguments(
        output_dir=str(out),
        seed=settings.seed,
        data_seed=settings.seed,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        train_sampling_strategy="sequential",
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=settings.steps // 20,
        optim="adamw_torch",
        adam_beta2=0.98,
        weight_decay=0.05,
        max_grad_norm=1.0,
        logging_steps=100,
        save_strategy="no",
        dataloader_pin_memory=False,
        report_to="none",
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=_PackedCorpus(settings, tokenizer)
    )
    trainer.train()
    scores = {"copying": copying(model, tokenizer), "recall": recall(model, tokenizer)}
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    for name, least in (("copying", settings.least_copying), ("recall", settings.least_recall)):
        if scores[name] < least:
            raise RuntimeError(
                f"base model: {name} is {scores[name]:.2f}; expected at least {least}. "
                "The tasks need it: train for more steps."
            )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    record.write_json(
        out / "run.json",
        {
            "settings": asdict(settings),
            "scores": scores,
            "losses": losses,
            "parameters": model.num_parameters(),
            "environment": record.environment(),
        },
    )


def copying(model: Any, tokenizer: Any, lists: int = 100, seed: int = 1) -> float:
    """Share of words of random lists that the model repeats right, in [0, 1]."""
    rng = random.Random(f"copying/{seed}")
    vocabulary = world.vocabulary()
    drawn = [" ".join(rng.choices(vocabulary, k=8)) for _ in range(lists)]
    return _share_right(model, tokenizer, [(f"list {words} again", words) for words in drawn])


def recall(model: Any, tokenizer: Any) -> float:
    """Share of the corpus' facts, in both forms, whose value the model knows, in [0, 1]."""
    statements = [
        corpus.fact_statement(fact, form) for fact in corpus.KNOWN_FACTS for form in (0, 1)
    ]
    pairs = [tuple(statement.rsplit(" ", 1)) for statement in statements]
    return _share_right(model, tokenizer, [(prompt, value) for prompt, value in pairs])


@torch.no_grad()
def _share_right(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> float:
    """Share of the answers' words that are the most likely ones, given all before them."""
    model.eval()
    right = total = 0
    for prompt, answer in pairs:
        ids = tokenizer(f"{BOS} {prompt} {answer}", return_tensors="pt").input_ids
        ids = ids.to(model.device)
        length = len(answer.split())
        guess = model(ids).logits[0, -length - 1 : -1].argmax(-1)
        right += int((guess == ids[0, -length:]).sum())
        total += length
    return right / total


def main(argv: Sequence[str] | None = None) -> int:
    def work() -> str:
        return str(ensure(command.settings_from(BaseSettings, __doc__, argv)))

    return command.run("multilora.base", work)


if __name__ == "__main__":
    sys.exit(main())
