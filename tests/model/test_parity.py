"""Our logits are transformers', with and without cache, alone and in a batch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2LMHeadModel

from clearhead.checkpoint.formats.huggingface import TABLE
from clearhead.model import GPT, KVCache

few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
lengths_of_rows = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def tokens(model: GPT, *shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, shape, generator=generator)


def close(ours: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_position_without_a_cache(model: GPT, theirs: GPT2LMHeadModel) -> None:
    token_ids = tokens(model, 3, model.config.context_length)
    close(model(token_ids), theirs(token_ids).logits)


@few
@given(lengths_of_rows, st.integers(0, 99))
@torch.no_grad()
def test_prompts_of_different_length_go_on_token_by_token(
    model: GPT, theirs: GPT2LMHeadModel, lengths: list[int], seed: int
) -> None:
    """A padded batch into the cache, then a token a row until the context is full."""
    n_rows, longest = len(lengths), max(lengths)
    more = model.config.context_length - longest
    texts = [tokens(model, length + more, seed=seed + row) for row, length in enumerate(lengths)]
    prompts = tokens(model, n_rows, longest, seed=seed - 1)  # what stands in the padding is noise
    for row, length in enumerate(lengths):
        prompts[row, :length] = texts[row][:length]
    cache = KVCache(model.config, n_rows)
    first = model(prompts, cache, torch.tensor(lengths))
    logits = [[first[row, :length]] for row, length in enumerate(lengths)]
    for step in range(more):
        column = [text[length + step] for text, length in zip(texts, lengths, strict=True)]
        for row, new in enumerate(model(torch.stack(column)[:, None], cache)):
            logits[row].append(new)
    for row, text in enumerate(texts):
        close(torch.cat(logits[row]), theirs(text[None]).logits[0])


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[24], [1] * 24, [7, 1, 10, 6], [23, 1]])
def test_a_text_in_pieces_is_the_text(model: GPT, pieces: list[int]) -> None:
    token_ids = tokens(model, 2, 24)
    cache = KVCache(model.config, 2)
    logits = [model(piece, cache) for piece in token_ids.split(pieces, dim=1)]
    close(torch.cat(logits, dim=1), model(token_ids))
    assert cache.lengths.tolist() == [24, 24]


@few
@given(lengths_of_rows)
@torch.no_grad()
def test_a_row_alone_is_the_row_in_the_batch(model: GPT, lengths: list[int]) -> None:
    batch = tokens(model, len(lengths), max(lengths))
    together = model(batch)
    for row, length in enumerate(lengths):
        close(model(batch[row : row + 1, :length])[0], together[row, :length])


@few
@given(st.integers(0, 23), st.integers(1, 60))
@torch.no_grad()
def test_a_token_changes_nothing_before_it(model: GPT, place: int, other: int) -> None:
    token_ids = tokens(model, 1, 24)
    changed = token_ids.clone()
    changed[0, place] = (changed[0, place] + other) % model.config.vocab_size
    before, after = model(token_ids)[0], model(changed)[0]
    assert torch.equal(before[:place], after[:place])
    assert (before[place:] != after[place:]).any(dim=-1).all()


def test_gradients_are_transformers(model: GPT, theirs: GPT2LMHeadModel) -> None:
    token_ids = tokens(model, 2, 24)
    theirs(token_ids, labels=token_ids).loss.backward()
    F.cross_entropy(model(token_ids)[:, :-1].flatten(0, 1), token_ids[:, 1:].flatten()).backward()
    ours, reference = dict(model.named_parameters()), dict(theirs.named_parameters())
    for weight in TABLE.weights(model.config):
        gradient = ours[weight.ours].grad
        assert gradient is not None
        close(gradient.T if weight.transposed else gradient, reference[weight.theirs[0]].grad)
