"""From logits to the next token: the distribution, and the choice."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from clearhead.engine.config import SamplingConfig
from clearhead.engine.filters import (
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    running_sum,
    softmax,
)
from clearhead.engine.history import History
from clearhead.errors import ClearheadError


@dataclass(frozen=True)
class LogProbabilities:
    """How likely the model held the chosen tokens, and which it held for the most likely."""

    chosen: Float[Tensor, " B"]
    """Of the tokens that were chosen."""
    best: Float[Tensor, "B k"]
    """Of the most likely tokens, most likely first."""
    best_ids: Int[Tensor, "B k"]
    """Those tokens."""


def choose(
    logits: Float[Tensor, "B V"],
    configs: Sequence[SamplingConfig],
    histories: Sequence[History],
    generators: Sequence[torch.Generator],
) -> Int[Tensor, " B"]:
    """Choose one token a row: the most likely at temperature 0, else a drawn one.

    What a row gets depends on its own logits, config, history and generator, bit for bit, and on
    nothing else in the batch: rows that need more than their most likely token are computed one by
    one, on the CPU, in double precision. A drawn token takes exactly one number from its generator.

    Args:
        logits: The model's, in any floating type.
        configs: One a row.
        histories: One a row: the text that the token continues.
        generators: One a row, on the CPU; not read at temperature 0.

    Returns:
        The tokens, on the CPU.

    Raises:
        ClearheadError: The logits are not finite, or a config names a token that they lack.
    """
    assert len(configs) == len(histories) == len(logits)
    tokens = most_likely(logits)
    wanted = [row for row, one in enumerate(configs) if one.temperature or one.adjusts]
    for row, values in _rows(logits, wanted):
        ids, p = _distribution(values, configs[row], histories[row])
        drawn = draw(p, generators[row]) if configs[row].temperature else 0
        tokens[row] = int(ids[drawn])
    return tokens


def probabilities(
    logits: Float[Tensor, "B V"], configs: Sequence[SamplingConfig], histories: Sequence[History]
) -> Float64[Tensor, "B V"]:
    """Return the distribution that `choose` draws from; at temperature 0, 1 for its choice.

    Args:
        logits: The model's, in any floating type.
        configs: One a row.
        histories: One a row.

    Returns:
        Probabilities, on the CPU.

    Raises:
        ClearheadError: As `choose`.
    """
    assert len(configs) == len(histories) == len(logits)
    most_likely(logits)
    result = np.zeros(logits.shape)  # [B, V]
    for row, values in _rows(logits, range(len(logits))):
        ids, p = _distribution(values, configs[row], histories[row])
        result[row, ids] = p
    return torch.from_numpy(result)


def draw(weights: Float64[np.ndarray, " n"], generator: torch.Generator) -> int:
    """Draw a place with probability proportional to its weight, by one number."""
    uniform = torch.rand((), generator=generator, dtype=torch.float64).item()
    sums = running_sum(weights)
    # A number is at most 1 - 2⁻⁵³, so the product is below the total even when it is rounded, and
    # the first sum above it belongs to a place with some weight.
    return int(np.searchsorted(sums, uniform * sums[-1], side="right"))


def log_probabilities(
    logits: Float[Tensor, "B V"], ids: Int[Tensor, " B"], k: int
) -> LogProbabilities:
    """Return how likely the model held the chosen tokens and the k most likely ones.

    These are of the model's own distribution, as OpenAI's are: before bias, penalties, temperature
    and filters. A row's do not depend on the others.

    Args:
        logits: The model's, in any floating type.
        ids: The chosen tokens.
        k: How many of the most likely to give; the whole vocabulary if it is smaller.

    Returns:
        Natural logarithms, in single precision, on the CPU.
    """
    scores = logits.float().log_softmax(-1)  # [B, V]
    chosen = scores.gather(1, ids.to(scores.device)[:, None])[:, 0]
    best = scores.topk(min(k, logits.shape[-1]))
    return LogProbabilities(chosen.cpu(), best.values.cpu(), best.indices.cpu())


def chosen_and_best(
    logits: Float[Tensor, "1 V"], token: int, k: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return one token's log-probability, and the k most likely tokens with theirs."""
    found = log_probabilities(logits, torch.tensor([token]), k)
    best = zip(found.best_ids[0].tolist(), found.best[0].tolist(), strict=True)
    return found.chosen.item(), tuple(best)


