"""The attention weights in the lens's form: row vectors, one matrix a head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.model import GPT


@dataclass(frozen=True)
class LayerWeights:
    """One attention layer: `q_h = x @ query[h]` and so on, `r_h = z_h @ out[h]`."""

    query: Float[Tensor, "H D K"]
    """W_Q."""
    key: Float[Tensor, "H D K"]
    """W_K."""
    value: Float[Tensor, "H D K"]
    """W_V."""
    value_bias: Float[Tensor, "H K"] | None
    """b_V, if there is one."""
    out: Float[Tensor, "H K D"]
    """W_O: the blocks of rows of the output projection."""
    out_bias: Float[Tensor, " D"] | None
    """b, if there is one."""
    norm: Float[Tensor, " D"]
    """γ of the LayerNorm that the layer reads through."""


@dataclass(frozen=True)
class Weights:
    """All attention layers, and the embeddings where they are at hand."""

    layers: tuple[LayerWeights, ...]
    """From the first block to the last."""
    embedding: Float[Tensor, "V D"] | None = None
    """W_E, if it is at hand."""
    unembedding: Float[Tensor, "V D"] | None = None
    """W_U, a row a token, if it is at hand."""

    @property
    def n_layers(self) -> int:
        """Number of layers L."""
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        """Heads per layer H."""
        return len(self.layers[0].query)

    @property
    def d_model(self) -> int:
        """Width of the residual stream D."""
        return self.layers[0].query.shape[1]

    @property
    def head_dim(self) -> int:
        """Width of a head K."""
        return self.layers[0].query.shape[2]

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.layers[0].query.device


def weights(given: GPT | Weights) -> Weights:
    """Return a model's attention weights; they are views of its own.

    Args:
        given: A model, or weights that are in this form already.

    Raises:
        ClearheadError: Adapters stand beside them, without which they are not what it computes by.
    """
    if isinstance(given, Weights):
        return given
    for block in _blocks(given):
        if any(any(layer.children()) for layer in (block.attention.qkv, block.attention.out_proj)):
            raise ClearheadError(
                "the model has adapters beside its attention weights; put them into the weights by "
                "merge_lora, or load it with merged=True"
            )
    heads = given.config.n_heads
    return Weights(
        tuple(
            layer_weights(
                block.attention.qkv.weight.detach().T,
                _detached(block.attention.qkv.bias),
                block.attention.out_proj.weight.detach().T,
                _detached(block.attention.out_proj.bias),
                block.norm_1.weight.detach(),
                heads,
            )
            for block in _blocks(given)
        ),
        given.token_embedding.weight.detach(),
        None if given.config.labels else given.head.weight.detach(),
    )


def layer_weights(
    qkv: Float[Tensor, "D 3*D"],
    qkv_bias: Float[Tensor, " 3*D"] | None,
    out: Float[Tensor, "D D"],
    out_bias: Float[Tensor, " D"] | None,
    norm: Float[Tensor, " D"],
    n_heads: int,
) -> LayerWeights:
    """Cut one layer's matrices by head; both act on row vectors: `x @ qkv`, `z @ out`.

    Raises:
        ClearheadError: They do not fit together.
    """
    d_model = norm.numel()
    fits = (
        norm.shape == (d_model,)
        and qkv.shape == (d_model, 3 * d_model)
        and out.shape == (d_model, d_model)
        and (qkv_bias is None or qkv_bias.shape == (3 * d_model,))
        and (out_bias is None or out_bias.shape == (d_model,))
    )
    if not fits or n_heads < 1 or d_model % n_heads:
        raise ClearheadError(
            f"attention weights of {tuple(qkv.shape)} and {tuple(out.shape)} do not make {n_heads} "
            f"heads of a residual stream of {d_model}"
        )
    query, key, value = torch.unflatten(qkv, 1, (3, n_heads, -1)).permute(
        1, 2, 0, 3
    )  # [H, D, K] each
    bias = None if qkv_bias is None else torch.unflatten(qkv_bias, 0, (3, n_heads, -1))[2]  # [H, K]
    return LayerWeights(
        query, key, value, bias, torch.unflatten(out, 0, (n_heads, -1)), out_bias, norm
    )


def _blocks(model: GPT) -> Sequence[Any]:
    return list(model.blocks)


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
