"""Composition, copying and attention to repetitions, against their literal definitions."""

import json
import math
import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_model import random_model
from safetensors.torch import load_file

from clearhead.errors import ClearheadError
from clearhead.lens import circuits as module
from clearhead.lens.circuits import KINDS, attention_scores, composition, copying
from clearhead.lens.taps import patterns, run
from clearhead.lens.weights import Weights, layer_weights, weights
from clearhead.model import GPT, GPTConfig


def folded(matrix, norm):
    """(I − 11ᵀ/D) diag(γ) W."""
    d_model = len(norm)
    centring = torch.eye(d_model, dtype=norm.dtype) - 1 / d_model
    return centring @ norm.diag() @ matrix


def literal_score(kind, first, writer, second, reader, fold_writer=False):
    """Return the score of two heads with whole D × D matrices."""
    written, out = first.value[writer], first.out[writer]
    read = second.out[reader]
    if fold_writer:
        written = folded(written, first.norm)
        out, read = (one - one.mean(1, keepdim=True) for one in (out, read))
    query, key, value = (
        folded(one[reader], second.norm) for one in (second.query, second.key, second.value)
    )
    ov = written @ out
    whole = {"Q": query @ key.T, "K": key @ query.T, "V": value @ read}[kind]
    return (ov @ whole).norm() / (ov.norm() * whole.norm())


