"""How prompts are read, and what a model is switched to meanwhile."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clearhead.model import GPT, KVCache

CHUNK = 128
"""A text is read in pieces of this many tokens, so that texts with the same beginning compute it by
the same operations: what one of them computed is, bit for bit, what the other would."""


def read(model: GPT, ids: Sequence[int], cache: KVCache, start: int = 0) -> Float[Tensor, "1 V"]:
    """Read the tokens of one text from `start` on, one at least; return what follows the last.

    Args:
        model: What reads.
        ids: The whole text.
        cache: At the text's slot, which holds its first `start` tokens.
        start: Where to begin.
    """
    for at in range(start, len(ids), CHUNK):
        piece = torch.tensor([ids[at : at + CHUNK]], device=model.device)
        hidden = model.hidden(piece, cache)  # [1, T, D]
    return model.head(hidden[:, -1])


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Switch dropout off, and each module that was training back on afterwards."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
