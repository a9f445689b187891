import pytest
import torch
from torch import nn

from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig, KVCache
from clearhead.native import Backend, decode
from clearhead.native.build import path, variants
from clearhead.native.library import Library
from clearhead.quantize import QuantizedLinear, pack, quantize_nearest, unpack
from clearhead.quantize.convert import round_to_nearest

SMALL = GPTConfig(
    vocab_size=131, context_length=48, d_model=160, n_heads=4, n_layers=2, dropout=0.0
)
_HERE = [one for one in variants() if path(one).exists() and Library(one).runs_here()]


def build(config: GPTConfig = SMALL) -> GPT:
    torch.manual_seed(2)
    return GPT(config).eval()


@pytest.mark.parametrize("bits", [8, 4])
def test_unpacking_gives_what_was_packed(bits):
    top = 2 ** (bits - 1) - 1
    values = torch.randint(-top, top + 1, (5, 300), dtype=torch.int8)
    found = unpack(pack(values, bits), bits)
    assert torch.equal(found[:, :300], values)
    assert found.shape == (5, 384)
    assert not found[:, 300:].any()


def test_the_place_of_each_of_four_bits_is_as_documented():
    values = torch.zeros(1, 128, dtype=torch.int8)
    values[0, 7], values[0, 64 + 7] = 5, -3
    found = pack(values, 4)[0].tolist()
    assert found[7] == (-3 + 8) << 4 | 5 + 8
    assert [byte for i, byte in enumerate(found) if i != 7] == [0x88] * 63


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_no_weight_is_further_off_than_its_scale_explains(bits, group):
    torch.manual_seed(0)
    weight = torch.randn(7, 200) * torch.logspace(-3, 1, 7)[:, None]
    values, scales = round_to_nearest(weight, bits, group)
    layer = QuantizedLinear(pack(values, bits), scales, None, 200, bits)
    assert (layer.bits, layer.group) == (bits, group)
    steps = scales.float().repeat_interleave(group, 1)[:, :200]
    cut = 0.5 if bits == 8 else 7 * (1 / 0.75 - 1) + 0.5
    assert ((layer.dequantized() - weight).abs() <= cut * steps * 1.001).all()
    error = (layer.dequantized() - weight).norm() / weight.norm()
    assert error < (0.01 if bits == 8 else 0.13)


def test_groups_without_weight_are_exact():
    values, scales = round_to_nearest(torch.zeros(2, 64), 8, 64)
    layer = QuantizedLinear(pack(values, 8), scales, None, 64, 8)
    assert torch.equal(layer.dequantized(), torch.zeros(2, 64))


def test_the_scales_keep_their_type_when_the_model_changes_its_own():
    model = quantize_nearest(build(), 4)
    before = model.head.dequantized()
    model.to(torch.bfloat16)
    assert model.head.scales.dtype == torch.float16
    assert model.blocks[0].mlp.up.bias.dtype == torch.bfloat16
    assert torch.equal(model.head.dequantized(), before)
    assert model(torch.tensor([[1, 2]])).isfinite().all()


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_eight_bits_says_nearly_the_same(tied):
    config = GPTConfig(**{**SMALL.__dict__, "tied_head": tied})
    model, ids = build(config), torch.randint(131, (2, 30))
    expected = model(ids)
    found = quantize_nearest(build(config), 8)(ids)
    assert (found - expected).norm() / expected.norm() < 0.02
    coarse = quantize_nearest(build(config), 4)(ids)
    assert 0.02 < (coarse - expected).norm() / expected.norm() < 0.3


@pytest.mark.parametrize("variant", _HERE)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_native_kernels_compute_what_torch_does(variant, bits, group, monkeypatch):
    monkeypatch.setattr(decode.native, "library", lambda: Library(variant))
    model = quantize_nearest(build(), bits, group)
    reader, cache = Backend(model), KVCache(SMALL, 12)
    assert reader.name == variant
    ids = torch.randint(131, (12, 20))
    pieces = ids.split([3, 1, 16], 1)
    found = torch.cat([reader.read(one, cache, all_logits=True) for one in pieces], 1)
    most = 127 if bits == 4 else 32767
    for layer in [one for one in model.modules() if isinstance(one, QuantizedLinear)]:
        layer.register_forward_pre_hook(lambda _, given: rounded(given[0], group, most))
    with torch.inference_mode():
        expected = model(ids)
    errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1)  # [B, T]
    # An activation halfway between two whole numbers may become the other one: of 16 bits, many.
    assert errors.median() < (1e-5 if bits == 4 else 1e-4)
    assert errors.max() < (5e-2 if bits == 4 else 1e-4)


def rounded(x: torch.Tensor, group: int, most: int) -> torch.Tensor:
    """Round activations to fractions of the largest of their group, as the kernels do."""
    width = x.shape[-1]
    groups = nn.functional.pad(x, (0, -width % group)).unflatten(-1, (-1, group))
    scales = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / most
    return ((groups / scales).round() * scales).flatten(-2)[..., :width]


@pytest.mark.parametrize(
    ("bits", "group", "says"),
    [(3, 64, "bits is 3; it must be 8 or 4"), (8, 48, "group is 48; it must be 32, 64, 128")],
)
def test_other_sizes_are_refused(bits, group, says):
    with pytest.raises(ClearheadError, match=says):
        quantize_nearest(build(), bits, group)


def test_what_cannot_be_quantised_is_refused():
    with pytest.raises(ClearheadError, match=r"is quantised already: .* has 8 bits"):
        quantize_nearest(quantize_nearest(build(), 8), 8)
    model = build()
    model.blocks[0].mlp.up.weight.data[0, 0] = torch.nan
    with pytest.raises(ClearheadError, match=r"blocks\.0\.mlp\.up\.weight has weights"):
        quantize_nearest(model, 8)
    model = build()
    model.blocks[0].mlp.up.weight.data[0, 0] = 1e9
    with pytest.raises(ClearheadError, match="too large"):
        quantize_nearest(model, 8)
    model = build()
    model.blocks[0].mlp.up = nn.LazyLinear(3)
    with pytest.raises(ClearheadError, match=r"blocks\.0\.mlp\.up is a LazyLinear"):
        quantize_nearest(model, 8)


def test_sizes_that_do_not_fit_are_refused():
    codes, scales = torch.zeros(3, 128, dtype=torch.int8), torch.ones(3, 2, dtype=torch.float16)
    QuantizedLinear(codes, scales, None, 100, 8)
    with pytest.raises(ClearheadError, match=r"must be torch.uint8 \[3, 64\]"):
        QuantizedLinear(codes, scales, None, 100, 4)
    with pytest.raises(ClearheadError, match=r"must be torch.int8 \[3, 256\]"):
        QuantizedLinear(codes, scales, None, 200, 8)
    with pytest.raises(ClearheadError, match="3 scales a row of 128 weights"):
        QuantizedLinear(codes, torch.ones(3, 3, dtype=torch.float16), None, 100, 8)
