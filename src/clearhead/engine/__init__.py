"""Generation: token ids in, token ids out."""

from clearhead.engine.beam import EarlyStopping, Found, Hypothesis, beam_search
from clearhead.engine.config import SEEDS, SamplingConfig, fresh_seed
from clearhead.engine.engine import Engine
from clearhead.engine.filters import keep_min_p, keep_top_k, keep_top_p, keep_typical
from clearhead.engine.generate import generate_ids
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
from clearhead.engine.speculative import Speculation
from clearhead.engine.text import FinishReason, GeneratedToken, Text, WhenFull

__all__ = [
    "SEEDS",
    "EarlyStopping",
    "Engine",
    "FinishReason",
    "Found",
    "GeneratedToken",
    "History",
    "Hypothesis",
    "LogProbabilities",
    "SamplingConfig",
    "Speculation",
    "Text",
    "WhenFull",
    "adjust",
    "beam_search",
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
