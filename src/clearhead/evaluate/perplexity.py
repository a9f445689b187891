"""The loss on a long text, each token with as much before it as fits."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64

from clearhead.data import IGNORED, Rows
from clearhead.errors import ClearheadError
from clearhead.evaluate.choices import judged
from clearhead.evaluate.intervals import Figure, bootstrap
from clearhead.model import GPT


@dataclass(frozen=True)
class Perplexity:
    """How surprised a model is by a text; every figure with its 95 % interval over windows."""

    nats_per_token: Figure
    """The mean loss."""
    per_token: Figure
    """Its exponential."""
    per_word: Figure
    """The same by words, that is by runs of what is not white space."""
    bits_per_byte: Figure
    """The summed loss in bits by bytes of UTF-8."""
    n_tokens: int
    """How many tokens were predicted: all but the first."""
    stride: int
    """By how many tokens the window moved."""


@torch.no_grad()
def perplexity(
    model: GPT,
    ids: Int64[np.ndarray, " N"],
    *,
    n_words: int,
    n_bytes: int,
    stride: int | None = None,
    batch_tokens: int = 4096,
    seed: int = 0,
    on_done: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Slide a window of the model's context over a text; each token is predicted once.

    The first window predicts all its tokens, each later one those that the one before did not see.

    Args:
        model: The model.
        ids: The text's tokens.
        n_words: How many words the text has.
        n_bytes: How many bytes.
        stride: By how many tokens the window moves; half of the context by default. The whole
            context is the fastest, and leaves the tokens at a window's beginning with little
            before them.
        batch_tokens: The most tokens of a batch.
        seed: For the bootstrap.
        on_done: Called with the tokens predicted so far, and in all.

    Raises:
        ClearheadError: The text is shorter than two tokens, or the stride is out of range.
    """
    context_length = model.config.context_length
    stride = stride or max(1, context_length // 2)
    if not 1 <= stride <= context_length:
        raise ClearheadError(
            f"stride is {stride}; it must be from 1 to the context of {context_length}"
        )
    if len(ids) < 2:
        raise ClearheadError(f"the text has {len(ids)} tokens, and predicting needs at least 2")
    was_training = model.training
    model.eval()
    sums: list[float] = []
    counts: list[int] = []
    windows = _windows(ids, context_length, stride)
    size = max(1, batch_tokens // context_length)
    for start in range(0, len(windows), size):
        rows = _rows(ids, windows[start : start + size])
        inputs, targets = rows.inputs.to(model.device), rows.targets.to(model.device)
        learnt = targets != IGNORED
        hidden = model.hidden(inputs)[learnt]
        found, _ = judged(model, hidden, targets[learnt])
        row = learnt.nonzero()[:, 0].cpu()
        sums += (-found.double().new_zeros(len(inputs)).index_add(0, row, found.double())).tolist()
        counts += learnt.sum(1).tolist()
        if on_done is not None:
            on_done(sum(counts), len(ids) - 1)
    model.train(was_training)
    table = np.stack([np.array(sums), np.array(counts)], axis=1)
    per_word, per_byte = (len(ids) - 1) / max(1, n_words), (len(ids) - 1) / max(1, n_bytes)

    def mean(means: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, " m"]:
        found: Float[np.ndarray, " m"] = means[:, 0] / means[:, 1]
        return found

    return Perplexity(
        bootstrap(table, mean, seed=seed),
        bootstrap(table, lambda means: np.exp(mean(means)), seed=seed),
        bootstrap(table, lambda means: np.exp(mean(means) * per_word), seed=seed),
        bootstrap(table, lambda means: mean(means) * per_byte / math.log(2), seed=seed),
        sum(counts),
        stride,
    )


def _windows(
    ids: Int64[np.ndarray, " N"], context_length: int, stride: int
) -> list[tuple[int, int, int]]:
    """Return where each window of inputs begins and ends, and its first target that is new."""
    windows = []
    done = 0  # targets 1 … done are predicted
    start = 0
    while done < len(ids) - 1:
        stop = min(start + context_length, len(ids) - 1)
        windows.append((start, stop, done + 1))
        done, start = stop, start + stride
    return windows


def _rows(ids: Int64[np.ndarray, " N"], windows: list[tuple[int, int, int]]) -> Rows:
    width = max(stop - start for start, stop, _ in windows)
    inputs = torch.zeros(len(windows), width, dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORED)
    for row, (start, stop, first) in enumerate(windows):
        inputs[row, : stop - start] = torch.from_numpy(ids[start:stop])
        targets[row, first - 1 - start : stop - start] = torch.from_numpy(ids[first : stop + 1])
    return Rows(inputs, targets)
