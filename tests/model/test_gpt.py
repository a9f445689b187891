"""The decoder's parts, and the first notebook's five faults kept out.

The five: a key that its dictionary lacks (test_gpt_config.py), an attribute that was never set,
scores divided by head_dim, dropout that was never applied, and a [T, T] mask kept per layer.
"""

import math
from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig, KVCache
from clearhead.model.attention import Attention
from clearhead.model.gpt import Block

SMALL = GPTConfig(vocab_size=50, context_length=13, d_model=24, n_heads=3, n_layers=2, dropout=0.4)


def attention_by_hand(attention: Attention, x: Tensor, scale: float) -> Tensor:
    """Vaswani et al. 2017, one head and one token after the other."""
    d_model, head_dim = x.shape[-1], x.shape[-1] // attention.n_heads
    query, key, value = attention.qkv(x).split(d_model, dim=-1)
    z = torch.zeros_like(x)
    for head in range(attention.n_heads):
        columns = slice(head * head_dim, (head + 1) * head_dim)
        for place in range(x.shape[1]):
            past = slice(0, place + 1)
            scores = (query[:, place : place + 1, columns] * key[:, past, columns]).sum(-1) * scale
            shares = scores.softmax(-1)[..., None]
            z[:, place, columns] = (shares * value[:, past, columns]).sum(1)
    return attention.out_proj(z)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 9, 150])
def test_scores_are_divided_by_the_square_root_of_head_dim(length: int) -> None:
    torch.manual_seed(0)
    attention = Attention(SMALL, layer=0).eval()
    x = 3 * torch.randn(2, length, SMALL.d_model)
    ours = attention(x)
    right = attention_by_hand(attention, x, 1 / math.sqrt(SMALL.head_dim))
    wrong = attention_by_hand(attention, x, 1 / SMALL.head_dim)
    torch.testing.assert_close(ours, right, atol=1e-5, rtol=1e-5)
    if length > 1:
        assert (ours - wrong).abs().max() > 0.01


def check_dropped(values: Tensor, kept: Tensor, rate: float) -> None:
    """Each value is 0, with the probability `rate`, or what it was, scaled up."""
    dropped = values == 0
    assert dropped.float().mean().item() == pytest.approx(rate, abs=0.03)
    torch.testing.assert_close(values[~dropped], (kept / (1 - rate))[~dropped])


@torch.no_grad()
def test_dropout_of_the_embedding() -> None:
    torch.manual_seed(0)
    model = GPT(SMALL)
    inputs: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    token_ids = torch.randint(50, (40, 13))
    model.eval()(token_ids)
    model.train()(token_ids)
    check_dropped(inputs[1], inputs[0], SMALL.dropout)


@torch.no_grad()
def test_dropout_of_the_attention_weights() -> None:
    torch.manual_seed(0)
    attention = Attention(SMALL, layer=0)
    torch.nn.init.eye_(attention.out_proj.weight)
    torch.nn.init.zeros_(attention.out_proj.bias)
    x = torch.randn(400, 1, SMALL.d_model)  # one token each: its one attention weight is 1
    attention.eval()
    kept = attention(x).unflatten(-1, (SMALL.n_heads, SMALL.head_dim))
    assert torch.equal(attention(x), kept.flatten(-2))
    values = attention.train()(x).unflatten(-1, (SMALL.n_heads, SMALL.head_dim))
    check_dropped(values, kept, SMALL.dropout)
    dropped = values == 0
    assert torch.equal(dropped.any(-1), dropped.all(-1))  # whole heads: it is the weight that fell


@torch.no_grad()
@pytest.mark.parametrize("writer", ["attention.out_proj", "mlp.down"])
def test_dropout_of_the_residual_updates(writer: str) -> None:
    torch.manual_seed(0)
    block = Block(SMALL, layer=0)
    for parameter in block.parameters():
        parameter.zero_()
    block.get_submodule(writer).bias.fill_(1.0)  # its update is all ones, the other's zeros
    x = torch.zeros(40, 13, SMALL.d_model)
    assert torch.equal(block.eval()(x), torch.ones_like(x))
    check_dropped(block.train()(x), torch.ones_like(x), SMALL.dropout)


@torch.no_grad()
def test_no_dropout_in_evaluation_nor_at_rate_0() -> None:
    torch.manual_seed(0)
    token_ids = torch.randint(50, (4, 13))
    model = GPT(SMALL).eval()
    assert torch.equal(model(token_ids), model(token_ids))
    assert not torch.equal(model.train()(token_ids), model(token_ids))
    without = GPT(replace(SMALL, dropout=0.0))
    without.load_state_dict(model.state_dict())
    assert torch.equal(without.train()(token_ids), model.eval()(token_ids))


