"""Pieces of text of equal length, to measure a model on."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from clearhead.data import TokenDataset, is_prepared, iter_documents
from clearhead.errors import ClearheadError
from clearhead.tokenizer import Tokenizer, load_tokenizer


def read_texts(
    source: str, tokenizer: Tokenizer, *, n_texts: int, length: int
) -> Int[Tensor, "N T"]:
    """Cut the first texts of a source into pieces of equal length.

    Documents follow each other, each ended by the end-of-text token, as in training.

    Args:
        source: What `train` takes: pydocs, a file, a folder, or a prepared folder.
        tokenizer: The model's.
        n_texts: How many pieces at most.
        length: Tokens in each.

    Raises:
        ClearheadError: The source has not one piece of that length, or was prepared with another
            tokenizer.
    """
    if n_texts < 1 or length < 2:
        raise ClearheadError(f"{n_texts} texts of {length} tokens; give at least 1 of at least 2")
    wanted = n_texts * length
    if is_prepared(Path(source)):
        if load_tokenizer(Path(source)).hash != tokenizer.hash:
            raise ClearheadError(f"{source} was prepared with another tokenizer than the model's")
        dataset = TokenDataset.open(source)
        ids = torch.from_numpy(dataset.read(0, min(wanted, len(dataset))))
    else:
        stream = islice(_token_ids(source, tokenizer), wanted)
        ids = torch.tensor(list(stream), dtype=torch.int64)
    count = len(ids) // length
    if count == 0:
        raise ClearheadError(
            f"{source} has {len(ids)} tokens, and one text is {length}; give more text, or a "
            "smaller length"
        )
    return ids[: count * length].view(count, length)


def _token_ids(source: str, tokenizer: Tokenizer) -> Iterator[int]:
    for document in iter_documents([source]):
        yield from tokenizer.encode(document.text).tolist()
        yield tokenizer.end_of_text
