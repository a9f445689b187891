"""Documents that share a row are as good as alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_each_document_in_a_row_is_as_if_alone(lengths, seed):
    torch.manual_seed(seed)
    config = GPTConfig(vocab_size=13, context_length=24, d_model=8, n_heads=2, n_layers=2)
    model = GPT(config).double().eval()
    texts = [torch.randint(13, (1, length)) for length in lengths]
    documents = torch.cat([torch.full((1, n), at) for at, n in enumerate(lengths)], dim=1)
    row = torch.cat(texts, dim=1)
    together = model.hidden(row, documents=documents).split(lengths, dim=1)
    for text, found in zip(texts, together, strict=True):
        torch.testing.assert_close(found, model.hidden(text), atol=1e-12, rtol=0)


def test_neighbours_with_one_number_are_one_document():
    model = GPT(GPTConfig(vocab_size=13, context_length=8, d_model=8, n_heads=2, n_layers=1)).eval()
    text = torch.randint(13, (2, 8))
    one = model.hidden(text, documents=torch.zeros_like(text))
    torch.testing.assert_close(one, model.hidden(text))


@settings(max_examples=30, deadline=None)
@given(
    prefix=st.integers(1, 6),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_documents_that_share_a_beginning_are_as_if_each_followed_it_alone(prefix, lengths, seed):
    torch.manual_seed(seed)
    config = GPTConfig(vocab_size=13, context_length=11, d_model=8, n_heads=2, n_layers=2)
    model = GPT(config).double().eval()
    begin, *texts = (torch.randint(13, (1, length)) for length in [prefix, *lengths])
    row = torch.cat([begin, *texts], dim=1)
    sizes = [prefix, *lengths]
    documents = torch.cat([torch.full((1, n), at) for at, n in enumerate(sizes)], dim=1)
    hidden = model.hidden(row, documents=documents, shared=torch.tensor([prefix]))
    _, *together = hidden.split(sizes, dim=1)
    for text, found in zip(texts, together, strict=True):
        alone = model.hidden(torch.cat([begin, text], dim=1))[:, prefix:]
        torch.testing.assert_close(found, alone, atol=1e-12, rtol=0)


def test_a_document_that_is_longer_than_the_context_is_refused():
    model = GPT(GPTConfig(vocab_size=13, context_length=4, d_model=8, n_heads=2, n_layers=1)).eval()
    text, documents = torch.zeros(1, 8, dtype=torch.long), torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    assert model.hidden(text, documents=documents).shape == (1, 8, 8)
    with pytest.raises(ClearheadError, match="8 tokens are 4 more than the context of 4"):
        model.hidden(text, documents=torch.zeros_like(text))
