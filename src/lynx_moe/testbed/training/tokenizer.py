"""The tokenizer that all families share: byte-level BPE, digits one by one, trained on our own training data."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lynx_moe.testbed.tasks import TASKS, train_item
from lynx_moe.testbed.training import corpus

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
VOCAB_SIZE = 1280
# A token never spans a word boundary and never holds two digits, so a prompt that ends in `->` and an answer that
# starts with a space give the same tokens apart as together.
PIECES = Regex(r" ?\p{L}+| ?\d| ?[^\s\p{L}\d]+|\s+(?!\S)|\s+")


def train_tokenizer(sample: Iterable[str] | None = None, vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Train on `sample`; without one on 1,500 exercises of each task and 1,500 chunks of each kind of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(PIECES, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(seed=0) if sample is None else sample, trainer)
    # A server that is sent text must start it with <bos>, as all training documents do.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def load_or_train_tokenizer(
    folder: Path, sample: Callable[[], Iterable[str] | None] = lambda: None, vocab_size: int = VOCAB_SIZE
) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`; trained on `sample()` and saved there first if there is none."""
    if not (folder / "tokenizer.json").is_file():
        train_tokenizer(sample(), vocab_size).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _sample(seed: int) -> Iterator[str]:
    rng = Random(f"tokenizer/{seed}")
    for task in TASKS:
        for _ in range(1500):
            item = train_item(task, rng)
            yield item.prompt + item.answer
    for kind in corpus.KINDS:
        yield from rng.sample(corpus.chunks(kind, held_out=False), 1500)
