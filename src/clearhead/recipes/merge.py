"""A whole checkpoint from an adapter and the model that it belongs to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from clearhead import checkpoint
from clearhead.checkpoint.certificate import TOLERANCES, Agreement, compare_logits, sequences
from clearhead.checkpoint.peers import LAST, Batches, Logits
from clearhead.errors import ClearheadError
from clearhead.finetune import load_adapter, merge_lora
from clearhead.model import GPT
from clearhead.recipes.ledger import LEDGER, as_document, read_ledger


@dataclass(frozen=True)
class Merge:
    """What a merge made."""

    path: Path
    """The checkpoint."""
    adapter: Path
    """The adapter's folder."""
    agreement: Agreement
    """How the merged model agrees with the live adapter on a fixed set of token sequences."""


def merge_checkpoint(
    path: Path,
    out: Path,
    *,
    which: Literal["newest", "best"] = "newest",
    base: Path | None = None,
) -> Merge:
    """Add an adapter to the weights of its model, in float32, and save that as a whole checkpoint.

    Args:
        path: The adapter's folder, of our making or PEFT's, or the run that learnt it.
        out: The checkpoint to make; it must not exist.
        which: Which of a run's checkpoints.
        base: The model's folder, where it is no longer the one that the adapter names.

    Raises:
        ClearheadError: It is no adapter, a file is damaged, logits are not finite, or one of the
            merged model differs by more than 1e-4 of the largest (or of 1). Nothing is written
            then.
    """
    folder = checkpoint.resolve(path, which)
    if not checkpoint.is_adapter(folder):
        raise ClearheadError(f"{folder} is a whole model already; there is no adapter to merge")
    if base is not None:
        base = checkpoint.resolve(base)
    model, tokenizer = load_adapter(folder, base=base, dtype=torch.float32)
    batches = sequences(model.config, tokenizer.end_of_text)
    live = _logits(model, batches)
    merge_lora(model)
    merged = _logits(model, batches)
    if not all(logits.isfinite().all() for logits in [*live, *merged]):
        raise ClearheadError(
            f"{folder}: its logits are infinite or not a number; there is nothing to merge"
        )
    names = ("the live adapter", "the merged weights")
    agreement = compare_logits(
        batches,
        live,
        merged,
        names,
        at=LAST,
        independent=False,
        of_labels=bool(model.config.labels),
    )
    difference = agreement.max_abs_logit_difference
    limit = TOLERANCES["f32"].logit * max(1.0, agreement.largest_logit)
    if difference > limit:
        raise ClearheadError(
            f"{folder}: merged, a logit differs by {difference:.2g}, more than the {limit:.2g} "
            "that rounding explains; use the adapter as it is"
        )
    stages = read_ledger(folder)
    documents = {LEDGER: as_document(stages)} if stages else {}
    checkpoint.save(out, model, tokenizer, documents=documents)
    return Merge(out, folder, agreement)


@torch.no_grad()
def _logits(model: GPT, batches: Batches) -> Logits:
    return [model.head(model.hidden(tokens)[:, LAST]) for tokens in batches]
