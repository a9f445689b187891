"""A prepared folder as one long row of tokens, read from the disk as needed."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt64

from clearhead.data.manifest import DOCUMENTS, Manifest, describe
from clearhead.errors import ClearheadError
from clearhead.files import sha256_file


class TokenDataset:
    """The tokens of a prepared folder, memory-mapped; made by `TokenDataset.open`."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        shards: list[np.ndarray],
        document_starts: UInt64[np.ndarray, " documents"],
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.document_starts = document_starts
        """Position of the first token of each document."""
        self._shards = shards

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> "TokenDataset":
        """Map the files of a prepared folder.

        Args:
            folder: What `prepare` wrote.
            verify: Whether to read all files once and compare their checksums; sizes are always
                compared.

        Raises:
            ClearheadError: The folder is not prepared, or a file of it is missing or damaged.
        """
        folder = Path(folder)
        manifest = describe(folder)
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        shards = [
            _map(folder / shard.name, dtype, shard.tokens, shard.sha256 if verify else None)
            for shard in manifest.shards
        ]
        digest = manifest.documents_sha256 if verify else None
        starts = _map(folder / DOCUMENTS, np.dtype("<u8"), manifest.documents, digest)
        if verify:
            _check_starts(starts, manifest.tokens, folder / DOCUMENTS)
        return cls(folder, manifest, shards, starts)

    def __len__(self) -> int:
        """Count the tokens, end-of-text tokens with them."""
        return self.manifest.tokens

    def read(self, start: int, length: int) -> Int64[np.ndarray, " length"]:
        """Read `length` tokens from position `start` on.

        Raises:
            IndexError: The range is not inside the data set.
            ClearheadError: A token is outside the vocabulary, so the shard is damaged.
        """
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of {len(self)}")
        tokens = np.empty(length, dtype=np.int64)
        done = 0
        while done < length:
            number, within = divmod(start + done, self.manifest.shard_tokens)
            part = self._shards[number][within : within + length - done]
            tokens[done : done + len(part)] = part
            done += len(part)
        if length and tokens.max() >= self.manifest.vocab_size:
            self._refuse(start, tokens)
        return tokens

    def _refuse(self, start: int, tokens: Int64[np.ndarray, " length"]) -> None:
        offset = int(np.argmax(tokens >= self.manifest.vocab_size))
        number, within = divmod(start + offset, self.manifest.shard_tokens)
        raise ClearheadError(
            f"{self.folder / self.manifest.shards[number].name}: token {within} is "
            f"{tokens[offset]}, outside the vocabulary of {self.manifest.vocab_size}; "
            "prepare the corpus again"
        )


@dataclass(frozen=True)
class TokenSpan:
    """The tokens of a data set from `start` up to `stop`."""

    dataset: TokenDataset
    start: int
    stop: int
    cut: Literal["document", "token"]
    """Whether it was split off between two documents or inside one."""

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, start: int, length: int) -> Int64[np.ndarray, " length"]:
        """Read `length` tokens from position `start` of this span on.

        Raises:
            IndexError: The range is not inside the span.
            ClearheadError: A token is outside the vocabulary.
        """
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} to {start + length} of {len(self)}")
        return self.dataset.read(self.start + start, length)


def split(dataset: TokenDataset, val_fraction: float) -> tuple[TokenSpan, TokenSpan]:
    """Split a data set into a part to train on and the held-out end.

    The held-out part is the fewest last documents that have at least `val_fraction` of the tokens
    together. Where that would be more than half of the tokens, or three times what was asked for,
    as with a corpus of one document, the cut is inside a document, at `1 - val_fraction`.

    Args:
        dataset: What to split.
        val_fraction: The share to hold out, above 0 and below 1.

    Raises:
        ClearheadError: The fraction is out of range, or a part would be empty.
    """
    total = len(dataset)
    if not 0 < val_fraction < 1:
        raise ClearheadError(f"val_fraction is {val_fraction}: give one above 0 and below 1")
    latest = total - math.ceil(total * val_fraction)
    document = int(np.searchsorted(dataset.document_starts, latest, side="right")) - 1
    at = int(dataset.document_starts[document])
    cut: Literal["document", "token"] = "document"
    if total - at > max(total * val_fraction, min(total / 2, 3 * total * val_fraction)):
        at, cut = int(total * (1 - val_fraction)), "token"
    if not 0 < at < total:
        raise ClearheadError(
            f"{dataset.folder}: {total} tokens are too few to hold out {val_fraction} of them; "
            "give more text"
        )
    return TokenSpan(dataset, 0, at, cut), TokenSpan(dataset, at, total, cut)


def _map(path: Path, dtype: np.dtype, count: int, sha256: str | None) -> np.ndarray:
    """Map a file of `count` numbers, after its size and (if given) its checksum are compared."""
    try:
        size = path.stat().st_size
        if size != count * dtype.itemsize:
            raise ClearheadError(
                f"{path}: damaged: {size} bytes where the manifest says "
                f"{count * dtype.itemsize}; prepare the corpus again"
            )
        if sha256 is not None and sha256_file(path) != sha256:
            raise ClearheadError(
                f"{path}: damaged: its checksum differs from the manifest's; "
                "prepare the corpus again"
            )
        # A plain array over the map: slices of np.memmap cost several times as much.
        return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))
    except OSError as error:
        raise ClearheadError(
            f"{path}: cannot be read ({error.strerror or error}); prepare the corpus again"
        ) from error


def _check_starts(starts: UInt64[np.ndarray, " documents"], tokens: int, path: Path) -> None:
    rising = bool(np.all(starts[1:] > starts[:-1]))
    if starts[0] != 0 or starts[-1] >= tokens or not rising:
        raise ClearheadError(f"{path}: damaged: not rising positions; prepare the corpus again")
