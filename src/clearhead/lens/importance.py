"""How much the loss depends on each head, to first order."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.lens.edits import Change, edit
from clearhead.lens.loss import loss_gradient
from clearhead.lens.result import Result, array
from clearhead.lens.taps import evaluating
from clearhead.lens.texts import check_texts
from clearhead.model import GPT


@dataclass(frozen=True, eq=False, kw_only=True)
class Importance(Result):
    """How the loss would move if each head became louder (Michel et al. 2019).

    ξ_h is a factor on the head's output, 1 as the model is; ∂L/∂ξ_h = sum_t ⟨z_h, ∂L/∂z_h⟩.
    """

    importance: Float[Tensor, "L H"] = array("layer", "head", unit="nats")
    """E |∂L/∂ξ_h| over the texts."""
    signed: Float[Tensor, "L H"] = array("layer", "head", unit="nats")
    """E ∂L/∂ξ_h: below 0, a louder head would lower the loss."""
    texts: int
    """How many texts it was measured on."""


def head_importance(model: GPT, texts: Int[Tensor, "N T"]) -> Importance:
    """Measure how much the loss depends on each head; one backward pass a text scores them all.

    Args:
        model: The model.
        texts: Texts of at least two tokens; a text's loss is the mean over its next tokens.

    Raises:
        ClearheadError: There is no text, or it is too short or too long.
    """
    check_texts(model, texts)
    per_text = torch.stack([_derivatives(model, text[None]) for text in texts])  # [N, L, H]
    return Importance(
        proof=None,
        importance=per_text.abs().mean(0),
        signed=per_text.mean(0),
        texts=len(texts),
    )


def _derivatives(model: GPT, text: Int[Tensor, "1 T"]) -> Float[Tensor, "L H"]:
    text = text.to(model.device)
    factors = [
        torch.ones(model.config.n_heads, 1, dtype=model.head.weight.dtype, device=model.device)
        for _ in range(model.config.n_layers)
    ]
    with evaluating(model), _frozen(model), torch.enable_grad(), ExitStack() as edits:
        for layer, factor in enumerate(factors):
            factor.requires_grad_()
            edits.enter_context(edit(model, layer, _scaled(factor)))
        hidden = model.hidden(text)[0, :-1]  # [T − 1, D]
        down = loss_gradient(model, hidden.detach(), text[0, 1:]) / len(hidden)
        found = torch.autograd.grad(hidden, factors, down.to(hidden.dtype))
    grads = torch.stack(found)[:, :, 0]  # [L, H]
    return grads.to(torch.promote_types(grads.dtype, torch.float32)).cpu()


def _scaled(factor: Float[Tensor, "H 1"]) -> Change:
    return lambda z: z * factor


@contextmanager
def _frozen(model: GPT) -> Iterator[None]:
    """Keep the weights out of the graph for a while."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
