"""Logit lens and direct attribution are TransformerLens's, on the same random GPT-2.

TransformerLens 4 wraps transformers' own GPT-2 in a `TransformerBridge`; its `HookedTransformer` is
gone. Where the definitions differ:

- Without `fold_ln` its `logit_attrs` leaves γ of the last LayerNorm out. There the test multiplies
  its stack by γ; elsewhere γ is folded into the unembedding, as its own tool demands.
- Whatever it does to the weights rounds them to float32; after that these agree to 1e-5 only.
- It does not count the constant ⟨β, W_U[v]⟩, and has no unfrozen effect.
- b_V is part of the heads on raw weights, as with us, and part of b_O after `fold_value_biases`, as
  with our `fold_value_bias`. But with `fold_ln`, its default and that of published numbers, it has
  put β W_V of the LayerNorm before the attention into b_V first, and that leaves the heads too.
- Its logit lens tells probabilities in float32.
- `center_unembed` takes the vocabulary's mean off W_U. That changes no difference of two logits; it
  is what our `mean_attribution` splits.
"""

import pytest
import torch
from random_model import random_model, random_tokens
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead.checkpoint.formats.huggingface import TABLE
from clearhead.checkpoint.formats.source import ModelSource, parts
from clearhead.lens.logits import attribution, logit_lens, mean_attribution

pytest.importorskip("transformer_lens")

from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.tools import analysis

EXACT, ROUNDED = {"atol": 1e-10, "rtol": 0}, {"atol": 1e-5, "rtol": 0}
UNCENTRED = {"center_writing_weights": False, "center_unembed": False}
TARGET, VERSUS = 7, 40


@pytest.fixture
def model():
    return random_model(layer_norm_epsilon=1e-3)


def bridge_to(model):
    """Return what wraps the same weights for TransformerLens, to be processed as one likes."""
    shape = model.config
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.context_length,
        n_embd=shape.d_model,
        n_head=shape.n_heads,
        n_layer=shape.n_layers,
        layer_norm_epsilon=shape.layer_norm_epsilon,
        bos_token_id=0,
        eos_token_id=0,
    )
    reference = GPT2LMHeadModel(config).eval().double()
    source = ModelSource(model)
    tensors = {one.theirs[0]: parts(source, one)[0] for one in TABLE.weights(shape)}
    reference.load_state_dict(tensors, strict=False)
    return build_bridge_from_module(reference, "GPT2LMHeadModel", hf_config=reference.config)


def decomposition(cache):
    """Return the residual stream's parts at the last token: embeddings, attention, MLPs, heads."""
    stack, labels = cache.decompose_resid(pos_slice=-1, return_labels=True)
    assert labels[:4] == ["embed", "pos_embed", "0_attn_out", "0_mlp_out"]
    heads = cache.stack_head_results(pos_slice=-1)
    return torch.cat([stack[:2], stack[2::2], stack[3::2], heads])  # [2 + L + L + L·H, 1, D]


def ours(found):
    """Return the same parts' attributions."""
    layers = found.heads.sum(-1) + found.attention_bias
    return torch.cat([found.embedding, layers, found.mlps, found.heads.flatten()])


@torch.no_grad()
@pytest.mark.parametrize("versus", [None, VERSUS])
@pytest.mark.parametrize(
    ("fold", "processing", "near"),
    [
        (False, {"no_processing": True}, EXACT),
        (True, {**UNCENTRED, "fold_ln": False, "fold_value_biases": True}, ROUNDED),
    ],
)
def test_attribution_with_the_layer_norms_as_they_are(model, versus, fold, processing, near):
    bridge = bridge_to(model)
    bridge.enable_compatibility_mode(**processing)
    tokens = random_tokens(model, batch=1)
    logits, cache = bridge.run_with_cache(tokens)
    normed = cache.apply_ln_to_stack(decomposition(cache), pos_slice=-1)[:, 0]
    direction = bridge.W_U[:, TARGET] - (0 if versus is None else bridge.W_U[:, versus])
    found = attribution(model, tokens, TARGET, versus=versus, fold_value_bias=fold)
    torch.testing.assert_close(ours(found), (normed * model.norm.weight) @ direction, **near)
    logit = logits[0, -1, TARGET] - (0 if versus is None else logits[0, -1, versus])
    assert found.logit == pytest.approx(float(logit), abs=near["atol"])


@torch.no_grad()
@pytest.mark.parametrize("versus", [None, VERSUS])
def test_attribution_with_the_layer_norms_folded(model, versus):
    bridge = bridge_to(model)
    bridge.enable_compatibility_mode(**UNCENTRED, fold_value_biases=False)
    tokens = random_tokens(model, batch=1)
    _, cache = bridge.run_with_cache(tokens)
    theirs = cache.logit_attrs(decomposition(cache), TARGET, versus, pos_slice=-1)[:, 0]
    found = attribution(model, tokens, TARGET, versus=versus)
    torch.testing.assert_close(ours(found), theirs, **ROUNDED)


@torch.no_grad()
def test_attribution_as_their_tool_does_it(model):
    """With all its processing: W_O and W_U centred too, which the difference does not see."""
    for block in model.blocks:
        block.norm_1.bias.zero_()  # else it leaves the heads with b_V
    bridge = bridge_to(model)
    bridge.enable_compatibility_mode()
    tokens = random_tokens(model, batch=1)
    theirs = analysis.direct_logit_attribution(bridge, tokens, TARGET, VERSUS, unit="head", pos=4)
    found = attribution(model, tokens, TARGET, versus=VERSUS, position=4, fold_value_bias=True)
    rest = found.logit - found.constant - found.heads.sum()
    expected = torch.cat([found.heads.flatten(), rest[None]])
    torch.testing.assert_close(expected, theirs.attribution[:, 0], **ROUNDED)


@torch.no_grad()
def test_mean_attribution(model):
    bridge = bridge_to(model)
    bridge.enable_compatibility_mode(fold_value_biases=False)
    tokens = random_tokens(model, batch=3)
    _, cache = bridge.run_with_cache(tokens[:, :-1])
    theirs = cache.logit_attrs(cache.stack_head_results(), tokens[:, 1:])  # [L·H, B, T-1]
    found = mean_attribution(model, tokens)
    torch.testing.assert_close(found.heads.flatten(), theirs.mean((1, 2)), **ROUNDED)


@torch.no_grad()
@pytest.mark.parametrize("position", [-1, 4])
def test_logit_lens(model, position):
    bridge = bridge_to(model)
    bridge.enable_compatibility_mode(no_processing=True)
    tokens = random_tokens(model, batch=1)
    _, cache = bridge.run_with_cache(tokens)
    found = logit_lens(model, tokens, position=position, top=4, targets=[TARGET, VERSUS])
    stack = cache.accumulated_resid(apply_ln=True, pos_slice=position)[:, 0]
    logits, ids = (stack @ bridge.W_U).topk(4)
    torch.testing.assert_close(found.top_logits, logits, **EXACT)
    assert found.top_ids.equal(ids)
    theirs = analysis.logit_lens(
        cache, positions=position, targets=[TARGET, VERSUS], return_type="probs"
    ).readout
    probabilities, entropy = theirs.values[:, 0].double(), theirs.entropy[:, 0].double()
    torch.testing.assert_close(found.target_probabilities, probabilities, **ROUNDED)
    torch.testing.assert_close(found.entropy, entropy, **ROUNDED)
    assert found.target_ranks.equal(theirs.target_ranks[:, 0])
