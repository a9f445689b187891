"""Corpora: sources, their preparation into shards of tokens, and the order of training."""

from importlib import import_module
from typing import TYPE_CHECKING

from clearhead.data.manifest import Manifest, describe, is_prepared
from clearhead.data.prepare import prepare
from clearhead.data.sources import PYDOCS, Document, find_sources, iter_documents, iter_pieces

if TYPE_CHECKING:
    from clearhead.data.batches import Batches, windows
    from clearhead.data.rows import IGNORED, Rows
    from clearhead.data.shards import TokenDataset, TokenSpan, split

__all__ = [
    "IGNORED",
    "PYDOCS",
    "Batches",
    "Document",
    "Manifest",
    "Rows",
    "TokenDataset",
    "TokenSpan",
    "describe",
    "find_sources",
    "is_prepared",
    "iter_documents",
    "iter_pieces",
    "prepare",
    "split",
    "windows",
]

# What trains on a corpus needs torch; what prepares one, its workers first, starts without.
_LATE = {
    "IGNORED": "rows",
    "Batches": "batches",
    "Rows": "rows",
    "TokenDataset": "shards",
    "TokenSpan": "shards",
    "split": "shards",
    "windows": "batches",
}


def __getattr__(name: str) -> object:
    if name in _LATE:
        return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
