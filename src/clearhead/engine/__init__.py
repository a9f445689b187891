"""Generation: token ids in, token ids out."""

from clearhead.engine.generate import FinishReason, GeneratedToken, generate_ids
from clearhead.engine.sampling import (
    SEEDS,
    SamplingConfig,
    choose,
    draw,
    filter_logits,
    fresh_seed,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    scale_by_temperature,
)

__all__ = [
    "SEEDS",
    "FinishReason",
    "GeneratedToken",
    "SamplingConfig",
    "choose",
    "draw",
    "filter_logits",
    "fresh_seed",
    "generate_ids",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "penalise_repetition",
    "scale_by_temperature",
]
