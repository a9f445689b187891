"""Generation: token ids in, token ids out."""

from clearhead.engine.config import SEEDS, SamplingConfig, fresh_seed
from clearhead.engine.filters import keep_min_p, keep_top_k, keep_top_p, keep_typical
from clearhead.engine.generate import FinishReason, GeneratedToken, generate_ids
from clearhead.engine.history import History
from clearhead.engine.sampling import (
    LogProbabilities,
    adjust,
    choose,
    draw,
    filter_logits,
    log_probabilities,
    probabilities,
)

__all__ = [
    "SEEDS",
    "FinishReason",
    "GeneratedToken",
    "History",
    "LogProbabilities",
    "SamplingConfig",
    "adjust",
    "choose",
    "draw",
    "filter_logits",
    "fresh_seed",
    "generate_ids",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "keep_typical",
    "log_probabilities",
    "probabilities",
]
