"""A tokenizer learnt from sources of text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from clearhead.data import find_sources, iter_pieces
from clearhead.tokenizer import Tokenizer, build_tokenizer

_BPE_BYTES = 2**28


def train_tokenizer(
    spec: str, sources: Sequence[str | Path], *, encoding: str = "utf-8"
) -> Tokenizer:
    """Return the tokenizer that `spec` names, learnt from the sources where it learns.

    Args:
        spec: gpt2, bytes, char, bpe:SIZE, or a folder with a tokenizer.json.
        sources: What `clearhead.data.iter_pieces` takes. bpe counts pairs in the first 256 MiB
            of text, so that its memory is bounded; char reads all of it.
        encoding: How text files are encoded.

    Raises:
        ClearheadError: A source cannot be read, or there is no such tokenizer.
    """
    limit = _BPE_BYTES if spec.startswith("bpe:") else None
    return build_tokenizer(spec, lambda: _texts(sources, encoding, limit))


def _texts(sources: Sequence[str | Path], encoding: str, limit: int | None) -> Iterator[str]:
    taken = 0
    for piece in iter_pieces(find_sources(sources), encoding=encoding):
        yield piece.text
        taken += len(piece.text)
        if limit is not None and taken >= limit:
            return
