"""Linear layers, by the fastest fp32 matrix product that a CPU has."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    def forward(self, x: Float[Tensor, "*n K"]) -> Float[Tensor, "*n N"]:
        """Return `x Wᵀ + b`."""
        return linear(x, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*n K"], weight: Float[Tensor, "N K"], bias: Float[Tensor, " N"] | None = None
) -> Float[Tensor, "*n N"]:
    """Return `x Wᵀ + b`.

    In fp32 on a CPU it is oneDNN's product, which torch has but takes for smaller types only: the
    other library's takes more than twice as long on AMD (docs/decisions/0008).
    """
    if not _takes_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        found: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return found
    return _product(x, weight, bias)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() > 0
        and torch._C._has_mkldnn
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()  # of what has gaps it makes a thousand times slower work
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


class _Linear(torch.autograd.Function):
    """The same with its derivatives, which are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat = grads[0].flatten(0, -2)  # [M, N]
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            _product(grads[0], weight.T) if to_x else None,
            _product(flat.T, x.flatten(0, -2).T) if to_weight else None,
            flat.sum(0) if to_bias and ctx.has_bias else None,
        )
