"""Rounding that makes up for its errors, on texts."""

import copy
from dataclasses import replace

import pytest
import torch

from clearhead.model import GPT, GPTConfig
from clearhead.quantize import (
    QuantizedEmbedding,
    QuantizedLinear,
    gptq,
    pack,
    quantize_calibrated,
    quantize_nearest,
)
from clearhead.quantize.convert import round_to_nearest

CONFIG = GPTConfig(
    vocab_size=131, context_length=48, d_model=96, n_heads=4, n_layers=2, dropout=0.0
)


def inputs(n: int, width: int) -> torch.Tensor:
    """Return rows whose columns go together, as activations' do."""
    mix = torch.randn(12, width) * torch.logspace(0, -2, 12)[:, None]
    return torch.randn(n, 12) @ mix + 0.02 * torch.randn(n, width)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [96, 200])
def test_products_change_less_than_by_rounding_to_nearest(bits: int, width: int) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(40, width), inputs(2000, width)
    errors = []
    for values, scales in (
        round_to_nearest(weight, bits, 64),
        gptq(weight, x.T @ x, bits, 64),
    ):
        layer = QuantizedLinear(pack(values, bits), scales, None, width, bits)
        errors.append((x @ (layer.dequantized() - weight).T).norm().item())
        assert values[:, width:].abs().sum() == 0
        assert values.abs().max() <= 2 ** (bits - 1) - 1
    assert errors[1] < 0.5 * errors[0]


def test_inputs_that_never_come_are_no_trouble() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(8, 64), torch.randn(50, 64)
    x[:, 10:30] = 0
    values, scales = gptq(weight, x.T @ x, 4, 32)
    layer = QuantizedLinear(pack(values, 4), scales, None, 64, 4)
    assert (layer.dequantized() - weight).norm() < 0.5 * weight.norm()
    values, _ = gptq(weight, torch.zeros(64, 64), 4, 32)
    assert values.any()


@pytest.mark.parametrize("tied", [True, False])
def test_a_calibrated_model_is_nearer_than_a_rounded_one(tied: bool) -> None:
    torch.manual_seed(1)
    model = GPT(replace(CONFIG, tied_head=tied))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    numbers = torch.Generator().manual_seed(2)
    texts = [torch.randint(0, 131, (8, 48), generator=numbers) for _ in range(6)]
    other = torch.randint(0, 131, (8, 48), generator=numbers)
    blocks: list[int] = []
    rounded = quantize_nearest(copy.deepcopy(model), 4, 64)
    calibrated = quantize_calibrated(copy.deepcopy(model), 4, 64, texts, blocks.append)
    assert blocks == [1, 2]
    assert isinstance(calibrated.token_embedding, QuantizedEmbedding)
    with torch.no_grad():
        expected = model(other)
        errors = [(found(other) - expected).square().mean() for found in (rounded, calibrated)]
    assert errors[1] < 0.9 * errors[0]
