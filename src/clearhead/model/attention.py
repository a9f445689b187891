"""Causal multi-head self-attention."""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clearhead.model.cache import KVCache
from clearhead.model.config import GPTConfig


class Attention(nn.Module):
    """Each token gathers from the tokens up to its own, in H ways at once (Vaswani et al. 2017).

    `out_proj` is the attention output projection W_O: head h's output z_h [T, K] meets the columns
    h·K to (h+1)·K of its weight, and the heads' contributions add up to the layer's output.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=config.qkv_bias)
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=config.bias)
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
        dropout = self.dropout if self.training else 0.0
        z = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
        )  # [B, H, T, K]
        z = z.transpose(1, 2).reshape(batch, length, d_model)  # [B, T, D]
        return self.out_proj(z)