def test_nothing_is_kept_but_the_weights() -> None:
    model = GPT(SMALL)
    assert list(model.buffers()) == []
    names = {name for name, _ in model.named_parameters()}
    assert set(model.state_dict()) == names | {"head.weight"}
    for name, tensor in model.state_dict().items():
        assert tuple(tensor.shape[-2:]) != (SMALL.context_length, SMALL.context_length), name


def test_the_initialisation_is_gpt2s() -> None:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=500, context_length=300, d_model=256, n_heads=4, n_layers=3)
    for name, parameter in GPT(replace(config, tied_head=False)).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert (parameter == 1).all()
        else:
            writes = name.endswith(("out_proj.weight", "down.weight"))
            std = 0.02 / math.sqrt(2 * 3) if writes else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.02), name
            assert abs(parameter.mean().item()) < std / 50, name


def test_the_options_leave_parameters_out() -> None:
    everything = {name for name, _ in GPT(SMALL).named_parameters()}
    model = GPT(SMALL)
    assert model.head.weight.data_ptr() == model.token_embedding.weight.data_ptr()
    untied = GPT(replace(SMALL, tied_head=False))
    assert untied.head.weight.data_ptr() != untied.token_embedding.weight.data_ptr()
    assert untied.n_parameters() == model.n_parameters() + 50 * 24
    no_qkv = {name for name, _ in GPT(replace(SMALL, qkv_bias=False)).named_parameters()}
    assert everything - no_qkv == {f"blocks.{layer}.attention.qkv.bias" for layer in (0, 1)}
    bare = replace(SMALL, qkv_bias=False, bias=False)
    assert not [name for name, _ in GPT(bare).named_parameters() if name.endswith("bias")]


def test_a_text_longer_than_the_context_is_told() -> None:
    model = GPT(SMALL)
    with pytest.raises(ClearheadError, match="15 tokens are 2 more than the context of 13"):
        model(torch.zeros(1, 15, dtype=torch.int64))


@torch.no_grad()
def test_a_full_cache_is_told_and_stays_as_it_was() -> None:
    model = GPT(SMALL).eval()
    cache = KVCache(SMALL, 2, capacity=6)
    token_ids = torch.zeros(2, 4, dtype=torch.int64)
    model(token_ids, cache, torch.tensor([4, 2]))
    with pytest.raises(ClearheadError, match="4 tokens and 3 more do not fit into a cache of 6"):
        model(token_ids[:, :3], cache)
    assert cache.lengths.tolist() == [4, 2]
    model(token_ids[:, :2], cache)
    assert KVCache(SMALL, 1, capacity=99).capacity == SMALL.context_length


@torch.no_grad()
@pytest.mark.parametrize("slots", [[1, 2], [3, 1], [2]])
def test_rows_may_belong_to_any_slots(slots: list[int]) -> None:
    torch.manual_seed(0)
    model = GPT(SMALL).eval()
    token_ids, new = torch.randint(50, (4, 5)), torch.randint(50, (len(slots), 2))
    cache = KVCache(SMALL, 4)
    model(token_ids, cache, torch.tensor([5, 3, 4, 2]))
    lengths = cache.lengths.tolist()
    found = model(new, cache.at(slots))
    for row, slot in enumerate(slots):
        text = torch.cat([token_ids[slot, : lengths[slot]], new[row]])
        torch.testing.assert_close(found[row], model(text[None])[0, -2:])
    expected = [length + 2 * (slot in slots) for slot, length in enumerate(lengths)]
    assert cache.lengths.tolist() == expected


@torch.no_grad()
def test_a_slot_may_begin_as_another() -> None:
    torch.manual_seed(0)
    model = GPT(SMALL).eval()
    token_ids, new = torch.randint(50, (1, 5)), torch.randint(50, (1, 2))
    cache = KVCache(SMALL, 3)
    model(token_ids, cache.at([2]))
    cache.copy(2, 0, 4)
    cache.truncate(2, 3)
    for slot, n_tokens in ((0, 4), (2, 3)):
        text = torch.cat([token_ids[:, :n_tokens], new], 1)
        torch.testing.assert_close(model(new, cache.at([slot])), model(text)[:, -2:])


def test_shapes_are_checked_while_the_tests_run() -> None:
    with pytest.raises(TypeCheckError, match="token_ids"):
        GPT(SMALL)(torch.zeros(13, dtype=torch.int64))
    with pytest.raises(TypeCheckError, match="lengths"):
        GPT(SMALL)(torch.zeros(2, 5, dtype=torch.int64), KVCache(SMALL, 2), torch.tensor([1, 2, 3]))


def test_the_device_is_the_weights() -> None:
    assert GPT(SMALL).device == torch.device("cpu")
    with torch.device("meta"):
        assert GPT(SMALL).device == torch.device("meta")
