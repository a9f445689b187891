"""How likely a model finds continuations of texts: the beginning of a question is computed once."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clearhead.model import GPT
from clearhead.model.linear import linear

_LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Continuation:
    """A text and what follows it, in tokens."""

    context: tuple[int, ...]
    """What is given; at least one token."""
    ids: tuple[int, ...]
    """What follows; at least one token."""


@dataclass(frozen=True)
class Score:
    """How likely a continuation is."""

    log_probability: float
    """Of all its tokens, in nats."""
    n_tokens: int
    """How many these are; of a continuation longer than the context, its last ones."""
    greedy: bool
    """Whether each of them is the likeliest next token."""


@dataclass(frozen=True)
class _Row:
    """Continuations of one context, to be computed together."""

    context: tuple[int, ...]
    members: tuple[tuple[int, tuple[int, ...]], ...]
    """The number and the tokens of each."""

    @property
    def length(self) -> int:
        return len(self.context) + sum(len(ids) - 1 for _, ids in self.members)


@torch.no_grad()
def score_continuations(
    model: GPT,
    continuations: Sequence[Continuation],
    *,
    batch_tokens: int = 4096,
    on_done: Callable[[int], None] | None = None,
) -> list[Score]:
    """Return how likely each continuation is after its context.

    Continuations of one context share a row, in which each sees the context and itself. Rows of
    like length share a batch. A context that is too long with its continuation loses its beginning,
    as in lm-eval.

    Args:
        model: The model.
        continuations: What to score, in any order.
        batch_tokens: The most tokens of a batch, padding included; a longer row is a batch alone.
        on_done: Called with the number of continuations scored so far.
    """
    was_training = model.training
    model.eval()
    scores: dict[int, Score] = {}
    rows = sorted(_rows(model.config.context_length, continuations), key=lambda row: -row.length)
    for batch in _batches(rows, batch_tokens):
        scores |= _score(model, batch)
        if on_done is not None:
            on_done(len(scores))
    model.train(was_training)
    return [scores[number] for number in range(len(continuations))]


def _rows(context_length: int, continuations: Sequence[Continuation]) -> Iterator[_Row]:
    """Put continuations of the same tokens of context together."""
    by_context: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    for number, one in enumerate(continuations):
        if not one.context or not one.ids:
            raise ValueError("a continuation and its context have at least one token each")
        whole = (one.context + one.ids)[-(context_length + 1) :]
        given = max(1, len(whole) - len(one.ids))
        by_context[whole[:given]].append((number, whole[given:]))
    for context, members in by_context.items():
        yield _Row(context, tuple(members))


def _batches(rows: Sequence[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    for row in rows:  # the longest first
        if batch and (len(batch) + 1) * batch[0].length > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _score(model: GPT, batch: Sequence[_Row]) -> dict[int, Score]:
    """Run some rows through the model."""
    width = max(row.length for row in batch)
    inputs = torch.zeros(len(batch), width, dtype=torch.int64)  # [B, T]
    documents = torch.full_like(inputs, -1)
    read: list[tuple[int, int]] = []  # the row and the place that each token is predicted from
    wanted: list[int] = []
    sizes: list[tuple[int, int]] = []
    for at, row in enumerate(batch):
        start = len(row.context)
        inputs[at, :start] = torch.tensor(row.context)
        documents[at, :start] = 0
        for document, (number, ids) in enumerate(row.members, start=1):
            stop = start + len(ids) - 1
            inputs[at, start:stop] = torch.tensor(ids[:-1])
            documents[at, start:stop] = document
            read += [(at, len(row.context) - 1), *((at, place) for place in range(start, stop))]
            wanted += ids
            sizes.append((number, len(ids)))
            start = stop
    shared = torch.tensor([len(row.context) for row in batch])
    device = model.device
    hidden = model.hidden(
        inputs.to(device), documents=documents.to(device), shared=shared.to(device)
    )
    rows, places = (torch.tensor(column) for column in zip(*read, strict=True))
    log_probabilities, likeliest = judged(
        model, hidden[rows.to(device), places.to(device)], torch.tensor(wanted).to(device)
    )
    found = {}
    start = 0
    for number, length in sizes:
        part = slice(start, start + length)
        total = float(log_probabilities[part].double().sum())
        found[number] = Score(total, length, bool(likeliest[part].all()))
        start += length
    return found


def judged(
    model: GPT, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Return the targets' log-probabilities, and whether each is the likeliest token."""
    found, likeliest = [], []
    size = max(1, _LOGITS_AT_ONCE // len(model.head.weight))
    for start in range(0, len(hidden), size):
        logits = linear(hidden[start : start + size], model.head.weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # [n, V]
        some = targets[start : start + size, None]
        chosen = logits.gather(1, some)
        found.append((chosen[:, 0] - logits.logsumexp(-1)).cpu())
        likeliest.append((logits.argmax(-1) == some[:, 0]).cpu())
    return torch.cat(found), torch.cat(likeliest)