@settings(max_examples=20, deadline=None)
@given(
    n_heads=st.sampled_from([1, 2, 3]),
    head_dim=st.integers(1, 7),
    n_layers=st.integers(1, 3),
    fold_writer=st.booleans(),
    options=st.sampled_from([{}, {"bias": False, "qkv_bias": False}, {"tied_head": False}]),
)
def test_composition_is_the_literal_definition(n_heads, head_dim, n_layers, fold_writer, options):
    d_model = n_heads * head_dim
    if d_model < 3:  # with two dimensions or fewer, the centred ones have one direction at most
        d_model, head_dim = 3 * n_heads, 3
    model = random_model(d_model=d_model, n_heads=n_heads, n_layers=n_layers, **options)
    layers = weights(model).layers
    found = composition(model, fold_writer=fold_writer)
    expected = torch.zeros_like(found.score)
    for kind, first, writer, second, reader in product(
        range(3), range(n_layers), range(n_heads), range(n_layers), range(n_heads)
    ):
        if first < second:
            expected[kind, first, writer, second, reader] = literal_score(
                KINDS[kind], layers[first], writer, layers[second], reader, fold_writer
            )
    torch.testing.assert_close(found.score, expected, atol=1e-12, rtol=1e-10)
    assert found.score.max() <= 1 + 1e-12
    assert (found.proof is None) == (n_layers == 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_composition_in_smaller_types(dtype):
    model = random_model(dtype)
    found = composition(model)
    assert found.score.dtype == torch.float32
    assert found.proof.dtype == "fp32"
    exact = composition(model.double())
    torch.testing.assert_close(found.score, exact.score.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("fold_writer", [False, True])
def test_the_baseline_is_that_of_writers_rotated_at_random(fold_writer):
    """The mean square over all rotations, to a few standard errors; whatever the weights are."""
    model = random_model(d_model=12, n_layers=2)
    first, second = weights(model).layers
    generator = torch.Generator().manual_seed(0)
    around = torch.eye(12, dtype=torch.float64)
    if fold_writer:  # rotate only what a LayerNorm can see: an orthonormal basis around the mean
        around[:, 0] = 1
        around = torch.linalg.qr(around).Q[:, 1:]  # [D, D − 1]
    scores = []
    for _ in range(300):
        draw = torch.randn(2 * around.shape[1:], generator=generator, dtype=torch.float64)
        rotation = torch.linalg.qr(draw).Q
        turned = around @ rotation @ around.T
        given = Weights((replace(first, out=first.out @ turned), second))
        scores.append(composition(given, fold_writer=fold_writer).score[:, 0, :, 1])
    found = composition(model, fold_writer=fold_writer)
    assert found.baseline == pytest.approx((12 - fold_writer) ** -0.5)
    squares = torch.stack(scores).square()  # [300, 3, H, H]
    error = squares.mean((2, 3)).std(0) / math.sqrt(300)
    apart = squares.mean((0, 2, 3)) - found.baseline**2
    assert (apart.abs() < 4 * error).all()
    assert (error < 0.02 * found.baseline**2).all()


def test_a_reader_of_what_a_writer_writes_and_one_of_something_else():
    model = random_model(n_heads=2, n_layers=2)
    first, second = weights(model).layers
    centred = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q
    centred[:, 0] = 1
    basis = torch.linalg.qr(centred).Q[:, 1:]  # [D, 23], all without a mean
    out, key = torch.zeros_like(first.out), torch.zeros_like(second.key)
    out[0], out[1] = basis[:, :12].T, basis[:, :12].T
    key[0] = basis[:, :12] / second.norm[:, None]
    key[1, :, :11] = basis[:, 12:] / second.norm[:, None]
    given = Weights((replace(first, out=out), replace(second, key=key)))
    score = composition(given).score[1, 0, :, 1]  # [writer, reader]
    by_key = composition(given).score[1, 0, 0, 1, 0]
    assert score[:, 1].abs().max() < 1e-12  # orthogonal
    assert score[:, 0].min() > composition(given).baseline
    torch.testing.assert_close(
        by_key, literal_score("K", *[given.layers[0], 0, given.layers[1], 0])
    )


def test_a_head_that_writes_nothing_composes_with_none():
    model = random_model()
    with torch.no_grad():
        model.blocks[0].attention.out_proj.weight[:, 8:16] = 0
        model.blocks[2].norm_1.weight.zero_()
    found = composition(model)
    assert not found.score[:, 0, 1].any()
    assert not found.score[..., 2, :].any()
    assert found.score[:, 0, 0, 1].all()


def test_pairs_are_sorted_and_documents_hold_no_nan():
    model = random_model()
    found = composition(model)
    pairs = found.pairs()
    assert len(pairs) == 3 * 3 * 9  # three kinds, three pairs of layers, nine pairs of heads
    assert [one["score"] for one in pairs] == sorted((one["score"] for one in pairs), reverse=True)
    for one in pairs:
        writer, reader = ([int(part) for part in one[of].split(".")] for of in ("writer", "reader"))
        assert writer[0] < reader[0]
        score = found.score[KINDS.index(one["kind"]), writer[0], writer[1], reader[0], reader[1]]
        assert one["score"] == float(score)
        assert one["baseline"] == found.baseline == 24**-0.5
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["baseline"] == found.baseline
    assert document["score"]["values"][0][1][0] == [
        [0.0] * 3,
        [0.0] * 3,
        found.score[0, 1, 0, 2].tolist(),
    ]
    assert found.to_pandas().index.names == [
        "kind", "writer_layer", "writer_head", "reader_layer", "reader_head",
    ]  # fmt: skip


def test_one_layer_has_no_pairs():
    found = composition(random_model(n_layers=1))
    assert found.pairs() == []
    assert found.proof is None
    assert not found.score.any()


def test_a_fast_way_that_is_wrong_shows_nothing(monkeypatch):
    right = module._scores
    monkeypatch.setattr(module, "_scores", lambda *given: right(*given) * (1 + 1e-9))
    with pytest.raises(ClearheadError, match="the proof failed: K × K products − whole matrices"):
        composition(random_model())


@settings(max_examples=20, deadline=None)
@given(
    n_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.integers(1, 7),
    tied_head=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_copying_is_of_the_eigenvalues_of_the_circuit_through_the_vocabulary(
    n_heads, head_dim, tied_head, dtype
):
    """The literal V × V circuit of each head has the same eigenvalues, and zeros."""
    model = random_model(
        dtype, d_model=n_heads * head_dim, n_heads=n_heads, n_layers=2, tied_head=tied_head
    )
    found = copying(model)
    assert found.copying.abs().max() <= 1 + 1e-5
    exact = weights(model.double())
    for layer, head in product(range(2), range(n_heads)):
        one = exact.layers[layer]
        whole = exact.embedding @ one.value[head] @ one.out[head] @ exact.unembedding.T  # [V, V]
        eigenvalues = torch.linalg.eigvals(whole)
        expected = eigenvalues.real.sum() / eigenvalues.abs().sum()
        tolerance = 1e-6 if dtype == torch.float64 else 1e-2  # V × V brings some rounding, too
        torch.testing.assert_close(
            found.copying[layer, head].double(), expected, atol=tolerance, rtol=0
        )


def test_heads_made_to_copy_and_to_do_the_opposite(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 7)
    model = random_model(n_heads=2, n_layers=2)
    with torch.no_grad():
        for layer, sign in ((0, 1.0), (1, -1.0)):
            attention = model.blocks[layer].attention
            attention.out_proj.weight.copy_(sign * attention.qkv.weight[48:].T)  # W_O = ± W_Vᵀ
        model.blocks[1].attention.out_proj.weight[:, 12:] = 0
    found = copying(model).copying
    expected = torch.tensor([[1.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (("embedding",), r"copying needs the token embedding \(W_E\), which these weights lack"),
        (("unembedding",), r"copying needs the unembedding \(W_U\), which"),
        (("embedding", "unembedding"), r"\(W_E\) and the unembedding \(W_U\).*give a whole model"),
    ],
)
def test_copying_says_what_is_missing(missing, message):
    given = replace(weights(random_model()), **dict.fromkeys(missing))
    with pytest.raises(ClearheadError, match=message):
        copying(given)
    assert composition(given).score.any()


def literal_attention(model, length, seed, bos):
    """Return induction, previous, duplicate from whole patterns of one text, and the text."""
    generator = torch.Generator().manual_seed(seed)
    others = torch.tensor([one for one in range(model.config.vocab_size) if one != bos])
    drawn = others[torch.randperm(len(others), generator=generator)[:length]]
    tokens = torch.cat([torch.tensor([bos]), drawn, drawn])
    seen = run(model, tokens[None], "q", "k")
    scores = []
    for layer in range(model.config.n_layers):
        alpha = patterns(seen["q", layer], seen["k", layer])[0]  # [H, T, T]
        second = range(length + 1, 2 * length + 1)
        induction = torch.stack([alpha[:, row, row - length + 1] for row in second]).mean(0)
        duplicate = torch.stack([alpha[:, row, row - length] for row in second]).mean(0)
        scores.append((induction, alpha.diagonal(-1, 1, 2).mean(-1), duplicate))
    return [torch.stack(column) for column in zip(*scores, strict=True)], tokens


@pytest.mark.parametrize("rows", [128, 5])
@pytest.mark.parametrize("bos", [None, 7])
def test_attention_is_the_mean_over_the_diagonals(monkeypatch, rows, bos):
    monkeypatch.setattr(module, "_ROWS", rows)
    model = random_model()
    found = attention_scores(model, n_texts=1, seed=3, bos=bos)
    assert found.n_random == 11  # (24 − 1) // 2
    expected, tokens = literal_attention(model, 11, 3, 60 if bos is None else bos)
    for name, value in zip(("induction", "previous", "duplicate"), expected, strict=True):
        torch.testing.assert_close(getattr(found, name), value)
    assert len(set(tokens.tolist())) == 12  # none twice, and BOS only before
    assert found.to_json()["n_random"] == 11


def test_attention_is_averaged_over_texts_that_the_seed_decides():
    model = random_model()
    two = attention_scores(model, n_random=5, n_texts=2, seed=1)
    assert two.n_random == 5
    assert torch.equal(
        two.induction, attention_scores(model, n_random=5, n_texts=2, seed=1).induction
    )
    one = attention_scores(model, n_random=5, n_texts=1, seed=1)
    assert not torch.allclose(two.induction, one.induction)
    other = attention_scores(model, n_random=5, n_texts=1, seed=2)
    assert not torch.allclose(one.induction, other.induction)


@settings(max_examples=20, deadline=None)
@given(
    n_heads=st.sampled_from([1, 2, 3]),
    context_length=st.integers(7, 40),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_attention_is_between_0_and_1(n_heads, context_length, bias, dtype):
    model = random_model(
        dtype, n_heads=n_heads, context_length=context_length, bias=bias, qkv_bias=bias
    )
    found = attention_scores(model, n_random=9, n_texts=2)
    assert found.n_random == min(9, (context_length - 1) // 2)
    for name in ("induction", "previous", "duplicate"):
        scores = getattr(found, name)
        assert scores.shape == (3, n_heads)
        assert scores.min() >= 0
        assert scores.max() <= 1 + 1e-6
    assert found.proof.holds


def looking_back(by, length):
    """Return a model of one head that attends to the token a fixed way back.

    Its position embeddings are the unit vectors; the key of a position is the query `by` later. The
    first tokens have none so far back, and attend to all alike.
    """
    context = 2 * length + 1
    config = GPTConfig(
        vocab_size=61, context_length=context, d_model=context, n_heads=1, n_layers=1
    )
    model = GPT(config).double().eval()
    with torch.no_grad():
        model.token_embedding.weight.zero_()
        unit = torch.eye(context, dtype=torch.float64)
        model.position_embedding.weight.copy_(unit)
        model.blocks[0].attention.qkv.weight[:context] = 10 * unit
        model.blocks[0].attention.qkv.weight[context : 2 * context] = unit.roll(by, 0)
    return model


@pytest.mark.parametrize(("back", "name"), [(11, "induction"), (1, "previous"), (12, "duplicate")])
def test_heads_made_to_look_back(back, name):
    found = attention_scores(looking_back(back, 12), n_texts=1)
    assert found.n_random == 12
    for which in ("induction", "previous", "duplicate"):
        score = float(getattr(found, which))
        assert score > 0.99 if which == name else score < 0.15


def test_attention_that_is_not_the_models_shows_nothing(monkeypatch):
    right = module.patterns

    def wrong(query, key, **options):
        return right(query * (1 + 1e-6), key, **options)

    monkeypatch.setattr(module, "patterns", wrong)
    with pytest.raises(ClearheadError, match="the proof failed: attention × values − the heads'"):
        attention_scores(random_model())


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"bos": 61}, {}, "there is no token 61; the vocabulary has 61, from 0"),
        ({"bos": -1}, {}, "there is no token -1"),
        ({"n_texts": 0}, {}, "0 texts of 11 random tokens; give at least 1 of at least 3"),
        ({"n_random": 2}, {}, "4 texts of 2 random tokens"),
        ({}, {"context_length": 6}, "4 texts of 2 random tokens.*into the context of 6"),
        ({}, {"vocab_size": 3}, "4 texts of 2 random tokens.*into the vocabulary of 3"),
    ],
)
def test_mistakes(options, shape, message):
    with pytest.raises(ClearheadError, match=message):
        attention_scores(random_model(**shape), **options)


def test_training_mode_and_weights_are_kept():
    model = random_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    composition(model)
    copying(model)
    attention_scores(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_published_weights():
    """GPT-2 small: its previous-token head 4.11 feeds most into the keys of 5.5 and 6.9."""
    if "CLEARHEAD_DATA" not in os.environ:
        pytest.skip("CLEARHEAD_DATA names no folder with weights/gpt2-124M-partial")
    folder = Path(os.environ["CLEARHEAD_DATA"]) / "weights/gpt2-124M-partial"
    tensors = load_file(folder / "gpt2-124M-partial.safetensors")
    parts = ("attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias")
    layers = [
        layer_weights(
            *(tensors[f"h.{layer}.{part}"] for part in parts), tensors[f"h.{layer}.ln_1.weight"], 12
        )
        for layer in range(12)
    ]
    found = composition(Weights(tuple(layers)))
    pairs = found.pairs()
    for reader in ("5.5", "6.9"):
        into = [one for one in pairs if one["kind"] == "K" and one["reader"] == reader]
        assert [one["writer"] for one in into[:2]] == ["4.11", "4.7"]
        assert into[0]["score"] > 2.5 * found.baseline
    for kind, writer, layer, reader in ((1, 11, 5, 5), (0, 0, 5, 5), (2, 7, 6, 9)):
        expected = literal_score(KINDS[kind], layers[4], writer, layers[layer], reader)
        assert float(found.score[kind, 4, writer, layer, reader]) == pytest.approx(
            float(expected), rel=1e-3
        )
