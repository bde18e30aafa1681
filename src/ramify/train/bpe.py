"""A byte-level BPE tokenizer, trained on texts: what every demo model that reads free text begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def train_bpe(texts: Sequence[str], vocab_size: int, pieces: str, end: str) -> Any:
    """A ``tokenizers.Tokenizer`` of ``vocab_size`` entries, all bytes and the special token ``end`` among them.

    ``pieces``: the regular expression of what a merge may not cross.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
