"""Several documents in one row, each of which sees nothing of the others."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def within_documents(
    documents: Int[Tensor, "B T"],
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B 1 T T"]]:
    """Return each token's place in its own document, and which tokens it may attend to.

    Args:
        documents: A number for each token; neighbours with the same number are of one document.
    """
    places = torch.arange(documents.shape[1], device=documents.device)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = torch.where(begins, places, 0).cummax(1).values  # [B, T]
    same = starts[:, :, None] == starts[:, None, :]  # [B, T, T]
    return places - starts, (same & (places <= places[:, None]))[:, None]
