"""A tokenizer learnt from sources of text."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from clearhead.data import find_sources, iter_pieces
from clearhead.errors import ClearheadError
from clearhead.tokenizer import Tokenizer, build_tokenizer

_BPE_BYTES = 2**28
_MEASURED_CHARS = 2**20

_log = logging.getLogger(__name__)


def train_tokenizer(
    spec: str, sources: Sequence[str | Path], *, encoding: str = "utf-8", field: str = "text"
) -> Tokenizer:
    """Return the tokenizer that `spec` names, learnt from the sources where it learns.

    Args:
        spec: gpt2, bytes, char, bpe:SIZE, or a folder with a tokenizer.json.
        sources: What `clearhead.data.iter_pieces` takes. bpe counts pairs in the first 256 MiB
            of text, so that its memory is bounded; char reads all of it.
        encoding: How text files are encoded.
        field: The field or column that holds the text, in JSON lines and Parquet.

    Raises:
        ClearheadError: A source cannot be read, or there is no such tokenizer.
    """
    if spec == "char" or spec.startswith("bpe:"):
        _log.info("learning the tokenizer %s", spec)
    limit = _BPE_BYTES if spec.startswith("bpe:") else None
    return build_tokenizer(spec, lambda: _texts(sources, encoding, field, limit))


def bytes_per_token(
    tokenizer: Tokenizer,
    sources: Sequence[str | Path],
    *,
    encoding: str = "utf-8",
    field: str = "text",
) -> float:
    """Return how many bytes of text a token stands for, measured on the sources' first MiB.

    Args:
        tokenizer: What to measure.
        sources: What `clearhead.data.iter_pieces` takes.
        encoding: How text files are encoded.
        field: The field or column that holds the text, in JSON lines and Parquet.

    Raises:
        ClearheadError: A source cannot be read or has no text.
    """
    n_bytes = n_tokens = 0
    for text in _texts(sources, encoding, field, _MEASURED_CHARS):
        n_bytes += len(text.encode())
        n_tokens += len(tokenizer.encode_ordinary(text))
    if not n_tokens:
        raise ClearheadError(f"{sources[0]}: no text, only white space; give a source with text")
    return n_bytes / n_tokens


def _texts(
    sources: Sequence[str | Path], encoding: str, field: str, limit: int | None
) -> Iterator[str]:
    taken = 0
    for piece in iter_pieces(find_sources(sources), encoding=encoding, field=field):
        yield piece.text
        taken += len(piece.text)
        if limit is not None and taken >= limit:
            return
