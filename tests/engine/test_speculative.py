"""Guessing changes how fast a text comes, and nothing else."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from clearhead.engine import Engine, History, SamplingConfig, Text, generate_ids, probabilities
from clearhead.engine.speculative import Draft, PromptLookup, Speculation
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=97, context_length=40, d_model=32, n_heads=4, n_layers=2)


@pytest.fixture(scope="module")
def draft(model: GPT) -> GPT:
    """The model itself, somewhat disturbed: it is right often, and not always."""
    torch.manual_seed(9)
    draft = GPT(CONFIG).eval()
    draft.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return draft


@pytest.fixture(autouse=True)
def by_kernels(model: GPT) -> None:
    """Tokens are the same bit for bit where the native kernels compute."""
    if Engine(model).backend == "torch":
        pytest.skip("the native kernels are not there")


def run(engine: Engine, prompt: list[int], sampling: SamplingConfig, **options: object) -> Text:
    text = engine.submit(prompt, sampling, **options)  # type: ignore[arg-type]
    while engine.step():
        pass
    return text


SAMPLINGS = [
    SamplingConfig(temperature=0, max_new_tokens=60),
    SamplingConfig(temperature=0.5, max_new_tokens=60, seed=1),
    SamplingConfig(
        temperature=0.9,
        top_p=0.9,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        min_new_tokens=9,
        stop_token_ids=tuple(range(8)),
        logprobs=2,
        max_new_tokens=60,
        seed=2,
    ),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seeded", "everything"])
@pytest.mark.parametrize("when_full", ["stop", "slide"])
@pytest.mark.parametrize("kind", ["lookup", "draft", "both"])
def test_a_guessed_text_is_the_plain_one(
    model: GPT, draft: GPT, sampling: SamplingConfig, when_full: str, kind: str
) -> None:
    numbers = random.Random(3)
    plain = Engine(model, slots=1)
    guessing = Engine(model, slots=1, draft=None if kind == "lookup" else draft)
    proposed = accepted = 0
    for _ in range(25):
        prompt = [numbers.randrange(97) for _ in range(numbers.randint(1, 12))] * 2
        expected = run(plain, prompt, sampling, when_full=when_full)
        found = run(guessing, prompt, sampling, when_full=when_full, prompt_lookup=kind != "draft")
        assert list(found.events) == list(expected.events)
        assert found.finish_reason == expected.finish_reason
        assert found.speculation is not None
        proposed += found.speculation.proposed
        accepted += found.speculation.accepted
    assert accepted < proposed
    assert accepted or (kind, sampling) == ("lookup", SAMPLINGS[2])


def test_a_model_that_guesses_for_itself_is_always_right(model: GPT) -> None:
    engine = Engine(model, slots=1, draft=model)
    steps = 0
    text = engine.submit([1, 2, 3], SamplingConfig(max_new_tokens=30, seed=0))
    while engine.step():
        steps += 1
    assert text.speculation is not None
    assert text.speculation.accepted == text.speculation.proposed
    assert text.speculation.accepted + steps == 30
    assert steps < 8


def test_drawn_tokens_have_the_models_distribution(model: GPT, draft: GPT) -> None:
    """Of the second new token, given the most frequent first: each was guessed, often wrongly."""
    engine, pairs = Engine(model, slots=1, draft=draft), []
    for seed in range(1500):
        sampling = SamplingConfig(temperature=0.7, max_new_tokens=3, seed=seed)
        pairs.append(run(engine, [5, 6], sampling).history.new_ids[:2])
    [(first, n)] = Counter(pair[0] for pair in pairs).most_common(1)
    counts = Counter(pair[1] for pair in pairs if pair[0] == first)
    with torch.inference_mode():
        logits = model(torch.tensor([[5, 6, first]]))[:, -1]
    history = History([5, 6], [first])
    p = probabilities(logits, [SamplingConfig(temperature=0.7)], [history])[0].numpy()
    observed = np.array([counts[token] for token in range(97)])
    common = p * n >= 5
    assert common.sum() >= 5
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(p[common], p[~common].sum()) * n
    assert ((observed - expected) ** 2 / expected).sum() < chi2.ppf(0.999, len(observed) - 1)


def test_texts_in_a_batch_are_not_guessed_and_are_the_same(model: GPT, draft: GPT) -> None:
    sampling = SamplingConfig(temperature=0, max_new_tokens=20)
    prompts = [[1, 2], [3, 4, 5], [6]]
    together = [*generate_ids(model, prompts, sampling, draft=draft, prompt_lookup=True)]
    plain = [*generate_ids(model, prompts, sampling)]
    assert sorted(together, key=lambda e: e.row) == sorted(plain, key=lambda e: e.row)


def test_another_text_that_slid_is_not_forgotten_while_one_is_guessed(model: GPT) -> None:
    engine = Engine(model, slots=2)
    sampling = SamplingConfig(temperature=0, max_new_tokens=70)
    texts = [
        engine.submit([n] * (20 + n), sampling, when_full="slide", prompt_lookup=True)
        for n in (1, 2)
    ]
    while engine.step():
        pass
    assert [len(text.history.new_ids) for text in texts] == [70, 70]


def propose(guess: PromptLookup | Draft, ids: list[int], n: int) -> list[int]:
    return guess.propose(ids, n, SamplingConfig(), History(ids), torch.Generator())


def test_lookup_takes_what_followed_the_longest_run_last() -> None:
    lookup = PromptLookup()
    assert propose(lookup, [1, 2, 3], 3) == []
    ids = [9, 1, 2, 7, 7, 1, 2, 8, 6, 5, 1, 2]
    assert propose(lookup, ids, 2) == [8, 6]
    longer = [9, 1, 2, 7, 7, 1, 2, 8, 6, 5, 9, 1, 2]
    assert propose(lookup, longer, 2) == [7, 7]
    assert propose(PromptLookup(), [4, 4, 4], 5) == [4] * 5


def test_a_draft_with_another_vocabulary_is_refused(model: GPT) -> None:
    other = GPT(GPTConfig(vocab_size=96, context_length=8, d_model=8, n_heads=2, n_layers=1))
    with pytest.raises(ClearheadError, match=r"draft has a vocabulary of 96 .* one of 97"):
        Engine(model, draft=other)


def test_a_draft_with_a_short_context_guesses_no_further(model: GPT) -> None:
    torch.manual_seed(1)
    short = GPT(
        GPTConfig(vocab_size=97, context_length=12, d_model=8, n_heads=2, n_layers=1)
    ).eval()
    sampling = SamplingConfig(temperature=0, max_new_tokens=30)
    assert list(run(Engine(model, draft=short), [1, 2, 3], sampling).events) == list(
        run(Engine(model), [1, 2, 3], sampling).events
    )


def test_guesses_grow_while_they_hold(model: GPT) -> None:
    class Always:
        def propose(self, ids: list[int], n: int, *_: object) -> list[int]:
            return [0] * n

    speculation = Speculation([Always()])  # type: ignore[list-item]
    lengths = []
    for right in (True, True, True, False, True):
        ids = speculation.propose([1], 100, SamplingConfig(), History([1]), torch.Generator())
        lengths.append(len(ids))
        speculation.learn(len(ids), len(ids) if right else 0)
    assert lengths == [4, 8, 15, 15, 2]
