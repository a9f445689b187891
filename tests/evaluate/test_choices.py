"""A continuation's likelihood is that of a plain forward pass over the whole text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.evaluate import Continuation, score_continuations
from clearhead.model import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=17, context_length=12, d_model=8, n_heads=2, n_layers=2, dropout=0.1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return GPT(CONFIG).double().train()


@torch.no_grad()
def plain(model, one):
    """Score one continuation as lm-eval does: the last context_length + 1 tokens, one pass."""
    model.eval()
    whole = torch.tensor(one.context + one.ids)[-(CONFIG.context_length + 1) :]
    logits = torch.log_softmax(model(whole[None, :-1])[0], -1)
    n = min(len(one.ids), CONFIG.context_length)
    found = logits[-n:].gather(1, whole[-n:, None]).sum()
    model.train()
    return float(found), bool((logits[-n:].argmax(-1) == whole[-n:]).all())


tokens = st.lists(st.integers(0, 16), min_size=1, max_size=16).map(tuple)
short = st.lists(st.integers(0, 16), min_size=1, max_size=5).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    questions=st.lists(st.tuples(tokens, st.lists(short, min_size=1, max_size=4)), max_size=5),
    batch_tokens=st.integers(1, 200),
)
def test_shared_and_batched_they_are_as_alone(model, questions, batch_tokens):
    asked = [Continuation(context, ids) for context, choices in questions for ids in choices]
    done = []
    found = score_continuations(model, asked, batch_tokens=batch_tokens, on_done=done.append)
    assert [score.n_tokens for score in found] == [len(one.ids) for one in asked]
    assert done == sorted(done)
    for one, score in zip(asked, found, strict=True):
        log_probability, greedy = plain(model, one)
        assert score.log_probability == pytest.approx(log_probability, abs=1e-9)
        assert score.greedy == greedy
    assert model.training


def test_what_the_model_would_say_is_greedy(model):
    model.eval()
    with torch.no_grad():
        likeliest = int(model(torch.tensor([[1, 2, 3]]))[0, -1].argmax())
    right, wrong = score_continuations(
        model, [Continuation((1, 2, 3), (one,)) for one in (likeliest, (likeliest + 1) % 17)]
    )
    assert right.greedy
    assert not wrong.greedy


def test_long_continuations_are_judged_by_their_end(model):
    ids = tuple(n % 17 for n in range(40))
    (found,) = score_continuations(model, [Continuation((5,), ids)])
    assert found.log_probability == pytest.approx(plain(model, Continuation((5,), ids))[0])


def test_nothing_to_score(model):
    assert score_continuations(model, []) == []
    with pytest.raises(ValueError, match="at least one token"):
        score_continuations(model, [Continuation((), (1,))])
