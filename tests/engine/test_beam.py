"""Beam search finds what transformers' does, and with enough beams the very best text."""

import itertools
import random
from typing import Any

import pytest
import torch
from pair import Pair

from clearhead.engine import Found, SamplingConfig, beam_search
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig, KVCache

PAD = 96


def sampling(max_new_tokens: int = 12, **options: Any) -> SamplingConfig:
    return SamplingConfig(temperature=0, max_new_tokens=max_new_tokens, **options)


def random_prompt(numbers: random.Random, longest: int = 24) -> list[int]:
    return [numbers.randrange(97) for _ in range(numbers.randint(1, longest))]


def equals_transformers(
    pair: Pair, prompt: list[int], found: Found, stop_ids: list[int], **options: Any
) -> None:
    """Hold the tokens and scores of all hypotheses against transformers'."""
    ids = torch.tensor([prompt])
    theirs = pair.theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_return_sequences=options["num_beams"],
        eos_token_id=stop_ids or None,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    assert len(found.hypotheses) == options["num_beams"]
    for row, one in enumerate(found.hypotheses):
        expected = theirs.sequences[row, len(prompt) :].tolist()
        n = len(one.token_ids)
        assert list(one.token_ids) == expected[:n]
        assert set(expected[n:]) <= {PAD}
        assert one.score == pytest.approx(float(theirs.sequences_scores[row]), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_texts_and_scores_are_those_of_transformers(pair: Pair, early_stopping: Any) -> None:
    numbers, reasons = random.Random(0), set()
    for _ in range(40):
        prompt, num_beams = random_prompt(numbers), numbers.choice([2, 3, 4, 7])
        length_penalty = numbers.choice([-1.0, 0.0, 0.6, 1.0, 2.0])
        stop_ids = numbers.sample(range(96), numbers.choice([0, 1, 3, 8]))
        found = beam_search(
            pair.ours,
            prompt,
            sampling(stop_token_ids=tuple(stop_ids)),
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        equals_transformers(
            pair,
            prompt,
            found,
            stop_ids,
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            max_new_tokens=12,
        )
        for one in found.hypotheses:
            reasons.add(one.tokens[-1].finish_reason)
            assert (one.token_ids[-1] in stop_ids) == (one.tokens[-1].finish_reason == "stop")
            assert all(token.finish_reason is None for token in one.tokens[:-1])
    assert reasons == {"stop", "length"}


def test_penalties_and_a_minimum_length_are_those_of_transformers(pair: Pair) -> None:
    numbers = random.Random(1)
    for _ in range(20):
        prompt, stop_ids = random_prompt(numbers), numbers.sample(range(96), 8)
        asked = sampling(min_new_tokens=4, repetition_penalty=1.3, stop_token_ids=tuple(stop_ids))
        found = beam_search(pair.ours, prompt, asked, num_beams=4)
        options = {"min_new_tokens": 4, "repetition_penalty": 1.3, "max_new_tokens": 12}
        equals_transformers(pair, prompt, found, stop_ids, num_beams=4, **options)
        assert all(len(one.tokens) > 4 for one in found.hypotheses)


def test_one_beam_is_the_greedy_text(pair: Pair) -> None:
    numbers = random.Random(2)
    for _ in range(20):
        ids = list(random_prompt(numbers))
        [one] = beam_search(pair.ours, ids, sampling(8), num_beams=1).hypotheses
        for token in one.token_ids:
            with torch.inference_mode():
                assert int(pair.ours(torch.tensor([ids]))[0, -1].argmax()) == token
            ids.append(token)


@pytest.fixture(scope="module")
def small() -> GPT:
    """All its texts of a few tokens can be tried."""
    torch.manual_seed(8)
    model = GPT(GPTConfig(vocab_size=6, context_length=9, d_model=16, n_heads=2, n_layers=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0])
def test_enough_beams_find_the_best_texts_of_all(small: GPT, length_penalty: float) -> None:
    prompt, stop, longest = [1, 4], 5, 4
    scores: dict[tuple[int, ...], float] = {}
    for ids in itertools.product(range(6), repeat=longest):
        with torch.inference_mode():
            lp = small(torch.tensor([[*prompt, *ids]]))[0].double().log_softmax(-1)
        n = ids.index(stop) + 1 if stop in ids else longest
        chosen = [float(lp[len(prompt) - 1 + at, ids[at]]) for at in range(n)]
        scores[ids[:n]] = sum(chosen) / n**length_penalty
    best = sorted(scores, key=lambda ids: -scores[ids])[:5]
    found = beam_search(
        small,
        prompt,
        sampling(longest, stop_token_ids=(stop,)),
        num_beams=1000,
        length_penalty=length_penalty,
        early_stopping="never",
    )
    assert [one.token_ids for one in found.hypotheses[:5]] == best
    assert len(found.hypotheses) == len(scores)
    assert found.hypotheses[0].score == pytest.approx(scores[best[0]], abs=1e-5)


def test_the_prompt_is_read_once_and_what_differs_is_copied(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[tuple[int, int]] = []
    copy = KVCache.copy

    def watched(cache: KVCache, source: int, target: int, n_tokens: int, *, start: int = 0) -> None:
        old = cache.keys[:, target, :, :start]
        assert torch.allclose(old, cache.keys[:, source, :, :start], atol=1e-5)
        copied.append((start, n_tokens))
        copy(cache, source, target, n_tokens, start=start)

    monkeypatch.setattr(KVCache, "copy", watched)
    found = beam_search(model, list(range(20)), sampling(12), num_beams=4)
    assert found.n_read == 20 + 4 * 11
    assert copied[:3] == [(0, 20)] * 3
    assert len(copied) > 3
    assert all(start >= 20 for start, _ in copied[3:])


def test_a_full_context_ends_texts_or_refuses_them(model: GPT) -> None:
    found = beam_search(model, [1] * 35, sampling(20), num_beams=3)
    assert {len(one.tokens) for one in found.hypotheses} == {6}
    assert {one.tokens[-1].finish_reason for one in found.hypotheses} == {"context"}
    with pytest.raises(ClearheadError, match="with max_new_tokens=20 the text does not fit"):
        beam_search(model, [1] * 35, sampling(20), num_beams=3, when_full="error")


def test_a_stop_of_the_callers_ends_a_text(model: GPT) -> None:
    asked: list[list[int]] = []

    def is_finished(ids: Any) -> bool:
        asked.append(ids)
        return len(ids) == 5

    found = beam_search(model, [3], sampling(), num_beams=3, is_finished=is_finished)
    assert {len(one.tokens) for one in found.hypotheses} == {5}
    assert {one.tokens[-1].finish_reason for one in found.hypotheses} == {"stop"}
    assert max(map(len, asked)) == 5


def test_log_probabilities_are_the_models_own(model: GPT) -> None:
    found = beam_search(model, [4, 5], sampling(6, logprobs=3), num_beams=3)
    for one in found.hypotheses:
        ids = [4, 5, *one.token_ids]
        with torch.inference_mode():
            lp = model(torch.tensor([ids]))[0].log_softmax(-1)
        for at, token in enumerate(one.tokens):
            assert token.logprob == pytest.approx(float(lp[1 + at, token.token_id]), abs=1e-4)
            best = lp[1 + at].topk(3)
            assert [token for token, _ in token.top_logprobs] == best.indices.tolist()
        assert one.score == pytest.approx(sum(t.logprob or 0 for t in one.tokens) / 6, abs=1e-4)


def test_the_model_is_left_as_it_was(model: GPT) -> None:
    expected = beam_search(model, [3, 4], sampling(), num_beams=3)
    model.train()
    try:
        assert beam_search(model, [3, 4], sampling(), num_beams=3) == expected
        assert all(module.training for module in model.modules())
    finally:
        model.eval()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_beams": 0}, "num_beams is 0; it must be a whole number, from 1 to 1000"),
        ({"num_beams": 1001}, "num_beams is 1001; it must be"),
        ({"num_beams": 2.0}, "num_beams is 2.0; it must be"),
        ({"length_penalty": 11}, "length_penalty is 11; it must be a number from -10 to 10"),
        ({"length_penalty": float("nan")}, "length_penalty is nan; it must be"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon'; it must be true, false or 'never'"),
        ({"when_full": "slide"}, "when_full is 'slide'; with beams it must be 'stop' or 'error'"),
        ({"when_full": "wrap"}, "when_full is 'wrap'; it must be"),
        ({"prompt": []}, "prompt 0 is empty"),
        ({"prompt": [97]}, "token id 97 at position 0"),
        ({"prompt": [1] * 41}, "41 tokens, 1 more than the model's context of 40"),
        ({"sampling": SamplingConfig()}, "temperature is 1.0; beam search draws nothing"),
        ({"sampling": sampling(top_k=5)}, "top_k is 5; beam search draws nothing, so it must be 0"),
        ({"sampling": sampling(top_p=0.9)}, "top_p is 0.9; beam search draws nothing"),
        ({"sampling": sampling(min_p=0.1)}, "min_p is 0.1; beam search draws nothing"),
        ({"sampling": sampling(typical_p=0.9)}, "typical_p is 0.9; beam search draws nothing"),
        ({"sampling": sampling(stop_token_ids=(97,))}, "stop_token_ids has the token id 97"),
    ],
)
def test_what_cannot_be_is_refused(model: GPT, change: dict[str, Any], told: str) -> None:
    arguments: dict[str, Any] = {"prompt": [1], "sampling": sampling(), "num_beams": 2, **change}
    with pytest.raises(ClearheadError) as caught:
        beam_search(model, **arguments)
    assert told in str(caught.value)


def test_damaged_weights_are_told(model: GPT) -> None:
    damaged = GPT(model.config).eval()
    with torch.no_grad():
        damaged.norm.bias.fill_(float("nan"))
    with pytest.raises(ClearheadError, match="logits are not finite"):
        beam_search(damaged, [1], sampling(), num_beams=2)
