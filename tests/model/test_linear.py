"""The linear layer is torch's, whichever product computes it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.model.linear import Linear, linear


def drawn(shape, seed, layout):
    """Return random numbers in memory that is laid out in different ways."""
    generator = torch.Generator().manual_seed(seed)
    if layout == "transposed":
        return torch.randn((*shape[:-2], shape[-1], shape[-2]), generator=generator).mT
    if layout == "strided":
        return torch.randn((*shape[:-1], 2 * shape[-1]), generator=generator)[..., ::2]
    if layout == "sliced":
        return torch.randn((*shape[:-2], shape[-2] + 3, shape[-1]), generator=generator)[..., 3:, :]
    return torch.randn(shape, generator=generator)


LAYOUTS = st.sampled_from(["plain", "transposed", "strided", "sliced"])


@settings(max_examples=60, deadline=None)
@given(
    batch=st.sampled_from([(), (1,), (3,), (2, 2)]),
    rows=st.integers(1, 33),
    inner=st.integers(1, 40),
    outer=st.integers(1, 40),
    bias=st.booleans(),
    layouts=st.tuples(LAYOUTS, LAYOUTS),
    seed=st.integers(0, 99),
)
def test_value_and_derivatives_are_torchs(batch, rows, inner, outer, bias, layouts, seed):
    x = drawn((*batch, rows, inner), seed, layouts[0])
    weight = drawn((outer, inner), seed + 1, layouts[1])
    offset = torch.randn(outer) if bias else None
    given_ = [one for one in (x, weight, offset) if one is not None]
    expected = F.linear(*(one.double() for one in given_))
    torch.testing.assert_close(linear(*given_).double(), expected, atol=1e-5, rtol=1e-5)
    ours = [one.detach().requires_grad_() for one in given_]
    theirs = [one.detach().double().requires_grad_() for one in given_]
    down = torch.randn(*batch, rows, outer)
    found = torch.autograd.grad(linear(*ours), ours, down)
    wanted = torch.autograd.grad(F.linear(*theirs), theirs, down.double())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torchs_own(dtype):
    x, weight = torch.randn(3, 5, dtype=dtype), torch.randn(4, 5, dtype=dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_autocast_decides_the_type():
    layer, x = Linear(6, 4), torch.randn(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_nothing_in_nothing_out():
    assert Linear(6, 4)(torch.zeros(0, 6)).shape == (0, 4)


def test_weights_that_are_kept_as_they_are_get_no_derivative():
    layer, x = Linear(6, 4).requires_grad_(False), torch.randn(2, 6, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, 6))
    assert layer.weight.grad is None
