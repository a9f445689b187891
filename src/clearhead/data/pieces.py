"""Documents in pieces: long texts are cut where the tokenisation surely splits as well.

Source: the split pattern of GPT-2 (openai/gpt-2, `encoder.py`). In a run of blanks that a
non-blank follows, the pattern takes the last blank apart from those before it. So the text before
that blank and the text from it on are tokenised alone as they are together.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from clearhead.tokenizer import END_OF_TEXT

PIECE_CHARS = 1 << 20

# Only blanks that Python and the tokenizers' regex engines both call white space; Python's \S is
# the narrower of the two, so what it calls non-blank is non-blank to them too.
_LAST_SAFE_CUT = re.compile(r".+(?=[ \t\r\n]\S)", re.DOTALL)


class Piece(NamedTuple):
    """A part of a document, in order."""

    text: str
    last: bool
    """Whether the document ends with this piece."""


def cut_text(text: str, limit: int = PIECE_CHARS) -> Iterator[Piece]:
    """Cut one document that is in memory into pieces of at most `limit` characters.

    Each cut lies before the last blank of a run of blanks. Only where `limit` characters hold no
    such place the cut is forced, and may then split what would have been one token.
    """
    start = 0
    while len(text) - start > limit:
        stop = _cut_point(text, start, limit)
        yield Piece(text[start:stop], last=False)
        start = stop
    yield Piece(text[start:], last=True)


def split_documents(blocks: Iterable[str], limit: int = PIECE_CHARS) -> Iterator[Piece]:
    """Split a stream of text at each literal `<|endoftext|>`, and long documents into pieces.

    Args:
        blocks: The text in blocks of any size; where they end does not change the result.
        limit: The most characters in a piece; cuts are those of `cut_text`.

    Yields:
        The pieces of each document, the literal itself left out. Memory is bounded by `limit`
        and the size of a block.
    """
    remaining = iter(blocks)
    buffer, start, exhausted = "", 0, False
    while True:
        end = buffer.find(END_OF_TEXT, start)
        if end >= 0:
            known = end
        else:  # the buffer's end may be the beginning of the literal
            known = len(buffer) if exhausted else len(buffer) - len(END_OF_TEXT) + 1
        if known - start > limit:
            stop = _cut_point(buffer, start, limit)
            yield Piece(buffer[start:stop], last=False)
            start = stop
        elif end >= 0:
            yield Piece(buffer[start:end], last=True)
            start = end + len(END_OF_TEXT)
        elif exhausted:
            yield Piece(buffer[start:], last=True)
            return
        else:
            block = next(remaining, None)
            exhausted = block is None
            buffer, start = buffer[start:] + (block or ""), 0


def without_blank(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Drop the documents that are empty or a single piece of white space."""
    first = True
    for piece in pieces:
        if not (first and piece.last and not piece.text.strip()):
            yield piece
        first = piece.last


def _cut_point(text: str, start: int, limit: int) -> int:
    """Return where the piece that begins at `start` ends; `start + limit` is inside the text."""
    match = _LAST_SAFE_CUT.match(text, start, start + limit + 1)
    return match.end() if match else start + limit
