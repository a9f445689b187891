"""Several documents in one row, each of which sees nothing of the others."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def within_documents(
    documents: Int[Tensor, "B T"], shared: Int[Tensor, " B"] | None = None
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B 1 T T"]]:
    """Return each token's place in its own document, and which tokens it may attend to.

    Args:
        documents: A number for each token; neighbours with the same number are of one document.
            Negative numbers are padding, which has no place.
        shared: How many of each row's first tokens, a document of their own, come before every
            other document of the row; none by default.
    """
    places = torch.arange(documents.shape[1], device=documents.device)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = torch.where(begins, places, 0).cummax(1).values  # [B, T]
    seen = starts[:, :, None] == starts[:, None, :]  # [B, T, T]
    positions = places - starts
    if shared is not None:
        seen = seen | (places < shared[:, None])[:, None]
        positions = positions + torch.where(starts > 0, shared[:, None], 0)
    positions = torch.where(documents < 0, 0, positions)
    return positions, (seen & (places <= places[:, None]))[:, None]
