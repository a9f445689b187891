"""Logit lens and direct attribution: they add up, and equal what the model says by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import random_model, random_tokens

from clearhead.errors import ClearheadError
from clearhead.lens import logits as module
from clearhead.lens.edits import edit
from clearhead.lens.heads import split
from clearhead.lens.logits import attribution, logit_lens, mean_attribution
from clearhead.lens.taps import run
from clearhead.lens.weights import weights

TARGET, VERSUS = 7, 40
SIZES = {
    "n_heads": st.sampled_from([1, 2, 4]),
    "head_dim": st.integers(1, 9),
    "n_layers": st.integers(1, 3),
    "length": st.integers(2, 16),
    "bias": st.booleans(),
    "qkv_bias": st.booleans(),
    "tied_head": st.booleans(),
}


def drawn_model(dtype, n_heads, head_dim, length, seed=0, **options):
    model = random_model(dtype, seed, d_model=n_heads * head_dim, n_heads=n_heads, **options)
    return model, random_tokens(model, batch=1, length=length, seed=seed)


def own_logits(model, tokens):
    with torch.no_grad():
        return model(tokens)  # [B, T, V]


def changed_logits(model, tokens, removed, position=-1):
    """Return the logits of a model whose last residual stream lacks a part at one position."""

    def change(_, given):
        x = given[0].clone()
        x[:, position] -= removed
        return (x,)

    handle = model.norm.register_forward_pre_hook(change)
    try:
        return own_logits(model, tokens)[0, position]
    finally:
        handle.remove()


def frozen_logits(model, tokens, removed, position=-1):
    """Return the same, with a LayerNorm that centres, but divides by what it divided by before."""
    x = run(model, tokens, "post")["post", model.config.n_layers - 1][0, position]
    sigma = (x.var(correction=0) + model.config.layer_norm_epsilon).sqrt()
    left = x - removed
    normed = (left - left.mean()) / sigma * model.norm.weight
    normed = normed if model.norm.bias is None else normed + model.norm.bias
    return (model.head.weight @ normed).detach()


def parts_of(model, tokens, position=-1, fold=False):
    """Return each head's part [L, H, D] and each MLP's [L, D] of one residual stream."""
    seen = run(model, tokens, "z", "mlp")
    heads, mlps = [], []
    for layer, one in enumerate(weights(model).layers):
        z = seen["z", layer][0, position]
        heads.append(split(z - one.value_bias if fold else z, one.out))
        mlps.append(seen["mlp", layer][0, position])
    return torch.stack(heads), torch.stack(mlps)


def total(found):
    parts = (found.embedding, found.heads, found.attention_bias, found.mlps)
    return sum(float(part.double().sum()) for part in parts) + found.constant


@settings(max_examples=60, deadline=None)
@given(
    **SIZES,
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    versus=st.sampled_from([None, VERSUS]),
    fold=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_parts_add_up_to_the_models_logit(dtype, versus, fold, **drawn):
    model, tokens = drawn_model(dtype, **drawn)
    found = attribution(model, tokens, TARGET, versus=versus, fold_value_bias=fold)
    own = own_logits(model, tokens)[0, -1].double()
    logit = float(own[TARGET] - (own[versus] if versus else 0.0))
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    size = max(1.0, float(own.abs().max()))
    assert found.logit == pytest.approx(logit, abs=tolerance * size)
    # Where the LayerNorm divides by little, parts much larger than the logit cancel in it.
    parts = (found.embedding, found.heads, found.attention_bias, found.mlps)
    size = max(1.0, sum(float(part.abs().sum()) for part in parts) + abs(found.constant))
    assert total(found) == pytest.approx(found.logit, abs=tolerance * size)
    assert found.proof.holds
    if not drawn["bias"]:
        assert found.constant == 0
        if not (fold and drawn["qkv_bias"]):
            assert not found.attention_bias.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("versus", [None, VERSUS])
@pytest.mark.parametrize("fold", [False, True])
def test_each_part_is_what_the_logit_loses_without_it(dtype, versus, fold):
    model = random_model(dtype, tied_head=False)
    tokens = random_tokens(model, batch=1)
    found = attribution(model, tokens, TARGET, versus=versus, fold_value_bias=fold)
    heads, mlps = parts_of(model, tokens, fold=fold)

    def logit(logits):
        return float(logits[TARGET] - (logits[versus] if versus else 0.0))

    tolerance = {"abs": 1e-11 if dtype == torch.float64 else 1e-4, "rel": 0}
    before = logit(own_logits(model, tokens)[0, -1])
    assert found.logit == pytest.approx(before, **tolerance)
    assert found.heads.shape == (3, 3)
    for layer in range(3):
        for removed, frozen, unfrozen in [
            *zip(heads[layer], found.heads[layer], found.heads_unfrozen[layer], strict=True),
            (mlps[layer], found.mlps[layer], found.mlps_unfrozen[layer]),
        ]:
            without = logit(frozen_logits(model, tokens, removed))
            assert float(frozen) == pytest.approx(before - without, **tolerance)
            without = logit(changed_logits(model, tokens, removed))
            assert float(unfrozen) == pytest.approx(before - without, **tolerance)
    difference = (found.heads - found.heads_unfrozen).abs()
    assert difference.max() > 1e-2  # freezing matters, so that the two were not confused


def test_unfrozen_is_what_the_formula_says():
    """σ'² = var(x) − 2 cov(x, r) + var(r) + ε, as LENS.md writes it."""
    model = random_model()
    tokens = random_tokens(model, batch=1)
    found = attribution(model, tokens, TARGET)
    x = run(model, tokens, "post")["post", 2][0, -1]
    w = (model.norm.weight * model.head.weight[TARGET]).detach()
    w_centred = w - w.mean()
    constant = float((model.norm.bias * model.head.weight[TARGET]).detach().sum())
    assert found.constant == pytest.approx(constant, abs=1e-12)
    heads, _ = parts_of(model, tokens)
    for layer in range(3):
        for head, r in enumerate(heads[layer]):
            cov = ((x - x.mean()) * (r - r.mean())).mean()
            variance = x.var(correction=0) - 2 * cov + r.var(correction=0) + 1e-5
            left = float((x - r) @ w_centred / variance.sqrt()) + constant
            unfrozen = float(found.heads_unfrozen[layer, head])
            assert unfrozen == pytest.approx(found.logit - left, abs=1e-11)


