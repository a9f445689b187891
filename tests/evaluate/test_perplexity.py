import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.errors import ClearheadError
from clearhead.evaluate import perplexity
from clearhead.model import GPT, GPTConfig

CONTEXT = 8
CONFIG = GPTConfig(vocab_size=17, context_length=CONTEXT, d_model=8, n_heads=2, n_layers=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return GPT(CONFIG).double()


@torch.no_grad()
def naive(model, ids, stride):
    """Predict token after token, from the first window that holds it."""
    model.eval()
    total = 0.0
    for target in range(1, len(ids)):
        start = 0
        while start + CONTEXT < target:
            start += stride
        logits = torch.log_softmax(model(torch.from_numpy(ids[start:target])[None])[0, -1], -1)
        total -= float(logits[ids[target]])
    return total


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 60),
    stride=st.integers(1, CONTEXT),
    batch_tokens=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_each_token_is_predicted_once_as_by_itself(model, n, stride, batch_tokens, seed):
    ids = np.random.default_rng(seed).integers(0, 17, n)
    done = []
    found = perplexity(
        model,
        ids,
        n_words=3,
        n_bytes=50,
        stride=stride,
        batch_tokens=batch_tokens,
        on_done=lambda now, of: done.append((now, of)),
    )
    total = naive(model, ids, stride)
    assert found.n_tokens == n - 1
    assert done[-1] == (n - 1, n - 1)
    assert found.nats_per_token.value == pytest.approx(total / (n - 1))
    assert found.per_token.value == pytest.approx(math.exp(total / (n - 1)))
    assert found.per_word.value == pytest.approx(math.exp(total / 3))
    assert found.bits_per_byte.value == pytest.approx(total / math.log(2) / 50)
    one = found.nats_per_token
    assert one.low <= one.value + 1e-9
    assert one.value <= one.high + 1e-9


def test_out_of_range(model):
    ids = np.arange(9)
    with pytest.raises(ClearheadError, match="stride is 9; it must be from 1 to the context of 8"):
        perplexity(model, ids, n_words=1, n_bytes=1, stride=9)
    with pytest.raises(ClearheadError, match="has 1 tokens"):
        perplexity(model, ids[:1], n_words=1, n_bytes=1)
