"""Muon whose matrix products are in fp32."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Muon


class Float32Muon(Muon):
    """Torch's Muon, which orthogonalises in bf16, for processors that have no such products.

    State and settings are torch's, but for `adjust_lr_fn`, of which it knows "original" only.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change each matrix that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            learnt = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in learnt:
                mean = self.state[parameter].setdefault(
                    "momentum_buffer", torch.zeros_like(parameter)
                )
                mean.lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(mean, group["momentum"]) if group["nesterov"] else mean
                update = orthogonalised(
                    ahead, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))
        return loss


def orthogonalised(
    matrix: Float[Tensor, "N K"],
    coefficients: tuple[float, float, float],
    n_steps: int,
    eps: float,
) -> Float[Tensor, "N K"]:
    """Bring a matrix's singular values near 1, by Newton and Schulz's iteration.

    Args:
        matrix: The matrix.
        coefficients: Of the polynomial that the singular values go through at each step.
        n_steps: How many steps.
        eps: The least norm that the matrix is taken to have.
    """
    a, b, c = coefficients
    high = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if high else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(n_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if high else x
