"""The decoder, top to bottom (Radford et al. 2019, "Language Models are Unsupervised…")."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.errors import ClearheadError
from clearhead.model.attention import Attention
from clearhead.model.cache import KVCache
from clearhead.model.config import GPTConfig
from clearhead.model.documents import within_documents
from clearhead.model.linear import Linear


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, applied to each token alone."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.d_model, 4 * config.d_model, bias=config.bias)
        self.gelu = nn.GELU(approximate="none" if config.exact_gelu else "tanh")
        self.down = Linear(4 * config.d_model, config.d_model, bias=config.bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the update of each token's residual stream."""
        return self.down(self.gelu(self.up(x)))


class Block(nn.Module):
    """Attention, then the MLP; each reads a normalised residual stream and adds to it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.d_model, config.layer_norm_epsilon, bias=config.bias)
        self.attention = Attention(config, layer)
        self.norm_2 = nn.LayerNorm(config.d_model, config.layer_norm_epsilon, bias=config.bias)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "B T"] | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the residual stream after this block."""
        x = x + self.dropout(self.attention(self.norm_1(x), cache, positions, mask))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class GPT(nn.Module):
    """A GPT-2: token and position embeddings, L blocks, a last LayerNorm, the unembedding."""

    def __init__(self, config: GPTConfig) -> None:
        """Build the model with GPT-2's initialisation, drawn from torch's global generator."""
        super().__init__()
        self.config = config
        self.token_embedding = _embedding(config.vocab_size, config.d_model)
        self.position_embedding = _embedding(config.context_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, config.layer_norm_epsilon, bias=config.bias)
        self.head = Linear(config.d_model, config.n_outputs, bias=False)
        if config.tied_head:
            self.head.weight = self.token_embedding.weight
        if not self.head.weight.is_meta:
            self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw every weight as GPT-2 does: N(0, 0.02), residual writers narrower by √(2L)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            elif name.endswith(("out_proj.weight", "down.weight")):
                parameter.normal_(std=0.02 / math.sqrt(2 * self.config.n_layers))
            else:
                parameter.normal_(std=0.02)

    def forward(
        self,
        token_ids: Int[Tensor, "B T"],
        cache: KVCache | None = None,
        lengths: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Return the logits of the token that follows each given one, or of each label.

        Args:
            token_ids: Tokens, padded on the right where rows differ in length; what stands in the
                padding changes nothing else.
            cache: Where the rows' past lies and these tokens are added; without one the tokens
                are the whole text.
            lengths: How many of each row's tokens are real, for the cache; all by default.

        Raises:
            ClearheadError: The text is longer than the context.
        """
        return self.head(self.hidden(token_ids, cache, lengths))

    def hidden(
        self,
        token_ids: Int[Tensor, "B T"],
        cache: KVCache | None = None,
        lengths: Int[Tensor, " B"] | None = None,
        documents: Int[Tensor, "B T"] | None = None,
        shared: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the normalised residual stream that the unembedding reads.

        Args:
            token_ids: As in `forward`.
            cache: As in `forward`.
            lengths: As in `forward`.
            documents: Which document of its row each token belongs to, where rows hold several:
                each begins at position 0 and sees only itself. Not with a cache.
            shared: With `documents`, how many of each row's first tokens all the others follow.

        Raises:
            ClearheadError: The text is longer than the context.
        """
        length = token_ids.shape[1]
        if cache is None:
            places, positions, mask = torch.arange(length, device=token_ids.device), None, None
            longest = length
            if documents is not None:
                places, mask = within_documents(documents, shared)
                longest = int(places.max()) + 1 if length else 0
            if longest > self.config.context_length:
                raise ClearheadError(
                    f"{longest} tokens are {longest - self.config.context_length} more than "
                    f"the context of {self.config.context_length}"
                )
        else:
            places = positions = cache.positions(length)
            mask = cache.mask(positions)
        x = self.token_embedding(token_ids) + self.position_embedding(places)  # [B, T, D]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, cache, positions, mask)
        if cache is not None:
            cache.advance(length if lengths is None else lengths)
        return self.norm(x)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.position_embedding.weight.device

    def n_parameters(self) -> int:
        """Count the weights, a tied head once."""
        return sum(parameter.numel() for parameter in self.parameters())


def _embedding(n: int, d_model: int) -> nn.Embedding:
    """Return an embedding that is not drawn yet: torch's own drawing is slow on the meta device."""
    return nn.Embedding(n, d_model, _weight=torch.empty(n, d_model))