def test_embeddings_and_biases_are_their_own_parts():
    model = random_model()
    tokens = random_tokens(model, batch=1)
    found = attribution(model, tokens, TARGET, position=4)
    biases = [block.attention.out_proj.bias for block in model.blocks]
    rows = [model.token_embedding.weight[tokens[0, 4]], model.position_embedding.weight[4], *biases]
    before = frozen_logits(model, tokens, torch.zeros(24), position=4)[TARGET]
    found_parts = [*found.embedding, *found.attention_bias]
    for row, part in zip(rows, found_parts, strict=True):
        without = frozen_logits(model, tokens, row.detach(), position=4)[TARGET]
        assert float(part) == pytest.approx(float(before - without), abs=1e-11)


def test_folding_moves_the_values_bias_from_the_heads_to_the_layer():
    model = random_model()
    tokens = random_tokens(model, batch=1)
    plain = attribution(model, tokens, TARGET)
    folded = attribution(model, tokens, TARGET, fold_value_bias=True)
    moved = plain.heads - folded.heads
    torch.testing.assert_close(
        moved.sum(-1), folded.attention_bias - plain.attention_bias, atol=1e-11, rtol=0
    )
    assert moved.abs().min() > 1e-6
    torch.testing.assert_close(folded.mlps, plain.mlps, atol=0, rtol=0)
    bare = random_model(qkv_bias=False)
    one, other = (attribution(bare, tokens, TARGET, fold_value_bias=fold) for fold in (True, False))
    torch.testing.assert_close(one.heads, other.heads, atol=0, rtol=0)


