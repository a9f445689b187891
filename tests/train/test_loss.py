import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.data import IGNORED
from clearhead.train import loss, summed_loss


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    vocab=st.integers(2, 90),
    at_once=st.integers(1, 4000),
    in_cache=st.integers(1, 400),
    ignored=st.floats(0, 1),
)
def test_value_and_gradient_equal_torchs(batch, length, vocab, at_once, in_cache, ignored):
    torch.manual_seed(batch * length * vocab)
    hidden = torch.randn(batch, length, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocab, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(vocab, (batch, length))
    targets[torch.rand(batch, length) < ignored] = IGNORED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_LOGITS_AT_ONCE", at_once)
        patch.setattr(loss, "_LOGITS_IN_CACHE", in_cache)
        ours = summed_loss(hidden, weight, targets)
        with torch.no_grad():
            unlearning = summed_loss(hidden, weight, targets)
    logits = (hidden @ weight.T).flatten(0, 1)
    theirs = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.equal(ours, unlearning)
    torch.testing.assert_close(
        torch.autograd.grad(ours * 0.3, (hidden, weight)),
        torch.autograd.grad(theirs * 0.3, (hidden, weight)),
        rtol=1e-10,
        atol=1e-10,
    )


def test_autocast_computes_in_bfloat16_and_keeps_fp32_gradients():
    torch.manual_seed(0)
    hidden = torch.randn(2, 30, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(50, (2, 30))
    exact = summed_loss(hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = summed_loss(hidden, weight, targets)
    assert rounded.dtype == torch.float32
    assert rounded != exact
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=0)
    grad_hidden, grad_weight = torch.autograd.grad(rounded, (hidden, weight))
    assert grad_hidden.dtype == grad_weight.dtype == torch.float32


def test_a_frozen_head_takes_no_gradient_and_changes_none():
    torch.manual_seed(0)
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    weight, targets = torch.randn(11, 8), torch.randint(11, (2, 5))
    (frozen,) = torch.autograd.grad(summed_loss(hidden, weight, targets), hidden)
    learnt = weight.clone().requires_grad_()
    both = torch.autograd.grad(summed_loss(hidden, learnt, targets), (hidden, learnt))
    assert torch.equal(frozen, both[0])
    assert both[1].any()
