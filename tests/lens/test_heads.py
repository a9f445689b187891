"""What a head adds: everything adds up, and equals the plain formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import random_model, random_tokens

from clearhead.errors import ClearheadError
from clearhead.lens import heads as module
from clearhead.lens import sources as sources_module
from clearhead.lens.heads import head_contributions, split
from clearhead.lens.pairs import head_pairs
from clearhead.lens.sources import source_tokens
from clearhead.lens.taps import patterns, run
from clearhead.lens.weights import weights


def contributions(model, tokens, layer):
    """Return r_h [B, T, H, D] and a [B, T, D], the plain way."""
    seen = run(model, tokens, "z", "attention")
    one = weights(model).layers[layer]
    a = seen["attention", layer] - (0.0 if one.out_bias is None else one.out_bias)
    return split(seen["z", layer], one.out), a


@settings(max_examples=30, deadline=None)
@given(
    n_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.integers(2, 9),
    n_layers=st.integers(1, 3),
    length=st.integers(1, 16),
    bias=st.booleans(),
    qkv_bias=st.booleans(),
    fold=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_parts_add_up(n_heads, head_dim, n_layers, length, bias, qkv_bias, fold, dtype):
    model = random_model(
        dtype,
        d_model=n_heads * head_dim,
        n_heads=n_heads,
        n_layers=n_layers,
        bias=bias,
        qkv_bias=qkv_bias,
    )
    tokens = random_tokens(model, length=length)
    found = head_contributions(model, tokens, fold_value_bias=fold)
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    assert found.proof.residual <= limit * max(1.0, found.proof.tolerance / limit)
    assert len(found.proofs) == n_layers
    ones = torch.ones(n_layers, 2, length, dtype=dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(found.share.sum(-1), ones, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.mean_share.sum(-1), ones[:, 0, 0], atol=tolerance, rtol=0)


def test_shares_and_strengths_are_what_the_formulas_say():
    model = random_model()
    tokens = random_tokens(model)
    found = head_contributions(model, tokens)
    for layer in range(3):
        r, a = contributions(model, tokens, layer)
        torch.testing.assert_close(r.sum(2), a)
        share = torch.einsum("bthd,btd->bth", r, a) / a.square().sum(-1, keepdim=True)
        torch.testing.assert_close(found.share[layer], share)
        torch.testing.assert_close(found.strength[layer], r.norm(dim=-1))
        mean = torch.einsum("bthd,btd->h", r, a) / a.square().sum()
        torch.testing.assert_close(found.mean_share[layer], mean)
        gain = weights(model).layers[layer].out.norm(dim=(1, 2)).float()
        torch.testing.assert_close(found.gain[layer], gain)


def test_the_values_bias_can_be_counted_to_no_head():
    model = random_model()
    tokens = random_tokens(model)
    one = weights(model).layers[1]
    seen = run(model, tokens, "z", "attention")
    constant = split(one.value_bias, one.out)  # [H, D]
    r = split(seen["z", 1], one.out) - constant
    found = head_contributions(model, tokens, fold_value_bias=True)
    torch.testing.assert_close(found.strength[1], r.norm(dim=-1))
    a = seen["attention", 1] - one.out_bias - constant.sum(0)
    torch.testing.assert_close(r.sum(2), a)
    assert not torch.allclose(found.strength, head_contributions(model, tokens).strength)


def test_a_layer_that_adds_nothing_has_no_shares():
    model = random_model()
    with torch.no_grad():
        model.blocks[1].attention.out_proj.weight.zero_()
    found = head_contributions(model, random_tokens(model))
    assert not found.share[1].any()
    assert not found.strength[1].any()


def test_a_split_that_does_not_add_up_shows_nothing(monkeypatch):
    model = random_model()
    whole = module.weights

    def wrong(given):
        found = whole(given)
        found.layers[1].out.mul_(1 + 1e-9)
        return found

    monkeypatch.setattr(module, "weights", wrong)
    with torch.no_grad():
        copy = random_model()
        seen = run(copy, random_tokens(copy), "z", "attention")
        monkeypatch.setattr(module, "run", lambda *arguments, **options: seen)
    with pytest.raises(
        ClearheadError, match=r"the proof failed: sum of parts − whole: .* \(fp64\)"
    ):
        head_contributions(model, random_tokens(model))


def test_the_trap_is_another_quantity():
    """A slice of the output's columns is not a head's part: every column mixes all heads."""
    model = random_model(d_model=96, n_heads=12)
    tokens = random_tokens(model)
    r, a = contributions(model, tokens, 0)
    slices = torch.zeros_like(r)
    for head in range(12):
        slices[:, :, head, head * 8 : head * 8 + 8] = a[:, :, head * 8 : head * 8 + 8]
    torch.testing.assert_close(slices.sum(2), a)  # it adds up, too: that is the trap
    cosine = torch.cosine_similarity(slices, r, dim=-1)
    assert cosine.mean().abs() < 0.3


@pytest.mark.parametrize("position", [0, 4, -1])
def test_sources_add_up_to_the_head(position):
    model = random_model()
    tokens = random_tokens(model, batch=1)
    found = source_tokens(model, tokens, position=position)
    row = position % 11
    assert found.position == row
    seen = run(model, tokens, "q", "k", "v", "z")
    for layer in range(3):
        alpha = patterns(seen["q", layer], seen["k", layer])[0, :, row]  # [H, T]
        moved = torch.einsum("ht,thk->thk", alpha, seen["v", layer][0])
        parts = split(moved, weights(model).layers[layer].out)  # [T, H, D]
        r = split(seen["z", layer], weights(model).layers[layer].out)[0, row]
        torch.testing.assert_close(parts.sum(0), r)
        torch.testing.assert_close(found.strength[layer], parts.norm(dim=-1).T)
        torch.testing.assert_close(found.attention[layer], alpha)
    assert not found.attention[:, :, row + 1 :].any()
    some = source_tokens(model, tokens, position=position, layers=[2], heads=[1])
    torch.testing.assert_close(some.strength[0, 0], found.strength[2, 1])


def test_sources_on_average_are_the_mean_over_the_tokens(monkeypatch):
    monkeypatch.setattr(sources_module, "_ROWS", 4)
    model = random_model()
    tokens = random_tokens(model, batch=1)
    each = [source_tokens(model, tokens, position=at) for at in range(11)]
    found = source_tokens(model, tokens)
    assert found.position is None
    for name in ("attention", "strength"):
        mean = torch.stack([getattr(one, name) for one in each]).mean(0)
        torch.testing.assert_close(getattr(found, name), mean)


def test_pairs_are_what_the_formulas_say():
    model = random_model()
    tokens = random_tokens(model)
    found = head_pairs(model, tokens)
    for layer in range(3):
        r, a = contributions(model, tokens, layer)
        flat = r.flatten(0, 1)  # [N, H, D]
        gram = torch.einsum("nhd,nkd->hk", flat, flat) / len(flat)
        torch.testing.assert_close(found.gram[layer], gram)
        torch.testing.assert_close(found.gram[layer].sum(), a.square().sum(-1).mean())
        norm = gram.diagonal().sqrt()
        torch.testing.assert_close(found.cosine[layer], gram / norm / norm[:, None])
        centred = flat - flat.mean(0)
        gram = torch.einsum("nhd,nkd->hk", centred, centred)
        norm = gram.diagonal().sqrt()
        torch.testing.assert_close(found.centred[layer], gram / norm / norm[:, None])
        lost = 1 - a.square().sum(-1) / r.norm(dim=-1).sum(-1).square()
        torch.testing.assert_close(found.cancellation[layer], lost.mean())


def test_heads_that_say_the_opposite_cancel():
    model = random_model(n_heads=2)
    with torch.no_grad():
        for layer in model.blocks:
            qkv, out = layer.attention.qkv, layer.attention.out_proj
            for part in (qkv.weight, qkv.bias):
                halves = part.unflatten(0, (3, 2, 12))
                halves[:, 1] = halves[:, 0]
            out.weight[:, 12:] = -out.weight[:, :12]
    found = head_pairs(model, random_tokens(model))
    torch.testing.assert_close(found.cosine[:, 0, 1], -torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found.cancellation, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: head_contributions(m, t, layers=[3]), "there is no layer 3; the model has 3"),
        (lambda m, t: source_tokens(m, t, heads=[3]), "there is no head 3; a layer has 3"),
        (lambda m, t: source_tokens(m, t, position=11), "there is no token 11; the text has 11"),
        (lambda m, t: source_tokens(m, t, position=-12), "there is no token -12"),
    ],
)
def test_mistakes(call, message):
    model = random_model()
    with pytest.raises(ClearheadError, match=message):
        call(model, random_tokens(model, batch=1))


def test_results_become_tables_and_documents():
    model = random_model()
    found = head_contributions(model, random_tokens(model))
    table = found.to_pandas()
    assert list(table.columns) == ["share", "strength", "gain", "mean_share"]
    assert table.index.names == ["layer", "text", "token", "head"]
    assert len(table) == 3 * 2 * 11 * 3
    assert table.loc[(2, 1, 4, 0), "share"] == found.share[2, 1, 4, 0]
    assert table.loc[(2, 1, 4, 0), "gain"] == float(found.gain[2, 0])
    document = found.to_json()
    assert document["share"]["axes"] == ["layer", "text", "token", "head"]
    assert document["share"]["values"][2][1][4][0] == float(found.share[2, 1, 4, 0])
    assert document["proof"]["claim"] == "sum of parts − whole"
    assert document["proof"]["dtype"] == "fp64"
