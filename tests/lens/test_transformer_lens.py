"""Circuits and mixing are TransformerLens's, on the same random GPT-2, where it measures the same.

Where the definitions differ:

- Composition: its scores are of its processed weights. There every head's own LayerNorm is folded
  into W_V and W_O is centred, the writer's as well; that is our `fold_writer`. Ours, without it,
  leaves the writer's OV raw, as what it writes does not depend on who reads. Unprocessed, its
  scores leave the LayerNorm out; no setting of ours does. It shows no baseline.
- Copying: it has no function for it, but the eigenvalues of a factored matrix, from which its
  demos take the ratio. They do so on processed weights, which changes the numbers; ours are raw.
- Its head detector divides by the attention of all rows; ours is a mean over the rows that have
  such a token to look back at. It asks for text, for which these tokens stand in.
- It has no modes of a layer's whole W_O and no overlap of heads.
"""

import pytest
import torch
from random_model import random_model, random_tokens
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead.checkpoint.formats.huggingface import TABLE
from clearhead.checkpoint.formats.source import ModelSource, parts
from clearhead.lens.circuits import HEAD_SCORES, KINDS, attention_scores, composition, copying
from clearhead.lens.mixing import mixing_modes
from clearhead.lens.taps import patterns, run

pytest.importorskip("transformer_lens")

from transformer_lens import FactoredMatrix
from transformer_lens.head_detector import detect_head
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.utilities import composition_scores

EXACT, ROUNDED = {"atol": 1e-12, "rtol": 1e-9}, {"atol": 1e-6, "rtol": 1e-5}


@pytest.fixture
def model():
    return random_model(n_layers=4)


@pytest.fixture
def bridge(model):
    """What wraps the same weights for TransformerLens, not processed yet."""
    shape = model.config
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.context_length,
        n_embd=shape.d_model,
        n_head=shape.n_heads,
        n_layer=shape.n_layers,
        bos_token_id=0,
        eos_token_id=0,
    )
    reference = GPT2LMHeadModel(config).eval().double()
    source = ModelSource(model)
    tensors = {one.theirs[0]: parts(source, one)[0] for one in TABLE.weights(shape)}
    reference.load_state_dict(tensors, strict=False)
    return build_bridge_from_module(reference, "GPT2LMHeadModel", hf_config=reference.config)


@torch.no_grad()
def test_composition_with_the_writer_folded_is_that_of_processed_weights(model, bridge):
    bridge.enable_compatibility_mode()
    found = composition(model, fold_writer=True)
    for kind, name in enumerate(KINDS):
        theirs = bridge.all_composition_scores(name).scores  # [L, H, L, H]
        assert theirs.count_nonzero() == 6 * 9  # pairs of layers, pairs of heads
        torch.testing.assert_close(found.score[kind], theirs, **ROUNDED)


@torch.no_grad()
def test_composition_is_that_of_raw_writers_and_processed_readers(model, bridge):
    writers = FactoredMatrix(bridge.W_V.clone(), bridge.W_O.clone())
    raw = bridge.all_composition_scores("K").scores
    bridge.enable_compatibility_mode(center_writing_weights=False)
    readers = {"Q": bridge.QK, "K": bridge.QK.T, "V": bridge.OV}
    found = composition(model)
    earlier = torch.ones(4, 4).triu(1)[:, None, :, None]
    for kind, name in enumerate(KINDS):
        theirs = composition_scores(writers, readers[name]) * earlier
        torch.testing.assert_close(found.score[kind], theirs, **ROUNDED)
    assert (found.score[1] - raw).abs().max() > 0.02  # folding matters here


@torch.no_grad()
def test_copying_is_of_the_eigenvalues_of_their_factored_circuit(model, bridge):
    circuit = bridge.W_E @ bridge.OV @ bridge.W_U  # [L, H, V, V], factored
    eigenvalues = circuit.eigenvalues
    theirs = eigenvalues.sum(-1).real / eigenvalues.abs().sum(-1)
    torch.testing.assert_close(copying(model).copying, theirs, **EXACT)


@torch.no_grad()
def test_mixing_modes_are_their_singular_values(model, bridge):
    d_model = model.config.d_model
    whole = FactoredMatrix(bridge.W_O.flatten(1, 2), torch.eye(d_model, dtype=torch.float64))
    found = mixing_modes(model)
    torch.testing.assert_close(found.singular, whole.S, **EXACT)
    blocks = whole.U.unflatten(1, (3, -1))  # [L, H, K, modes]
    torch.testing.assert_close(found.mass, blocks.square().sum(2).mT, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.gain, bridge.W_O.norm(dim=(2, 3)), **EXACT)


@torch.no_grad()
def test_patterns(model, bridge):
    tokens = random_tokens(model)
    _, cache = bridge.run_with_cache(tokens)
    seen = run(model, tokens, "q", "k", "z")
    for layer in range(4):
        theirs = cache["pattern", layer]
        found = patterns(seen["q", layer], seen["k", layer])
        torch.testing.assert_close(found, theirs, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(seen["z", layer], cache["z", layer], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_attention_scores_are_their_head_detectors(model, bridge, monkeypatch):
    drawn = torch.randperm(60, generator=torch.Generator().manual_seed(5))[:11]
    tokens = torch.cat([torch.tensor([60]), drawn, drawn])[None]
    monkeypatch.setattr(bridge, "to_tokens", lambda _: tokens, raising=False)
    found = attention_scores(model, n_texts=1, seed=5)
    rows = {"induction": 11, "previous": 22, "duplicate": 11}
    names = {"previous": "previous_token_head", "duplicate": "duplicate_token_head"}
    for name in HEAD_SCORES:
        theirs = detect_head(bridge, "", names.get(name, "induction_head"))
        torch.testing.assert_close(
            getattr(found, name), theirs.double() * 23 / rows[name], atol=1e-6, rtol=1e-5
        )
