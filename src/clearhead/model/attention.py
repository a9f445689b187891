"""Causal multi-head self-attention."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clearhead.model.cache import KVCache
from clearhead.model.config import GPTConfig
from clearhead.model.linear import Linear

_BLOCK = 128


class Attention(nn.Module):
    """Each token gathers from the tokens up to its own, in H ways at once (Vaswani et al. 2017).

    `out_proj` is the attention output projection W_O: head h's output z_h [T, K] meets the columns
    h·K to (h+1)·K of its weight, and the heads' contributions add up to the layer's output.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = config.n_heads
        self.qkv = Linear(config.d_model, 3 * config.d_model, bias=config.qkv_bias)
        self.out_proj = Linear(config.d_model, config.d_model, bias=config.bias)
        self.dropout = config.dropout

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "B T"] | None = None,
        mask: Bool[Tensor, "B 1 T C"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return what the heads gather for each token, summed over the heads."""
        batch, length, d_model = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.n_heads, -1)  # [B, T, 3, H, K]
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()  # [B, H, T, K] each
        if cache is not None and positions is not None:
            key, value = cache.write(self.layer, positions, key, value)  # [B, H, C, K]
        z = attend(query, key, value, mask, self.dropout if self.training else 0.0)  # [B, H, T, K]
        z = z.transpose(1, 2).reshape(batch, length, d_model)  # [B, T, D]
        return self.out_proj(z)


def attend(
    query: Float[Tensor, "B H T K"],
    key: Float[Tensor, "B H C K"],
    value: Float[Tensor, "B H C K"],
    mask: Bool[Tensor, "B 1 T C"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """Return softmax(q kᵀ / √K) v for each head.

    Torch's SDPA, but for whole causal texts on a CPU: there its fused kernel is two to three times
    slower in bf16 than plain matrix products over blocks of queries (docs/decisions/0003).

    Args:
        query: What each new token looks for.
        key: What each token can be found by.
        value: What each token hands over.
        mask: Which tokens each new one may attend to; without it, those up to its own place.
        dropout: Probability of dropping an attention weight.
    """
    plain = mask is None and not dropout and not torch.compiler.is_exporting()
    if plain and query.device.type == "cpu":
        batch, heads, length, head_dim = query.shape
        flat = (tensor.reshape(batch * heads, length, head_dim) for tensor in (query, key, value))
        z: Tensor = _BlockwiseAttention.apply(*flat)  # type: ignore[no-untyped-call]
        return z.view(query.shape)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
    )


class _BlockwiseAttention(torch.autograd.Function):
    """Causal attention, a block of queries at a time; the backward pass recomputes the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "N T K"],
        key: Float[Tensor, "N T K"],
        value: Float[Tensor, "N T K"],
    ) -> Float[Tensor, "N T K"]:
        ctx.save_for_backward(query, key, value)
        z = torch.empty_like(query)
        for start, stop in _blocks(query):
            z[:, start:stop] = _weights(query, key, start, stop) @ value[:, :stop]
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Float[Tensor, "N T K"]) -> tuple[Tensor, ...]:
        (grad,) = grads
        query, key, value = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for start, stop in _blocks(query):
            weights = _weights(query, key, start, stop)  # [N, block, stop]
            grad_z = grad[:, start:stop]
            grad_value[:, :stop].baddbmm_(weights.mT, grad_z)
            grad_weights = grad_z @ value[:, :stop].mT
            inner = (grad_weights * weights).sum(-1, keepdim=True)
            grad_scores = grad_weights.sub_(inner).mul_(weights)  # [N, block, stop]
            grad_query[:, start:stop] = (grad_scores @ key[:, :stop]).mul_(scale)
            grad_key[:, :stop].baddbmm_(grad_scores.mT, query[:, start:stop], alpha=scale)
        return grad_query, grad_key, grad_value


def _blocks(query: Float[Tensor, "N T K"]) -> list[tuple[int, int]]:
    length = query.shape[1]
    return [(start, min(start + _BLOCK, length)) for start in range(0, length, _BLOCK)]


def _weights(
    query: Float[Tensor, "N T K"], key: Float[Tensor, "N T K"], start: int, stop: int
) -> Float[Tensor, "N block stop"]:
    scores = torch.bmm(query[:, start:stop], key[:, :stop].mT).mul_(query.shape[-1] ** -0.5)
    future = scores.new_full((stop - start, stop - start), -torch.inf).triu(1)
    scores[:, :, start:] += future
    return torch.softmax(scores, dim=-1)
