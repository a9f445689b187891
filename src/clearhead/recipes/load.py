"""A trained model, from wherever it lies."""

from pathlib import Path
from typing import Literal

import torch

from clearhead import checkpoint
from clearhead.model import GPT
from clearhead.tokenizer import Tokenizer
from clearhead.train import resolve_device


def load(
    path: str | Path,
    *,
    which: Literal["newest", "best"] = "newest",
    device: str = "auto",
    dtype: torch.dtype | None = None,
) -> tuple[GPT, Tokenizer]:
    """Load a model, ready to generate, and its tokenizer.

    Args:
        path: A checkpoint, a run's folder, or a folder that transformers saved.
        which: Which of a run's checkpoints.
        device: Where the weights go; auto is the fastest device there is.
        dtype: What the weights become; as saved by default.

    Raises:
        ClearheadError: There is none, or it is damaged; the message names the file.
    """
    folder = checkpoint.resolve(Path(path), which)
    return checkpoint.load(folder, device=resolve_device(device), dtype=dtype)
