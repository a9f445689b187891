"""How a text falls into tokens."""

from dataclasses import dataclass

from clearhead.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class TokenView:
    """One token of a text."""

    id: int
    """Its id."""
    bytes: bytes
    """The bytes that it stands for."""
    text: str
    """Those bytes as text, U+FFFD where they are part of a character."""


def show_tokens(text: str, tokenizer: Tokenizer) -> list[TokenView]:
    """Return the tokens of `text` in order; `<|endoftext|>` is the special token."""
    views = []
    for token_id in tokenizer.encode(text).tolist():
        piece = tokenizer.decode_bytes([token_id])
        views.append(TokenView(token_id, piece, piece.decode(errors="replace")))
    return views
