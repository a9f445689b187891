"""Text to tensors of token ids and back, and a look at the pieces in between."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from clearhead.tokenizer.base import Tokenizer


def text_to_token_ids(text: str, tokenizer: Tokenizer) -> Int[Tensor, "1 N"]:
    """Return the ids of `text` as a batch of one row; `<|endoftext|>` is the special token."""
    return torch.from_numpy(tokenizer.encode(text).astype("int64"))[None]


def token_ids_to_text(
    ids: Int[Tensor, "1 N"] | Int[Tensor, " N"] | Sequence[int], tokenizer: Tokenizer
) -> str:
    """Return the text of ids, one row or none around them.

    Raises:
        ClearheadError: An id is outside the vocabulary.
    """
    return tokenizer.decode(torch.as_tensor(ids).flatten().tolist())
