"""Gradient importance is the derivative of the loss by a head's loudness."""

import pytest
import torch
import torch.nn.functional as F
from random_model import random_model, random_tokens

from clearhead.errors import ClearheadError
from clearhead.lens.edits import scale_heads
from clearhead.lens.importance import head_importance
from clearhead.lens.loss import loss_gradient, token_losses


def numerical(model, text, layer, head, step=1e-5):
    def loss(factor):
        with torch.no_grad(), scale_heads(model, layer, {head: factor}):
            return F.cross_entropy(model(text[None])[0, :-1], text[1:])

    return float(loss(1 + step) - loss(1 - step)) / (2 * step)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"tied_head": False, "n_layers": 2}])
def test_it_is_the_numerical_derivative(options):
    model = random_model(**options)
    texts = random_tokens(model, batch=3)
    found = head_importance(model, texts)
    for layer in range(model.config.n_layers):
        for head in range(3):
            each = [numerical(model, text, layer, head) for text in texts]
            assert found.signed[layer, head] == pytest.approx(sum(each) / 3, abs=1e-7)
            size = sum(map(abs, each)) / 3
            assert found.importance[layer, head] == pytest.approx(size, abs=1e-7)
    assert found.texts == 3


def test_nothing_about_the_model_changes():
    model = random_model(torch.float32, dropout=0.5).train()
    model.blocks[0].requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    texts = random_tokens(model)
    first = head_importance(model, texts)
    assert torch.equal(first.signed, head_importance(model, texts).signed)
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_under_no_grad_too():
    model = random_model()
    texts = random_tokens(model)
    with torch.no_grad():
        inside = head_importance(model, texts)
    assert torch.equal(inside.signed, head_importance(model, texts).signed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_losses_and_their_gradient(monkeypatch, dtype):
    monkeypatch.setattr("clearhead.lens.loss._CHUNK", 7)
    model = random_model(dtype)
    texts = random_tokens(model)
    hidden = torch.randn(11, 24, dtype=dtype)
    wide = hidden.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    logits = wide @ model.head.weight.detach().to(wide.dtype).T
    expected = F.cross_entropy(logits, texts[0], reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), wide)
    with torch.no_grad():
        torch.testing.assert_close(token_losses(model, hidden, texts[0]), expected.detach())
        torch.testing.assert_close(loss_gradient(model, hidden, texts[0]), gradient)


def test_mistakes():
    model = random_model()
    with pytest.raises(ClearheadError, match="give at least 1 of at least 2"):
        head_importance(model, random_tokens(model, length=1))
