"""Modes of the output projection: the example by hand, and what must hold for any weights."""

import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import random_model
from safetensors.torch import load_file

from clearhead.errors import ClearheadError
from clearhead.lens.mixing import example_projection, head_overlap, mixing_modes, pair_signs
from clearhead.lens.weights import LayerWeights, Weights, layer_weights, weights

EXACT = {"atol": 1e-12, "rtol": 0}


def of_projection(out):
    """Return weights of one layer that has this W_O [H, K, D], and nothing else."""
    n_heads, head_dim, d_model = out.shape
    empty = out.new_zeros(n_heads, d_model, head_dim)
    return Weights((LayerWeights(empty, empty, empty, None, out, None, out.new_ones(d_model)),))


@pytest.fixture
def example():
    return of_projection(example_projection().double())


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_example_says_what_it_is_said_to():
    out = example_projection()
    z = torch.randn(4, 8)
    found = torch.einsum("hk,hkd->d", z, out).view(4, 8)
    torch.testing.assert_close(found[0], z[1] - z[3])
    torch.testing.assert_close(found[1], 2 * z[0])
    torch.testing.assert_close(found[2], z.mean(0))
    assert not found[3].any()
    with pytest.raises(ClearheadError, match="n_heads=3; the example speaks of h0 to h3"):
        example_projection(3)


def test_the_modes_of_the_example_are_those_derived_by_hand(example):
    """h1 − h3 is orthogonal to the rest; 2·h0 and the mean have the Gram [[4, ½], [½, ¼]]."""
    found = mixing_modes(example)
    root = math.sqrt(3.75**2 + 1)
    high, low = (4.25 + root) / 2, (4.25 - root) / 2  # eigenvalues of the Gram
    strengths = doubles(math.sqrt(high), math.sqrt(2), math.sqrt(low), 0)
    torch.testing.assert_close(found.singular[0], strengths.repeat_interleave(8), **EXACT)
    # Of a mode with s² = λ, the mean's coefficient is c = (λ − 4) / ½ times that of 2·h0. It reads
    # 2 + c/4 of h0 and c/4 of each other head.
    for first, square in ((0, high), (16, low)):
        c = (square - 4) / 0.5
        masses = doubles(2 + c / 4, c / 4, c / 4, c / 4).square()
        masses /= masses.sum()
        torch.testing.assert_close(found.mass[0, first : first + 8], masses.expand(8, 4), **EXACT)
        signs = pair_signs(example, 0, first)
        same = torch.ones(3, 3, dtype=torch.float64)
        torch.testing.assert_close(signs[1:, 1:], same, **EXACT)
        expected = same[0] * math.copysign(1, (2 + c / 4) * c)
        torch.testing.assert_close(signs[0, 1:], expected, **EXACT)


def test_h1_minus_h3_is_recovered_exactly(example):
    found = mixing_modes(example)
    for mode in range(8, 16):  # any rotation of these eight is as good, and is h1 − h3 too
        torch.testing.assert_close(found.mass[0, mode], doubles(0, 0.5, 0, 0.5), **EXACT)
        assert float(found.heads_mixed[0, mode]) == pytest.approx(2, abs=1e-12)
        signs = doubles([0, 0, 0, 0], [0, 1, 0, -1], [0, 0, 0, 0], [0, -1, 0, 1])
        torch.testing.assert_close(pair_signs(example, 0, mode), signs, **EXACT)


def test_rounding_has_no_sign():
    """The same example in other coordinates, where what is 0 is only nearly so."""
    generator = torch.Generator().manual_seed(0)
    draws = (torch.randn(size, size, generator=generator, dtype=torch.float64) for size in (8, 32))
    inner, outer = (torch.linalg.qr(draw).Q for draw in draws)
    given = of_projection(inner @ example_projection().double() @ outer)
    assert mixing_modes(given).mass[0, 8:16, 0].count_nonzero()
    for mode in range(8, 16):
        signs = doubles([0, 0, 0, 0], [0, 1, 0, -1], [0, 0, 0, 0], [0, -1, 0, 1])
        torch.testing.assert_close(pair_signs(given, 0, mode), signs, **EXACT)


