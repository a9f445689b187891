"""Edits change what they say, compose, and are undone exactly."""

import pytest
import torch
from random_model import random_model, random_tokens

from clearhead.errors import ClearheadError
from clearhead.lens.edits import (
    edit,
    identity_projection,
    mix_heads,
    replace_head,
    scale_heads,
    swap_heads,
)
from clearhead.lens.taps import observe


def attention_of(model, tokens, layer=1):
    with torch.no_grad(), observe(model, "attention", "z", layers=[layer]) as seen:
        model(tokens)
    return seen["attention", layer], seen["z", layer]


def by_weights(model, z, layer=1):
    projection = model.blocks[layer].attention.out_proj
    return projection(z.flatten(-2)).detach()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda m: scale_heads(m, 1, {0: 0.5, 2: -1.0}),
            lambda z: z * z.new_tensor([[0.5], [1], [-1]]),
        ),
        (lambda m: scale_heads(m, 1, {1: 0.0}), lambda z: z * z.new_tensor([[1.0], [0], [1]])),
        (lambda m: swap_heads(m, 1, 0, 2), lambda z: z[:, :, [2, 1, 0]]),
        (
            lambda m: mix_heads(m, 1, {0: {1: 1.0, 2: -1.0}}),
            lambda z: torch.stack([z[:, :, 1] - z[:, :, 2], z[:, :, 1], z[:, :, 2]], 2),
        ),
        (
            lambda m: replace_head(m, 1, 2, torch.arange(8.0)),
            lambda z: torch.cat([z[:, :, :2], torch.arange(8.0).to(z).expand(2, 11, 1, 8)], 2),
        ),
        (lambda m: edit(m, 1, lambda z: z + 1), lambda z: z + 1),
    ],
)
def test_each_edit_is_its_formula(change, expected):
    model = random_model()
    tokens = random_tokens(model)
    before = model(tokens)
    _, z = attention_of(model, tokens)
    with change(model):
        output, _ = attention_of(model, tokens)
        assert not torch.equal(model(tokens), before)
    torch.testing.assert_close(output, by_weights(model, expected(z)))
    assert torch.equal(model(tokens), before)


def test_the_projection_as_the_identity():
    model = random_model()
    tokens = random_tokens(model)
    before = model(tokens)
    _, z = attention_of(model, tokens)
    with identity_projection(model, 1):
        output, _ = attention_of(model, tokens)
    torch.testing.assert_close(output, z.flatten(-2) + model.blocks[1].attention.out_proj.bias)
    assert torch.equal(model(tokens), before)


def test_nested_edits_follow_one_another():
    model = random_model()
    tokens = random_tokens(model)
    _, z = attention_of(model, tokens)
    with scale_heads(model, 1, {0: 3.0}), swap_heads(model, 1, 0, 1):
        output, _ = attention_of(model, tokens)
    expected = torch.stack([z[:, :, 1], 3 * z[:, :, 0], z[:, :, 2]], 2)
    torch.testing.assert_close(output, by_weights(model, expected))


def test_an_exception_undoes_them_too():
    model = random_model()
    tokens = random_tokens(model)
    before, state = model(tokens), {k: v.clone() for k, v in model.state_dict().items()}
    with (
        pytest.raises(ZeroDivisionError),
        scale_heads(model, 0, {0: 0.0}),
        identity_projection(model, 1),
    ):
        _ = 1 / 0
    assert torch.equal(model(tokens), before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: scale_heads(m, 3, {0: 1.0}), "there is no layer 3"),
        (lambda m: scale_heads(m, 0, {3: 1.0}), "there is no head 3; a layer has 3"),
        (lambda m: mix_heads(m, 0, {0: {5: 1.0}}), "there is no head 5"),
        (lambda m: swap_heads(m, 0, -1, 1), "there is no head -1"),
        (lambda m: replace_head(m, 0, 9, torch.zeros(8)), "there is no head 9"),
        (lambda m: identity_projection(m, 8), "there is no layer 8"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(ClearheadError, match=message), change(random_model()):
        pass
