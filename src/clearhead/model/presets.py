"""Shapes with a name."""

from dataclasses import replace

from clearhead.errors import ClearheadError, nearest
from clearhead.model.config import GPTConfig

PRESETS: dict[str, GPTConfig] = {
    "nano": GPTConfig(
        vocab_size=4096, context_length=128, d_model=192, n_heads=6, n_layers=4, dropout=0.0
    ),
    "gpt2-124m": GPTConfig(),
    "gpt2-355m": GPTConfig(d_model=1024, n_heads=16, n_layers=24),
    "gpt2-774m": GPTConfig(d_model=1280, n_heads=20, n_layers=36),
    "gpt2-1558m": GPTConfig(d_model=1600, n_heads=25, n_layers=48),
}


def preset(name: str, vocab_size: int | None = None) -> GPTConfig:
    """Return the config called `name`, for another vocabulary if one is given.

    Raises:
        ClearheadError: There is no preset of this name.
    """
    if name not in PRESETS:
        raise ClearheadError(f"no preset is called {name!r}; {nearest(name, PRESETS)}")
    config = PRESETS[name]
    return config if vocab_size is None else replace(config, vocab_size=vocab_size)