def test_a_head_alone_and_all_heads_alike():
    """One mode reads head 2, the other the sum of all, in another channel."""
    out = torch.zeros(4, 2, 8, dtype=torch.float64)
    out[2, 0, 0] = 3.0
    out[:, 1, 1] = 1.0
    found = mixing_modes(of_projection(out), modes=2)
    torch.testing.assert_close(found.singular[0], doubles(3, 2), **EXACT)
    torch.testing.assert_close(found.heads_mixed[0], doubles(1, 4), **EXACT)
    torch.testing.assert_close(found.mass[0, 1], doubles(0.25, 0.25, 0.25, 0.25), **EXACT)


@settings(max_examples=30, deadline=None)
@given(
    n_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.integers(1, 9),
    n_layers=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_what_holds_for_any_weights(n_heads, head_dim, n_layers, dtype):
    d_model = n_heads * head_dim
    model = random_model(dtype, d_model=d_model, n_heads=n_heads, n_layers=n_layers)
    close = (
        {"atol": 1e-12, "rtol": 1e-12} if dtype == torch.float64 else {"atol": 1e-5, "rtol": 1e-5}
    )
    found = mixing_modes(model)
    assert found.mass.shape == (n_layers, d_model, n_heads)
    ones = torch.ones_like(found.singular)
    torch.testing.assert_close(found.mass.sum(-1), ones, **close)
    torch.testing.assert_close(  # U is orthogonal: every head is read head_dim times in all
        found.mass.sum(1), torch.full_like(found.gain, head_dim), **close
    )
    assert found.heads_mixed.min() >= 1 - 1e-5
    assert found.heads_mixed.max() <= n_heads + 1e-5
    assert (found.singular.diff(dim=1) <= 0).all()
    squares = (found.singular[:, :, None].square() * found.mass).sum(1)
    torch.testing.assert_close(squares, found.gain.square(), **close)
    shared = head_overlap(model)
    assert shared.chance == head_dim / d_model
    torch.testing.assert_close(
        shared.overlap.diagonal(0, 1, 2), torch.ones_like(found.gain), **close
    )
    torch.testing.assert_close(shared.overlap, shared.overlap.mT, **close)
    assert shared.overlap.min() >= 0
    assert shared.overlap.max() <= 1 + 1e-5
    for proof in (found.proof, shared.proof):
        assert proof.dtype == ("fp64" if dtype == torch.float64 else "fp32")


def test_masses_and_signs_are_what_the_formulas_say():
    model = random_model()
    found = mixing_modes(model, layers=[1])
    flat = model.blocks[1].attention.out_proj.weight.detach().T  # [H·K, D]
    values, vectors = torch.linalg.eigh(flat @ flat.T)  # another way to U, the weakest first
    torch.testing.assert_close(found.singular[0].square(), values.flip(0))
    blocks = vectors.flip(1).view(3, 8, 24)
    torch.testing.assert_close(found.mass[0], blocks.square().sum(1).T)
    for mode in (0, 5):
        one = blocks[:, :, mode]
        cosine = torch.cosine_similarity(one[:, None], one[None], dim=-1)
        torch.testing.assert_close(pair_signs(model, 1, mode), cosine)
    some = mixing_modes(model, layers=[1], modes=4)
    assert torch.equal(some.mass, found.mass[:, :4])
    assert torch.equal(some.singular, found.singular[:, :4])
    assert found.layers == some.layers == (1,)


def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles():
    model = random_model()
    out = weights(model).layers[2].out
    expected = torch.empty(3, 3, dtype=torch.float64)
    for head in range(3):
        for other in range(3):
            one, two = (torch.linalg.svd(out[at], full_matrices=False).Vh for at in (head, other))
            expected[head, other] = torch.linalg.svdvals(one @ two.T).square().mean()
    torch.testing.assert_close(head_overlap(model, layers=[2]).overlap[0], expected)


def test_heads_that_write_into_the_same_and_into_orthogonal_dimensions():
    out = torch.zeros(3, 2, 6, dtype=torch.float64)
    out[0, :, :2] = doubles([1, 2], [3, 4])
    out[1, :, :2] = doubles([5, -6], [7, 8])
    out[2, :, 3:5] = doubles([1, 0], [0, 1])
    expected = doubles([1, 1, 0], [1, 1, 0], [0, 0, 1])
    torch.testing.assert_close(head_overlap(of_projection(out)).overlap[0], expected, **EXACT)


def test_chance_is_what_random_subspaces_have_in_common():
    generator = torch.Generator().manual_seed(0)
    found = [
        head_overlap(of_projection(torch.randn(4, 6, 24, generator=generator, dtype=torch.float64)))
        for _ in range(200)
    ]
    mean = torch.stack([one.overlap[0, 0, 1:] for one in found]).mean()
    assert found[0].chance == 0.25
    assert float(mean) == pytest.approx(0.25, abs=0.01)


def test_a_projection_that_is_not_rebuilt_shows_nothing(monkeypatch):
    right = torch.linalg.svd

    def wrong(matrix, **options):
        left, values, vectors = right(matrix, **options)
        return left, values * (1 + 1e-6), vectors

    monkeypatch.setattr(torch.linalg, "svd", wrong)
    with pytest.raises(ClearheadError, match="the proof failed: U S Vᵀ − W_O"):
        mixing_modes(random_model())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: mixing_modes(m, layers=[3]), "there is no layer 3; the model has 3, from 0"),
        (lambda m: head_overlap(m, layers=[-1]), "there is no layer -1"),
        (lambda m: mixing_modes(m, modes=25), "25 modes are asked for; give 1 to 24"),
        (lambda m: mixing_modes(m, modes=0), "0 modes are asked for"),
        (lambda m: pair_signs(m, 3, 0), "there is no layer 3"),
        (lambda m: pair_signs(m, 0, 24), "there is no mode 24; a layer has 24"),
        (lambda m: pair_signs(m, 0, -1), "there is no mode -1"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ClearheadError, match=message):
        call(weights(random_model()))