def adjust(
    logits: Float64[np.ndarray, " V"], config: SamplingConfig, history: History
) -> Float64[np.ndarray, " V"]:
    """Apply bias, penalties and minimum length to one row, in this order.

    Source: Keskar et al. 2019, "CTRL", section 4.1, for the repetition penalty; OpenAI's
    documentation for the presence and frequency penalties.

    Raises:
        ClearheadError: No token is left.
    """
    logits, seen = logits.copy(), history.distinct_ids
    if config.logit_bias:
        logits[list(config.logit_bias)] += list(config.logit_bias.values())
    if config.repetition_penalty != 1:
        old, penalty = logits[seen], config.repetition_penalty
        logits[seen] = np.where(old < 0, old * penalty, old / penalty)
    if config.presence_penalty or config.frequency_penalty:
        counts = history.counts
        logits[seen] -= config.presence_penalty * (counts > 0) + config.frequency_penalty * counts
    if len(history.new_ids) < config.min_new_tokens:
        logits[list(config.stop_token_ids)] = -math.inf
        if logits.max() == -math.inf:
            raise ClearheadError("no token but those of stop_token_ids has any probability")
    return logits


def filter_logits(
    logits: Float64[np.ndarray, " V"], config: SamplingConfig
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return the tokens that top-k, top-p, min-p and typical leave, and their logits.

    The filters apply one after the other, in this order, each where it is asked for; each sees the
    probabilities among the tokens that those before it left.
    """
    ids = np.arange(len(logits))
    if config.top_k > 0:
        kept = keep_top_k(logits, config.top_k)
        ids, logits = ids[kept], logits[kept]
    if config.top_p < 1:
        kept = keep_top_p(logits, config.top_p)
        ids, logits = ids[kept], logits[kept]
    if config.min_p > 0:
        kept = keep_min_p(logits, config.min_p)
        ids, logits = ids[kept], logits[kept]
    if config.typical_p < 1:
        kept = keep_typical(logits, config.typical_p)
        ids, logits = ids[kept], logits[kept]
    return ids, logits


def _distribution(
    logits: Float64[np.ndarray, " V"], config: SamplingConfig, history: History
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return the tokens that may be chosen, ascending, and their probabilities."""
    if config.adjusts:
        config.check_vocabulary(len(logits))
        logits = adjust(logits, config, history)
    if config.temperature == 0:
        return np.array([logits.argmax()]), np.ones(1)
    ids, logits = filter_logits(logits / config.temperature, config)
    return ids, softmax(logits)


def most_likely(logits: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
    """Return the most likely token of each row, and refuse logits that are no numbers."""
    values = (logits if logits.dtype == torch.float32 else logits.float()).numpy(force=True)
    best = values.argmax(-1)  # [B]
    # NaN is the greatest to NumPy.
    if not all(math.isfinite(values[row, token]) for row, token in enumerate(best.tolist())):
        raise ClearheadError(
            "the model's logits are not finite numbers (NaN or infinity); its weights are damaged "
            "or its training diverged: take an earlier checkpoint"
        )
    return torch.from_numpy(best)


def _rows(
    logits: Float[Tensor, "B V"], rows: Sequence[int]
) -> Iterator[tuple[int, Float64[np.ndarray, " V"]]]:
    """Yield these rows' numbers and logits."""
    if rows:
        values = logits.detach().cpu()
        for row in rows:
            yield row, values[row].double().numpy()
