"""The shape of a GPT."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isqrt
from reprlib import repr as short
from typing import Any

from clearhead.config import from_dict
from clearhead.errors import ClearheadError, nearest

_OTHER_NAMES = {
    "context_size": "context_length",
    "emb_dim": "d_model",
    "num_of_heads": "n_heads",
    "num_of_layers": "n_layers",
    "drop_rate": "dropout",
}


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and options of a `GPT`; the defaults are GPT-2 124M's."""

    vocab_size: int = 50257
    """Number of token ids V, the end-of-text token included."""
    context_length: int = 1024
    """The most tokens that the model can see at once."""
    d_model: int = 768
    """Width D of the residual stream."""
    n_heads: int = 12
    """Attention heads H per layer; must divide d_model."""
    n_layers: int = 12
    """Number of blocks L."""
    dropout: float = 0.1
    """Probability of dropping an embedding, attention weight or residual update in training."""
    qkv_bias: bool = True
    """Whether the query, key and value projections have a bias."""
    bias: bool = True
    """Whether the output projection, the MLP and the LayerNorms have a bias."""
    tied_head: bool = True
    """Whether the unembedding is the token embedding's own matrix."""
    exact_gelu: bool = False
    """Whether the MLP computes GELU exactly, as nanoGPT does, or by GPT-2's tanh approximation."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance in LayerNorm."""
    labels: tuple[str, ...] = ()
    """What the head tells apart, in place of the next token; none for a language model."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "d_model", "n_heads", "n_layers"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value < 2**31:
                raise ClearheadError(
                    f"{name} is {short(value)}; it must be a whole number from 1 to {2**31 - 1}"
                )
        for name in ("dropout", "layer_norm_epsilon"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise ClearheadError(
                    f"{name} is {short(value)}; it must be a number from 0 to below 1"
                )
        for name in ("qkv_bias", "bias", "tied_head", "exact_gelu"):
            value = getattr(self, name)
            if type(value) is not bool:
                raise ClearheadError(f"{name} is {short(value)}; it must be true or false")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ClearheadError(
                f"labels are {short(self.labels)}; give two or more, all different"
            )
        if self.labels and self.tied_head:
            raise ClearheadError("labels need a head of their own; set tied_head to false")
        if self.d_model % self.n_heads:
            small = [n for n in range(1, isqrt(self.d_model) + 1) if self.d_model % n == 0]
            divisors = small + [self.d_model // n for n in small]
            below = max(n for n in divisors if n < self.n_heads)
            above = min((n for n in divisors if n > self.n_heads), default=None)
            advice = f"{below} or {above}" if above else f"{below}"
            raise ClearheadError(
                f"n_heads={self.n_heads} does not divide d_model={self.d_model}; "
                f"the nearest that do: {advice}"
            )

    @property
    def head_dim(self) -> int:
        """Width K of one head, d_model / n_heads."""
        return self.d_model // self.n_heads

    @property
    def n_outputs(self) -> int:
        """How many logits the head gives: one for each label, or for each token id."""
        return len(self.labels) or self.vocab_size

    def check_next_token(self) -> None:
        """Refuse a classifier where the next token is wanted.

        Raises:
            ClearheadError: The head is for labels.
        """
        if self.labels:
            named = ", ".join(label[:40] for label in self.labels[:10])
            more = ", …" if len(self.labels) > 10 else ""
            raise ClearheadError(
                f"the model tells {named}{more} apart and writes no text; use clearhead classify"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GPTConfig":
        """Build a config from a dictionary, in this class's names or the first notebook's.

        Args:
            values: Field names, or `context_size`, `emb_dim`, `num_of_heads`, `num_of_layers`,
                `drop_rate`, with their values. What is left out takes its default.

        Raises:
            ClearheadError: A key is unknown, one field is given under two names, or a value is not
                what its field wants.
        """
        known = {field.name for field in fields(cls)}
        given: dict[str, Any] = {}
        for key, value in values.items():
            name = _OTHER_NAMES.get(key, key)
            if name not in known:
                hint = nearest(key, known | set(_OTHER_NAMES))
                raise ClearheadError(f"unknown key {key!r} in the model's config; {hint}")
            if name in given:
                raise ClearheadError(f"the model's config gives {name} twice, also as {key!r}")
            given[name] = value
        return from_dict(cls, given, "the model's config")
