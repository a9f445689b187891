"""Ablation by restarting is ablation by running the whole model with a hook."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import random_model, random_tokens

from clearhead.errors import ClearheadError
from clearhead.lens import ablate as module
from clearhead.lens.ablate import ablate_heads, causal_pairs, head_means
from clearhead.lens.taps import run


def slow_loss(model, text, changes):
    """Return a text's mean loss with z of some heads replaced, by hooks and the whole model."""
    handles = []
    for layer in {layer for layer, _ in changes}:

        def replace(_, inputs, layer=layer):
            z = inputs[0].clone().unflatten(-1, (model.config.n_heads, -1))
            for (where, head), value in changes.items():
                if where == layer:
                    z[:, :, head] = value
            return (z.flatten(-2),)

        projection = model.blocks[layer].attention.out_proj
        handles.append(projection.register_forward_pre_hook(replace))
    with torch.no_grad():
        logits = model(text[None])[0]
    for handle in handles:
        handle.remove()
    return F.cross_entropy(logits[:-1], text[1:])


def replacements(model, texts, number, how):
    layers, heads = range(model.config.n_layers), range(model.config.n_heads)
    if how == "zero":
        return dict.fromkeys(itertools.product(layers, heads), 0.0)
    if how == "mean":
        seen = run(model, texts, "z")
        return {
            (i, h): seen["z", i][:, :, h].mean((0, 1)) for i, h in itertools.product(layers, heads)
        }
    step = module._Replacement(model, texts, how, seed=0)._step
    seen = run(model, texts, "z")
    other = (number + step) % len(texts)
    assert other != number
    return {(i, h): seen["z", i][other, :, h] for i, h in itertools.product(layers, heads)}


SETS = [((0, 0),), ((2, 1),), ((1, 0), (1, 2)), ((0, 1), (2, 0)), ((2, 2), (1, 1), (0, 0))]


@pytest.mark.parametrize("how", ["mean", "zero", "resample"])
@pytest.mark.parametrize("options", [{}, {"bias": False, "qkv_bias": False}, {"tied_head": False}])
def test_restarting_is_running_the_whole(how, options):
    model = random_model(**options)
    texts = random_tokens(model, batch=3)
    found = ablate_heads(model, texts, SETS, how=how)
    assert found.sets == tuple(SETS)
    for number, text in enumerate(texts):
        values = replacements(model, texts, number, how)
        base = slow_loss(model, text, {})
        for at, heads in enumerate(SETS):
            expected = slow_loss(model, text, {head: values[head] for head in heads}) - base
            assert found.per_text[number, at] == pytest.approx(float(expected), abs=1e-12)
    torch.testing.assert_close(found.delta, found.per_text.mean(0))
    whole = torch.stack([slow_loss(model, text, {}) for text in texts]).mean()
    assert found.loss == pytest.approx(float(whole), abs=1e-12)
    assert found.proof.claim == "restarted run − whole run"