def test_results_become_tables_and_documents():
    model = random_model()
    found = mixing_modes(model, modes=5)
    table = found.to_pandas()
    assert table.index.names == ["layer", "mode", "head"]
    assert table.loc[(1, 4, 2), "mass"] == float(found.mass[1, 4, 2])
    assert table.loc[(1, 4, 2), "singular"] == float(found.singular[1, 4])
    document = head_overlap(model).to_json()
    assert document["chance"] == 8 / 24
    assert document["overlap"]["axes"] == ["layer", "head", "other"]
    assert document["proof"]["claim"] == "Q R − W_Oᵀ"


def test_signs_are_the_pair_signs_with_the_strongest_head():
    model = random_model()
    found = mixing_modes(model, modes=4)
    for layer in range(3):
        for mode in range(4):
            strongest = int(found.mass[layer, mode].argmax())
            expected = pair_signs(model, layer, mode)[strongest]
            torch.testing.assert_close(found.signs[layer, mode], expected)


def test_the_weights_stay_as_they_are():
    model = random_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mixing_modes(model)
    head_overlap(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_published_weights():
    """Real ones of GPT-2 small: most modes mix nearly all heads; 4.7 and 4.11 write alike."""
    if "CLEARHEAD_DATA" not in os.environ:
        pytest.skip("CLEARHEAD_DATA names no folder with weights/gpt2-124M-partial")
    folder = Path(os.environ["CLEARHEAD_DATA"]) / "weights/gpt2-124M-partial"
    tensors = load_file(folder / "gpt2-124M-partial.safetensors")
    parts = ("attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias")
    layer = layer_weights(
        *(tensors[f"h.4.{part}"] for part in parts), tensors["h.4.ln_1.weight"], 12
    )
    given = Weights((layer,))
    found, shared = mixing_modes(given), head_overlap(given)
    assert float(found.heads_mixed.median()) > 10
    assert int(found.gain[0].argmin()) == 11
    assert shared.chance == 1 / 12
    apart = (shared.overlap[0] - torch.eye(12)).flatten()
    assert divmod(int(apart.argmax()), 12) in {(7, 11), (11, 7)}
    assert float(apart.max()) > 0.6
