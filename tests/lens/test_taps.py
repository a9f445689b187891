"""Observing changes nothing, shows the model's own numbers, and says what it cannot show."""

import pytest
import torch
from random_model import random_model, random_tokens
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead.errors import ClearheadError
from clearhead.lens.taps import POINTS, observe, patterns, run
from clearhead.model import KVCache


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_outputs_are_bit_for_bit_the_same(dtype):
    model = random_model(dtype)
    tokens = random_tokens(model)
    before = model(tokens)
    with observe(model, *POINTS):
        seen = model(tokens)
    assert torch.equal(before, seen)
    assert torch.equal(before, model(tokens))


def test_what_is_seen_is_what_the_block_computes():
    model = random_model()
    tokens = random_tokens(model)
    seen = run(model, tokens, *POINTS)
    for layer, block in enumerate(model.blocks):
        pre, mid, post = seen["pre", layer], seen["mid", layer], seen["post", layer]
        assert torch.equal(mid, pre + seen["attention", layer])
        assert torch.equal(post, mid + seen["mlp", layer])
        assert torch.equal(seen["attention", layer], block.attention(block.norm_1(pre)))
        weights = patterns(seen["q", layer], seen["k", layer])  # [B, H, T, T]
        rebuilt = torch.einsum("bhts,bshk->bthk", weights, seen["v", layer])
        torch.testing.assert_close(rebuilt, seen["z", layer], atol=1e-12, rtol=1e-12)
        if layer:
            assert torch.equal(pre, seen["post", layer - 1])
    assert torch.equal(model.head(seen["final", 0]), model(tokens))


def test_a_text_seen_through_the_cache_is_the_text_seen_at_once():
    model = random_model()
    tokens = random_tokens(model)
    whole = run(model, tokens, "z", "k", "post")
    cache = KVCache(model.config, len(tokens), dtype=torch.float64)
    with torch.no_grad(), observe(model, "z", "k", "post") as seen:
        model(tokens[:, :5], cache)
        for at in range(5, tokens.shape[1]):
            model(tokens[:, at : at + 1], cache)
    for point in ("z", "k", "post"):
        for layer in range(3):
            torch.testing.assert_close(seen[point, layer], whole[point, layer])


def test_only_the_layers_asked_for_are_kept():
    model = random_model()
    seen = run(model, random_tokens(model), "z", layers=[1])
    assert seen["z", 1].shape == (2, 11, 3, 8)
    with pytest.raises(ClearheadError, match="nothing was seen at 'z' of layer 0"):
        seen["z", 0]
    with pytest.raises(ClearheadError, match="nothing was seen at 'q' of layer 1"):
        seen["q", 1]


def test_passes_of_different_texts_are_not_joined():
    model = random_model()
    with torch.no_grad(), observe(model, "z") as seen:
        model(random_tokens(model, batch=2))
        model(random_tokens(model, batch=3))
        with pytest.raises(ClearheadError, match=r"different batches; call clear\(\)"):
            seen["z", 0]
        seen.clear()
        model(random_tokens(model, batch=3))
        assert len(seen["z", 0]) == 3


def test_nothing_stays_behind_after_an_exception():
    model = random_model()
    with pytest.raises(ZeroDivisionError), observe(model, *POINTS):
        _ = 1 / 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_compiled_model_says_that_it_cannot_be_observed():
    model = random_model()
    compiled = torch.compile(model, backend="eager")
    with (
        pytest.raises(ClearheadError, match="give the model that was compiled"),
        observe(compiled, "z"),
    ):
        pass


def test_blocks_compiled_in_place_are_observed_uncompiled():
    model = random_model()
    tokens = random_tokens(model)
    expected = run(model, tokens, "z")["z", 1]
    calls = []

    def compiled(block):
        def call(*arguments):
            calls.append(block)
            return block.forward(*arguments)

        return call

    for block in model.blocks:  # where block.compile() leaves what it made
        block._compiled_call_impl = compiled(block)
    with torch.no_grad():
        model(tokens)
        assert len(calls) == 3
        torch.testing.assert_close(run(model, tokens, "z")["z", 1], expected)
        assert len(calls) == 3
        model(tokens)
        assert len(calls) == 6


def test_training_mode_is_kept():
    model = random_model().train()
    run(model, random_tokens(model), "z")
    assert model.training


@pytest.mark.parametrize(
    ("points", "layers", "message"),
    [
        (("y",), None, "there is no point 'y'; valid: pre, q, k, v, z"),
        (("z",), [3], "there is no layer 3; the model has 3, from 0"),
        (("z",), [-1], "there is no layer -1"),
    ],
)
def test_mistakes(points, layers, message):
    model = random_model()
    with pytest.raises(ClearheadError, match=message):
        run(model, random_tokens(model), *points, layers=layers)


def test_texts_that_do_not_fit():
    model = random_model()
    with pytest.raises(ClearheadError, match="the text is empty"):
        run(model, torch.zeros(1, 0, dtype=torch.int64), "z")
    with pytest.raises(ClearheadError, match="30 tokens are 6 more than the context of 24"):
        run(model, random_tokens(model, length=30), "z")


def test_patterns_are_those_of_transformers():
    config = GPT2Config(
        vocab_size=61, n_positions=24, n_embd=24, n_head=3, n_layer=2, attn_implementation="eager"
    )
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(config).double().eval()
    tokens = random_tokens(random_model())
    attentions = theirs(tokens, output_attentions=True).attentions
    hidden = theirs(tokens, output_hidden_states=True).hidden_states
    for layer, expected in enumerate(attentions):
        block = theirs.transformer.h[layer]
        qkv = block.attn.c_attn(block.ln_1(hidden[layer])).view(2, 11, 3, 3, 8)
        query, key, _ = qkv.unbind(2)
        found = patterns(query, key)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
        some = patterns(query, key, heads=[2, 0], rows=[3, 10])
        torch.testing.assert_close(some, expected[:, [2, 0]][:, :, [3, 10]], atol=1e-12, rtol=1e-9)
    with pytest.raises(ClearheadError, match="there is no head 3; a layer has 3"):
        patterns(query, key, heads=[3])
    with pytest.raises(ClearheadError, match="no such row; the text has 11 tokens"):
        patterns(query, key, rows=[11])