@settings(max_examples=15, deadline=None)
@given(
    n_heads=st.sampled_from([1, 2, 4]),
    n_layers=st.integers(1, 3),
    length=st.integers(2, 20),
    at_once=st.sampled_from([1, 30, 4096]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_all_single_heads(n_heads, n_layers, length, at_once, dtype):
    model = random_model(dtype, d_model=8 * n_heads, n_heads=n_heads, n_layers=n_layers)
    texts = random_tokens(model, batch=2, length=length)
    before, module._TOKENS = module._TOKENS, at_once
    try:
        found = ablate_heads(model, texts, how="zero")
    finally:
        module._TOKENS = before
    assert len(found.sets) == n_layers * n_heads
    grid = found.by_head(n_layers, n_heads)["delta"]
    for layer, head in itertools.product(range(n_layers), range(n_heads)):
        expected = sum(
            slow_loss(model, text, {(layer, head): 0.0}) - slow_loss(model, text, {})
            for text in texts
        )
        limit = 1e-12 if dtype == torch.float64 else 1e-4
        assert grid[layer, head] == pytest.approx(float(expected) / 2, abs=limit)


def test_means_are_those_over_all_tokens():
    model = random_model()
    texts = random_tokens(model, batch=3)
    seen = run(model, texts, "z")
    expected = torch.stack([seen["z", layer].mean((0, 1)) for layer in range(3)])
    torch.testing.assert_close(head_means(model, texts), expected)


def test_an_ablation_that_was_interrupted_goes_on():
    model = random_model()
    texts = random_tokens(model, batch=4)
    rows = []
    whole = ablate_heads(model, texts, SETS, on_text=rows.append)
    assert len(rows) == 4
    later = []
    again = ablate_heads(model, texts, SETS, done=rows[:2], on_text=later.append)
    assert len(later) == 2
    for name in ("delta", "low", "high", "per_text"):
        assert torch.equal(getattr(whole, name), getattr(again, name))


@pytest.mark.parametrize(("batch", "drawn"), [(9, "texts"), (2, "segments")])
def test_intervals(batch, drawn):
    model = random_model()
    found = ablate_heads(model, random_tokens(model, batch=batch), SETS)
    assert found.drawn == drawn
    assert (found.low <= found.delta).all()
    assert (found.delta <= found.high).all()
    assert (found.low < found.high).all()
    again = ablate_heads(model, random_tokens(model, batch=batch), SETS)
    assert torch.equal(found.low, again.low)
    other = ablate_heads(model, random_tokens(model, batch=batch), SETS, seed=1)
    assert not torch.equal(found.low, other.low)


def test_the_interval_is_that_of_the_mean():
    """Over units without spread it has no width; else about 1.96 standard errors on each side."""
    units = torch.full((50, 1), 3.0, dtype=torch.float64)
    low, high = module._bootstrap(units, torch.ones(50).double(), seed=0)
    assert (float(low), float(high)) == (3.0, 3.0)
    units = torch.randn(400, 1, generator=torch.Generator().manual_seed(0)).double()
    low, high = module._bootstrap(units, torch.ones(400).double(), seed=0)
    error = float(units.std() / 20)
    assert float(high - low) == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_pairs_of_heads():
    model = random_model()
    texts = random_tokens(model, batch=2)
    chosen = [(0, 0), (1, 2), (2, 1)]
    found = causal_pairs(model, texts, chosen)
    assert found.pairs == (((0, 0), (1, 2)), ((0, 0), (2, 1)), ((1, 2), (2, 1)))
    alone = ablate_heads(model, texts, [(head,) for head in chosen]).delta
    both = ablate_heads(model, texts, found.pairs).delta
    expected = both - torch.stack([alone[0] + alone[1], alone[0] + alone[2], alone[1] + alone[2]])
    torch.testing.assert_close(found.interaction, expected)


def test_a_backup_is_redundant():
    """Two heads that say the same thing twice too loud: losing either is harmless, both is not."""
    model = random_model(n_layers=1, n_heads=2)
    with torch.no_grad():
        attention = model.blocks[0].attention
        for part in (attention.qkv.weight, attention.qkv.bias):
            halves = part.unflatten(0, (3, 2, 12))
            halves[:, 1] = halves[:, 0]
        attention.out_proj.weight[:, 12:] = attention.out_proj.weight[:, :12]
    texts = random_tokens(model, batch=2)
    found = ablate_heads(model, texts, [((0, 0),), ((0, 1),)], how="zero")
    torch.testing.assert_close(found.delta[0], found.delta[1])


def test_the_model_is_as_it_was_after_an_exception():
    model = random_model(dropout=0.5).train()
    texts = random_tokens(model)

    def stop(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ablate_heads(model, texts, SETS, on_text=stop)
    assert model.training
    assert not any(one._forward_pre_hooks or one._forward_hooks for one in model.modules())
    model.eval()
    plain = ablate_heads(model, texts, SETS)
    assert torch.equal(plain.delta, ablate_heads(model.train(), texts, SETS).delta)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: ablate_heads(m, t, [((3, 0),)]), "there is no layer 3; the model has 3"),
        (lambda m, t: ablate_heads(m, t, [((0, 3),)]), "there is no head 3; a layer has 3"),
        (lambda m, t: ablate_heads(m, t, [()]), "a set of heads to ablate is empty"),
        (lambda m, t: ablate_heads(m, t[:, :1]), "give at least 1 of at least 2"),
        (lambda m, t: ablate_heads(m, t[:0]), "0 texts of 11 tokens"),
        (lambda m, t: ablate_heads(m, t.repeat(1, 3)), "do not fit into the context of 24"),
        (lambda m, t: ablate_heads(m, t[:1], how="resample"), "give at least two texts"),
        (lambda m, t: causal_pairs(m, t, [(0, 0), (0, 0)]), "at least two different heads"),
    ],
)
def test_mistakes(call, message):
    model = random_model()
    with pytest.raises(ClearheadError, match=message):
        call(model, random_tokens(model))
