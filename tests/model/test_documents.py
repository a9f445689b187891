"""Documents that share a row are as good as alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
