"""Finding where a number stopped being one."""

import torch
from torch import Tensor, nn

from clearhead.data import Rows
from clearhead.model import GPT
from clearhead.train.step import Loss, precision


@torch.no_grad()
def first_non_finite(model: GPT, rows: Rows, loss: Loss, dtype: torch.dtype) -> str:
    """Name the first place in the model where NaN or infinity appears for these rows.

    Weights are looked at first, then the output of each layer in the order of the forward pass.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight {name}"
    found: list[str] = []

    def look(name: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if not output.isfinite().all():
                found.append(name)

        return hook

    layers = [(name, module) for name, module in model.named_modules() if name]
    handles = [m.register_forward_hook(look(n)) for n, m in layers]
    try:
        with precision(model.device, dtype):
            loss(model, rows)
    finally:
        for handle in handles:
            handle.remove()
    return f"the output of {found[0]}" if found else "the loss or the gradient"
