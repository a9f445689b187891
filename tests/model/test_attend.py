import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.model.attention import attend


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    length=st.integers(1, 300),
    head_dim=st.sampled_from([4, 8, 32]),
)
def test_value_and_gradient_equal_torchs_sdpa(batch, heads, length, head_dim):
    torch.manual_seed(length)
    shape = (batch, length, 3, heads, head_dim)
    query, key, value = (
        torch.randn(shape, dtype=torch.float64).permute(2, 0, 3, 1, 4).requires_grad_().unbind()
    )
    ours = attend(query, key, value)
    theirs = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    direction = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (query, key, value), direction),
        torch.autograd.grad(theirs, (query, key, value), direction),
        rtol=0,
        atol=1e-11,
    )


def test_bfloat16_is_as_close_to_exact_as_torchs_sdpa():
    torch.manual_seed(0)
    exact = torch.randn(3, 2, 4, 200, 16)
    rounded = [tensor.bfloat16() for tensor in exact]
    wanted = F.scaled_dot_product_attention(*(t.float() for t in rounded), is_causal=True)
    ours = (attend(*rounded).float() - wanted).abs().mean()
    theirs = (
        (F.scaled_dot_product_attention(*rounded, is_causal=True).float() - wanted).abs().mean()
    )
    assert ours < 4 * theirs


def test_attention_is_recomputed_not_kept():
    query, key, value = (torch.randn(1, 1, 400, 8, requires_grad=True) for _ in range(3))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        attend(query, key, value)
    assert sum(kept) <= 3 * 400 * 8


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_takes_torchs_path_and_changes_the_result(dropout):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 1, 50, 8)
    assert torch.equal(attend(query, key, value, dropout=dropout), attend(query, key, value)) == (
        dropout == 0
    )
