"""How the last LayerNorm and the unembedding read the residual stream.

With γ, β and ε the LayerNorm's, `w = γ ⊙ W_U[v]`, `w̃ = w − mean(w)` and `σ = √(var(x) + ε)`, the
logit of token v is linear in the residual stream x but for σ:

    logit = ⟨x, w̃⟩ / σ + ⟨β, W_U[v]⟩
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.model import GPT


def check_token(model: GPT, token: int) -> int:
    """Return a token of the model's vocabulary.

    Raises:
        ClearheadError: It has no such token.
    """
    size = model.config.vocab_size
    if not 0 <= token < size:
        raise ClearheadError(f"there is no token id {token}; the vocabulary has {size}, from 0")
    return token


def exact_dtype(model: GPT) -> torch.dtype:
    """Return what sums are made in: the model's type, but no narrower than float32."""
    return torch.promote_types(model.head.weight.dtype, torch.float32)


def final_norm(model: GPT, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """Apply the last LayerNorm in the type of x, so that no hook sees it."""
    epsilon = model.config.layer_norm_epsilon
    return F.layer_norm(x, x.shape[-1:], model.norm.weight.to(x.dtype), _beta(model, x), epsilon)


def logit_reader(
    model: GPT, x: Float[Tensor, "... D"], direction: Float[Tensor, "... D"]
) -> tuple[Float[Tensor, "... D"], Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Return how a logit is read from the residual stream.

    Args:
        model: The model.
        x: The last residual stream.
        direction: Rows of the unembedding, or differences of them.

    Returns:
        w̃ / σ, with which a part's share of the logit is a scalar product; the constant; and the
        sum of the sizes of the numbers that the logit adds up, to which its rounding is relative.
    """
    sigma = (x.var(-1, correction=0, keepdim=True) + model.config.layer_norm_epsilon).sqrt()
    w, beta = direction * model.norm.weight.to(x.dtype) / sigma, _beta(model, x)
    constants = torch.zeros_like(direction) if beta is None else direction * beta
    size = ((x * w).abs() + constants.abs()).sum(-1)
    return w - w.mean(-1, keepdim=True), constants.sum(-1), size


def _beta(model: GPT, like: Float[Tensor, "..."]) -> Float[Tensor, " D"] | None:
    bias: Tensor | None = model.norm.bias
    return None if bias is None else bias.to(like.dtype)
