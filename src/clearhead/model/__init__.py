"""The one decoder: config, attention, blocks, cache."""

from clearhead.model.cache import KVCache
from clearhead.model.config import GPTConfig
from clearhead.model.gpt import GPT, Block
from clearhead.model.presets import PRESETS, preset

__all__ = ["GPT", "PRESETS", "Block", "GPTConfig", "KVCache", "preset"]
