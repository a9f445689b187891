"""Tokenizers learnt from a corpus, and the one that needs no learning: bpe, char, bytes."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt32
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from clearhead.errors import ClearheadError
from clearhead.tokenizer.base import END_OF_TEXT, Tokenizer, encoded
from clearhead.tokenizer.huggingface import (
    byte_characters,
    byte_level_json,
    piece_bytes,
    with_end_of_text,
)

_SMALLEST_BPE = 257
_LARGEST_BPE = 2**20  # the trainer takes memory for all of them beforehand


class BytesTokenizer(Tokenizer):
    """One id for each of the 256 bytes of UTF-8; the end-of-text token is 256."""

    def __init__(self) -> None:
        vocab = {character: byte for byte, character in enumerate(byte_characters())}
        pieces = [*(bytes([byte]) for byte in range(256)), END_OF_TEXT.encode()]
        super().__init__("bytes", pieces, 256, byte_level_json(vocab, [], split_words=False))

    def encode_ordinary(self, text: str) -> UInt32[np.ndarray, " N"]:
        """Return the bytes of `text`."""
        return np.frombuffer(encoded(text, "utf-8"), dtype=np.uint8).astype(np.uint32)


class CharTokenizer(Tokenizer):
    """One id for each character of a corpus, in order of their code points, then end-of-text.

    Args:
        characters: The characters, each once, in order of their ids.
    """

    def __init__(self, characters: str) -> None:
        vocab = {character: place for place, character in enumerate(characters)}
        tokenizer = HuggingFaceTokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.decoder = decoders.Fuse()
        content = with_end_of_text(tokenizer).to_str()
        pieces = [*(character.encode() for character in characters), END_OF_TEXT.encode()]
        super().__init__("char", pieces, len(characters), content)
        codes = np.frombuffer(characters.encode("utf-32-le"), dtype=np.uint32)
        self._ids = np.full(int(codes.max(initial=0)) + 2, -1, dtype=np.int64)
        self._ids[codes] = np.arange(len(codes))

    def encode_ordinary(self, text: str) -> UInt32[np.ndarray, " N"]:
        """Return the id of each character.

        Raises:
            ClearheadError: A character is not in the vocabulary; names it and its place.
        """
        codes = np.frombuffer(encoded(text, "utf-32-le"), dtype=np.uint32)
        ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
        if (ids < 0).any():
            place = int(np.argmax(ids < 0))
            raise ClearheadError(
                f"the character {text[place]!r} at place {place} is not among the "
                f"{self.vocab_size - 1} of this tokenizer's corpus; bytes or bpe take any text"
            )
        return ids.astype(np.uint32)


class BPETokenizer(Tokenizer):
    """Byte-level BPE with GPT-2's pattern and a vocabulary learnt from a corpus.

    Args:
        content: The tokenizer.json, as `byte_level_json` writes it.
    """

    def __init__(self, content: str) -> None:
        self._tokenizer = HuggingFaceTokenizer.from_str(content)
        # Nothing is special: `encode` looks for the end-of-text token itself.
        self._tokenizer.encode_special_tokens = True
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        pieces = [piece_bytes(token) for token in sorted(vocab, key=vocab.__getitem__)]
        super().__init__(f"bpe:{len(pieces)}", pieces, vocab[END_OF_TEXT], content)

    def __reduce__(self) -> tuple[Any, ...]:
        return (BPETokenizer, (self.to_json(),))

    def encode_ordinary(self, text: str) -> UInt32[np.ndarray, " N"]:
        """Return the ids of `text`, in which nothing is special."""
        encoded(text, "utf-8")
        return np.array(self._tokenizer.encode(text).ids, dtype=np.uint32)


def learn_bpe(size: int, documents: Iterable[str]) -> BPETokenizer:
    """Learn a byte-level BPE of at most `size` ids; a small corpus may not fill them.

    Raises:
        ClearheadError: `size` is smaller than the bytes and the end-of-text token, or beyond 2^20.
    """
    if size < _SMALLEST_BPE:
        raise ClearheadError(
            f"bpe:{size} is too small: the 256 bytes and the end-of-text token make {_SMALLEST_BPE}"
        )
    if size > _LARGEST_BPE:
        raise ClearheadError(f"bpe:{size} is too large: {_LARGEST_BPE} is the most there may be")
    tokenizer = HuggingFaceTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return BPETokenizer(with_end_of_text(tokenizer).to_str())


def learn_characters(documents: Iterator[str]) -> CharTokenizer:
    """Collect the characters of a corpus."""
    characters: set[str] = set()
    for text in documents:
        characters.update(text)
    return CharTokenizer("".join(sorted(characters)))
