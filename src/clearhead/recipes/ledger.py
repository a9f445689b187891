"""The stages that a model went through, from its first token on: clearhead/ledger.json."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from clearhead import checkpoint
from clearhead.checkpoint.formats.huggingface import WEIGHTS
from clearhead.data import Rows
from clearhead.errors import ClearheadError
from clearhead.files import sha256_file
from clearhead.model import GPT
from clearhead.recipes.texts import read_texts
from clearhead.tokenizer import Tokenizer
from clearhead.train import Evaluation, evaluate

LEDGER = "ledger"
_log = logging.getLogger(__name__)
_TEXT_TOKENS = 16_384
_TEXT_ROWS = 8


@dataclass(frozen=True)
class Stage:
    """One run that a model went through."""

    kind: str
    """pretrain, instruct, classify or prefer."""
    started_from: dict[str, Any] | None
    """The `path` of what it began with and the `sha256` of its weights; None for random weights."""
    data: list[dict[str, Any]]
    """Each source's `name` and `sha256`, and its `rows` where it has rows."""
    config: dict[str, Any]
    """What the run was told to do."""
    before: dict[str, Any] | None = None
    """The loss on what was held out, before the first step; None where weights were random."""
    after: dict[str, Any] | None = None
    """The same afterwards; None until the run has ended."""
    text_before: dict[str, Any] | None = None
    """The loss on plain text before, to see what is forgotten; None where it was not measured."""
    text_after: dict[str, Any] | None = None
    """The same afterwards."""
    steps: int | None = None
    """Updates made when it ended."""


def read_ledger(folder: Path) -> list[Stage]:
    """Return a checkpoint's stages, the first one first; none if nothing is known of them.

    Raises:
        ClearheadError: ledger.json is damaged.
    """
    if not (folder / "clearhead" / f"{LEDGER}.json").exists():
        return []
    try:
        return [Stage(**stage) for stage in checkpoint.load_document(folder, LEDGER)["stages"]]
    except (KeyError, TypeError) as error:
        raise ClearheadError(f"{folder}: clearhead/ledger.json is damaged; delete it") from error


def as_document(stages: Sequence[Stage]) -> dict[str, Any]:
    """Return what `read_ledger` reads."""
    return {"stages": [asdict(stage) for stage in stages]}


def write_ledger(folder: Path, stages: Sequence[Stage]) -> None:
    """Replace the ledger of a checkpoint."""
    checkpoint.replace_document(folder, LEDGER, as_document(stages))


def origin(folder: Path) -> dict[str, Any]:
    """Return what a stage notes of the checkpoint that it starts from."""
    weights = folder / WEIGHTS
    digest = sha256_file(weights) if weights.exists() else None
    return {"path": str(folder.resolve()), "sha256": digest}


def measured(evaluation: Evaluation) -> dict[str, Any]:
    """Return what a stage notes of an evaluation."""
    return {**evaluation.document(), "n": evaluation.n, "unit": evaluation.unit}


def text_loss(
    model: GPT, tokenizer: Tokenizer, source: str, dtype: torch.dtype
) -> dict[str, Any] | None:
    """Measure the loss on the beginning of some text; None, and a note, where it cannot be.

    It cannot be for a classifier, which predicts no text.
    """
    if model.config.labels:
        return None
    length = min(model.config.context_length, _TEXT_TOKENS)
    try:
        rows = read_texts(source, tokenizer, n_texts=_TEXT_TOKENS // length, length=length)
    except ClearheadError as error:
        _log.info("what is forgotten is not measured: %s", error)
        return None
    batches = [
        Rows(rows[at : at + _TEXT_ROWS, :-1], rows[at : at + _TEXT_ROWS, 1:])
        for at in range(0, len(rows), _TEXT_ROWS)
    ]
    token_bytes = torch.from_numpy(tokenizer.token_bytes())
    return {"source": source, **measured(evaluate(model, batches, token_bytes, dtype))}


def finish(
    folder: Path, after: Evaluation, text_after: Mapping[str, Any] | None, steps: int
) -> None:
    """Note at a checkpoint how its last stage ended."""
    stages = read_ledger(folder)
    last = {
        **asdict(stages[-1]),
        "after": measured(after),
        "text_after": text_after,
        "steps": steps,
    }
    write_ledger(folder, [*stages[:-1], Stage(**last)])
