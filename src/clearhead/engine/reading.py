"""How prompts are read."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.model import KVCache
from clearhead.native import Backend

CHUNK = 128
"""A text is read in pieces of this many tokens, so that texts with the same beginning compute it by
the same operations: what one of them computed is, bit for bit, what the other would."""


def read(
    reader: Backend, ids: Sequence[int], cache: KVCache, start: int = 0
) -> Float[Tensor, "1 V"]:
    """Read the tokens of one text from `start` on, one at least; return what follows the last.

    Args:
        reader: What computes them.
        ids: The whole text.
        cache: At the text's slot, which holds its first `start` tokens.
        start: Where to begin.
    """
    for at in range(start, len(ids), CHUNK):
        logits = reader.read(torch.tensor([ids[at : at + CHUNK]]), cache)  # [1, V]
    return logits
