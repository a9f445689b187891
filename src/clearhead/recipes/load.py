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
    merged: bool = False,
) -> tuple[GPT, Tokenizer]:
    """Load a model, ready to generate, and its tokenizer; of an adapter, with the model below it.

    Args:
        path: A checkpoint, a run's folder, or a folder that transformers or PEFT saved.
        which: Which of a run's checkpoints.
        device: Where the weights go; auto is the fastest device there is.
        dtype: What the weights become; as saved by default.
        merged: Whether an adapter goes into the weights, for who looks at those; quantised ones
            are refused then.

    Raises:
        ClearheadError: There is none, or it is damaged; the message names the file.
    """
    folder = checkpoint.resolve(Path(path), which)
    where = resolve_device(device)
    if not checkpoint.is_adapter(folder):
        return checkpoint.load(folder, device=where, dtype=dtype, quantized=not merged)
    from clearhead.finetune import load_adapter, merge_lora

    model, tokenizer = load_adapter(folder, device=where, dtype=dtype)
    if merged:
        merge_lora(model)
    return model, tokenizer
