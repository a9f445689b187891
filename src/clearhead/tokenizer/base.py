"""What every tokenizer is and does."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Int64, UInt32

from clearhead.errors import ClearheadError

END_OF_TEXT = "<|endoftext|>"
"""The special token that stands between documents."""


def encoded(text: str, encoding: str) -> bytes:
    """Return the bytes of `text` in a Unicode encoding.

    Raises:
        ClearheadError: It has half of a surrogate pair, which no encoding has bytes for.
    """
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise ClearheadError(
            f"the text has {text[error.start]!r} at place {error.start}, half of a surrogate pair "
            "and no character; leave it out, or read the text with errors='replace'"
        ) from error


class Tokenizer(ABC):
    """Turns text into token ids and back, without loss.

    Args:
        name: How the tokenizer is asked for: gpt2, char, bytes or bpe:SIZE.
        pieces: The bytes of text that each id stands for; the end-of-text token's literal.
        end_of_text: The id of the end-of-text token.
        json: The content of its tokenizer.json.
    """

    def __init__(self, name: str, pieces: Sequence[bytes], end_of_text: int, json: str) -> None:
        self.name = name
        self.end_of_text = end_of_text
        self.chat_template: str | None = None
        """How conversations become text, in Jinja, for a model that learnt to answer."""
        self._pieces = list(pieces)
        self._json = json

    @property
    def vocab_size(self) -> int:
        """Number of ids V, the end-of-text token included."""
        return len(self._pieces)

    def to_json(self) -> str:
        """Return the content of tokenizer.json, which `transformers.AutoTokenizer` reads."""
        return self._json

    @cached_property
    def hash(self) -> str:
        """SHA-256 of `to_json()` in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def agrees_with(self, other: "Tokenizer") -> bool:
        """Say whether each id stands for the same bytes in both, and ends a text in both."""
        return self._pieces == other._pieces and self.end_of_text == other.end_of_text

    @abstractmethod
    def encode_ordinary(self, text: str) -> UInt32[np.ndarray, " N"]:
        """Return the ids of `text`, in which nothing is special.

        Raises:
            ClearheadError: The vocabulary lacks a character (char only), or the text has half of a
                surrogate pair.
        """

    def encode(self, text: str) -> UInt32[np.ndarray, " N"]:
        """Return the ids of `text`; `<|endoftext|>` in it is the special token.

        Raises:
            ClearheadError: The vocabulary lacks a character (char only), or the text has half of a
                surrogate pair.
        """
        first, *others = text.split(END_OF_TEXT)
        ids = [self.encode_ordinary(first)]
        for part in others:
            ids += [np.array([self.end_of_text], dtype=np.uint32), self.encode_ordinary(part)]
        return np.concatenate(ids)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ClearheadError: An id is outside the vocabulary.
        """
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Return the bytes of the text of `ids`; see `decode`."""
        plain = [int(i) for i in ids]
        for place, i in enumerate(plain):
            if not 0 <= i < self.vocab_size:
                raise ClearheadError(
                    f"token id {i} at place {place} is outside the vocabulary of {self.vocab_size}"
                )
        return b"".join([self._pieces[i] for i in plain])

    def token_bytes(self) -> Int64[np.ndarray, " V"]:
        """Return how many bytes of text each id stands for, 0 for the end-of-text token."""
        lengths = np.array([len(piece) for piece in self._pieces], dtype=np.int64)
        lengths[self.end_of_text] = 0
        return lengths
