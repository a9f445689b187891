"""The one decoder: config, attention, blocks, cache."""

from clearhead.model.cache import KVCache
from clearhead.model.config import GPTConfig
from clearhead.model.gpt import GPT
from clearhead.model.presets import PRESETS, preset

__all__ = ["GPT", "PRESETS", "GPTConfig", "KVCache", "preset"]