def test_versus_is_the_difference_of_two():
    model = random_model()
    tokens = random_tokens(model, batch=1)
    both = attribution(model, tokens, TARGET, versus=VERSUS)
    one, other = (attribution(model, tokens, token) for token in (TARGET, VERSUS))
    assert (both.target, both.versus, one.versus) == (TARGET, VERSUS, None)
    for name in ("embedding", "heads", "heads_unfrozen", "attention_bias", "mlps", "mlps_unfrozen"):
        difference = getattr(one, name) - getattr(other, name)
        torch.testing.assert_close(getattr(both, name), difference, atol=1e-11, rtol=0)
    assert both.constant == pytest.approx(one.constant - other.constant, abs=1e-12)


@pytest.mark.parametrize("position", [0, 4, -3])
def test_a_position_knows_nothing_of_what_follows(position):
    model = random_model()
    tokens = random_tokens(model, batch=1)
    row = position % 11
    inside = attribution(model, tokens, TARGET, position=position)
    at_end = attribution(model, tokens[:, : row + 1], TARGET)
    assert (inside.position, at_end.position) == (row, row)
    torch.testing.assert_close(inside.heads, at_end.heads, atol=1e-11, rtol=0)
    torch.testing.assert_close(inside.mlps_unfrozen, at_end.mlps_unfrozen, atol=1e-11, rtol=0)
    lens = logit_lens(model, tokens, position=position)
    cut = logit_lens(model, tokens[:, : row + 1])
    assert (lens.position, cut.position) == (row, row)
    torch.testing.assert_close(lens.top_logits, cut.top_logits, atol=1e-11, rtol=0)
    torch.testing.assert_close(lens.entropy, cut.entropy, atol=1e-11, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    **SIZES,
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_the_last_depth_is_the_model(dtype, **drawn):
    model, tokens = drawn_model(dtype, **drawn)
    found = logit_lens(model, tokens, top=61, targets=[TARGET, VERSUS])
    own = own_logits(model, tokens)[0, -1].double()
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    tolerance *= max(1.0, float(own.abs().max()))
    logits = torch.empty(61, dtype=torch.float64)
    logits[found.top_ids[-1]] = found.top_logits[-1].double()
    torch.testing.assert_close(logits, own, atol=tolerance, rtol=0)
    assert found.proof.residual <= tolerance
    depth = drawn["n_layers"] + 1
    assert found.top_ids.shape == (depth, 61)
    assert found.target_ranks.shape == found.target_probabilities.shape == (depth, 2)
    assert found.top_ids.sort().values.equal(torch.arange(61).expand(depth, 61))
    ones = torch.ones(depth, dtype=torch.float64)
    torch.testing.assert_close(found.top_probabilities.double().sum(-1), ones, atol=1e-5, rtol=0)


def test_each_depth_is_the_model_that_stops_there():
    model = random_model(n_layers=4)
    tokens = random_tokens(model, batch=1)
    found = logit_lens(model, tokens, position=6, top=3, targets=[TARGET, VERSUS, TARGET])
    assert found.targets == (TARGET, VERSUS, TARGET)
    blocks = list(model.blocks)
    for depth in range(5):
        short = random_model(n_layers=4)
        short.blocks = torch.nn.ModuleList(blocks[:depth])
        logits = own_logits(short, tokens)[0, 6]
        probabilities = logits.softmax(-1)
        order = logits.argsort(descending=True)
        assert found.top_ids[depth].tolist() == order[:3].tolist()
        for values, wanted in (
            (found.top_logits, logits[order[:3]]),
            (found.top_probabilities, probabilities[order[:3]]),
            (found.target_probabilities, probabilities[[TARGET, VERSUS, TARGET]]),
            (found.entropy, torch.distributions.Categorical(logits=logits).entropy()),
        ):
            torch.testing.assert_close(values[depth], wanted, atol=1e-11, rtol=0)
        ranks = [order.tolist().index(target) for target in (TARGET, VERSUS, TARGET)]
        assert found.target_ranks[depth].tolist() == ranks


def test_the_vocabulary_in_pieces_is_the_same(monkeypatch):
    model = random_model()
    tokens = random_tokens(model, batch=1)
    whole = logit_lens(model, tokens)
    monkeypatch.setattr(module, "_CHUNK", 7)
    pieces = logit_lens(model, tokens)
    assert pieces.top_ids.equal(whole.top_ids)
    torch.testing.assert_close(pieces.top_logits, whole.top_logits, atol=1e-12, rtol=0)


def test_a_small_vocabulary_and_no_targets():
    model = random_model(vocab_size=3)
    found = logit_lens(model, random_tokens(model, batch=1))
    assert found.top_ids.shape == (4, 3)
    assert found.target_ranks.shape == found.target_probabilities.shape == (4, 0)
    assert found.to_json()["target_ranks"]["values"] == [[], [], [], []]


@settings(max_examples=40, deadline=None)
@given(
    **SIZES,
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    batch=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_the_mean_is_of_the_true_tokens_logits_above_the_average(dtype, batch, **drawn):
    model, _ = drawn_model(dtype, **drawn)
    tokens = random_tokens(model, batch, drawn["length"])
    found = mean_attribution(model, tokens)
    logits = own_logits(model, tokens)[:, :-1].double()
    centred = logits.gather(-1, tokens[:, 1:, None])[..., 0] - logits.mean(-1)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    size = max(1.0, float(logits.abs().max()))
    assert found.logit == pytest.approx(float(centred.mean()), abs=tolerance * size)
    assert found.heads.shape == (drawn["n_layers"], drawn["n_heads"])
    assert found.proof.holds


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_mean_is_that_of_single_attributions(dtype):
    model = random_model(dtype, tied_head=False, vocab_size=5)
    tokens = random_tokens(model, batch=2, length=4)
    places = [(text, at) for text in range(2) for at in range(3)]
    heads = []
    for text, at in places:
        one = tokens[text : text + 1]
        every = [attribution(model, one, token, position=at).heads for token in range(5)]
        heads.append(every[int(tokens[text, at + 1])] - torch.stack(every).mean(0))
    found = mean_attribution(model, tokens)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found.heads, torch.stack(heads).mean(0), atol=tolerance, rtol=0)


def test_many_texts_go_through_in_chunks(monkeypatch):
    model = random_model()
    tokens = random_tokens(model, batch=5)
    whole = mean_attribution(model, tokens)
    monkeypatch.setattr(module, "_TOKENS", 22)
    chunks = mean_attribution(model, tokens)
    torch.testing.assert_close(chunks.heads, whole.heads, atol=1e-12, rtol=0)
    assert chunks.logit == pytest.approx(whole.logit, abs=1e-12)
    monkeypatch.setattr(module, "_TOKENS", 1)
    torch.testing.assert_close(
        mean_attribution(model, tokens).heads, whole.heads, atol=1e-12, rtol=0
    )


def test_a_text_may_be_one_token_longer_than_the_context_where_only_targets_follow():
    model = random_model(context_length=10)
    tokens = random_tokens(model, length=11)
    logits = own_logits(model, tokens[:, :-1])
    centred = logits.gather(-1, tokens[:, 1:, None])[..., 0] - logits.mean(-1)
    found = mean_attribution(model, tokens)
    assert found.logit == pytest.approx(float(centred.mean()), abs=1e-11)


def test_a_part_that_is_wrong_fails_the_proof(monkeypatch):
    """The proof holds the parts against the model, not against themselves."""
    model = random_model()
    tokens = random_tokens(model)

    def spoiled(given):
        found = weights(given)
        layers = [replace(one, out_bias=1.001 * one.out_bias) for one in found.layers]
        return replace(found, layers=tuple(layers))

    monkeypatch.setattr(module, "weights", spoiled)
    with pytest.raises(ClearheadError, match="the proof failed: sum of parts − logit"):
        attribution(model, tokens[:1], TARGET)
    with pytest.raises(ClearheadError, match="the proof failed: sum of parts − logit"):
        mean_attribution(model, tokens)
    monkeypatch.setattr(module, "final_norm", lambda model, x: 1.001 * model.norm(x))
    with pytest.raises(ClearheadError, match="the proof failed: last depth − the model's logits"):
        logit_lens(model, tokens[:1])


def test_an_edited_model_is_split_as_it_is_edited():
    model = random_model()
    tokens = random_tokens(model, batch=1)
    plain = attribution(model, tokens, TARGET)
    with edit(model, 1, lambda z: z * torch.tensor([0.0, -1.0, 1.0])[:, None]):
        found = attribution(model, tokens, TARGET)
        own = own_logits(model, tokens)[0, -1]
        assert found.logit == pytest.approx(float(own[TARGET]), abs=1e-11)
        assert logit_lens(model, tokens).top_ids[-1, 0] == own.argmax()
    assert found.heads[1, 0] == found.heads_unfrozen[1, 0] == 0
    sigma = plain.heads[1, 2] / found.heads[1, 2]  # layers below are as before, up to the division
    torch.testing.assert_close(found.heads[0] * sigma, plain.heads[0], atol=1e-11, rtol=0)
    torch.testing.assert_close(found.heads[1, 1] * -sigma, plain.heads[1, 1], atol=1e-11, rtol=0)


def test_nothing_is_left_behind():
    model = random_model().train()
    tokens = random_tokens(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    logit_lens(model, tokens[:1])
    attribution(model, tokens[:1], TARGET)
    found = mean_attribution(model, tokens)
    assert model.training
    assert not any(parts._forward_hooks or parts._forward_pre_hooks for parts in model.modules())
    assert all(map(torch.equal, before, model.parameters()))
    assert not found.heads.requires_grad


def test_results_tell_their_axes_and_their_proof():
    model = random_model(torch.float32)
    tokens = random_tokens(model, batch=1)
    document = attribution(model, tokens, TARGET).to_json()
    assert document["heads"]["axes"] == document["heads_unfrozen"]["axes"] == ["layer", "head"]
    assert document["proof"]["claim"] == "sum of parts − logit"
    assert document["proof"]["dtype"] == "fp32"
    assert logit_lens(model, tokens).to_json()["entropy"]["unit"] == "nats"


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda m, t: attribution(m, t, 61), "no token id 61; the vocabulary has 61, from 0"),
        (lambda m, t: attribution(m, t, -1), "no token id -1; the vocabulary has 61"),
        (lambda m, t: attribution(m, t, 0, versus=99), "no token id 99; the vocabulary has 61"),
        (lambda m, t: attribution(m, t, 5, versus=5), "target and versus are the same token, 5"),
        (lambda m, t: attribution(m, t, 5, position=11), "no token 11; the text has 11"),
        (lambda m, t: logit_lens(m, t, position=-12), "no token -12; the text has 11"),
        (lambda m, t: logit_lens(m, t, targets=[3, 61]), "no token id 61; the vocabulary has 61"),
        (lambda m, t: logit_lens(m, t, top=0), "top is 0; ask for at least 1"),
        (lambda m, t: logit_lens(m, t.repeat(1, 3)), "33 tokens are 9 more than the context"),
        (lambda m, t: attribution(m, t.repeat(1, 3), 0), "33 tokens are 9 more than the context"),
        (lambda m, t: mean_attribution(m, t.repeat(1, 3)), "32 tokens are 8 more"),
        (lambda m, t: mean_attribution(m, t[:, :1]), "no token has a next one"),
        (lambda m, t: mean_attribution(m, t[:0]), "no token has a next one"),
    ],
)
def test_mistakes(measure, message):
    model = random_model()
    with pytest.raises(ClearheadError, match=message):
        measure(model, random_tokens(model, batch=1))
