"""What is chosen among several texts, guessed ahead, or told beside the text."""

from collections import defaultdict
from dataclasses import fields, replace
from statistics import fmean
from typing import Any

import pytest
import torch

from clearhead.engine import Engine, SamplingConfig, beam_search
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig
from clearhead.recipes.completion import Completion
from clearhead.recipes.generate import generate
from clearhead.tokenizer import Tokenizer, build_tokenizer
from clearhead.tokenizer.learnt import CharTokenizer

LETTERS = "abcdefgh .\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return CharTokenizer("".join(sorted(LETTERS)))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(4)
    shape = GPTConfig(tokenizer.vocab_size, context_length=48, d_model=16, n_heads=2, n_layers=2)
    model = GPT(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def drawn(seed: int = 3, **options: Any) -> SamplingConfig:
    return SamplingConfig(max_new_tokens=15, seed=seed, **options)


def same(found: Completion, expected: Completion, *but: str) -> bool:
    names = {field.name for field in fields(Completion)} - {"seconds", *but}
    return all(getattr(found, name) == getattr(expected, name) for name in names)


def test_the_best_are_those_with_the_highest_mean_log_probability(
    model: GPT, tokenizer: Tokenizer
) -> None:
    asked = drawn(logprobs=2)
    every = generate(model, tokenizer, "abc", sampling=asked, samples=12)
    means = [fmean(one.logprobs or ()) for one in every]
    assert len({one.n_tokens for one in every}) > 1, "a sum would choose the same"
    order = sorted(range(12), key=lambda row: -means[row])
    best = generate(model, tokenizer, "abc", sampling=asked, samples=3, best_of=12)
    assert len(best) == 3
    for one, row in zip(best, order, strict=False):
        assert same(one, every[row], "score")
        assert one.score == pytest.approx(means[row])
    assert len({one.seconds for one in best}) == 1
    again = generate(model, tokenizer, "abc", sampling=drawn(), samples=3, best_of=12)
    assert [one.text for one in again] == [one.text for one in best]
    assert {(one.logprobs, one.top_logprobs) for one in again} == {(None, None)}
    other = generate(model, tokenizer, "abc", sampling=drawn(seed=50), samples=3, best_of=12)
    assert [one.text for one in other] != [one.text for one in best]


@pytest.mark.parametrize("options", [{"best_of": 5}, {"num_beams": 5}])
def test_a_text_that_is_chosen_is_shown_once_it_is(
    model: GPT, tokenizer: Tokenizer, options: dict[str, Any]
) -> None:
    shown: dict[int, list[str]] = defaultdict(list)
    sampling = SamplingConfig(temperature=int("best_of" in options), max_new_tokens=9, seed=1)
    found = generate(
        *(model, tokenizer, "ab"),
        sampling=sampling,
        samples=2,
        on_text=lambda row, piece: shown[row].append(piece),
        **options,
    )
    assert shown == {row: [one.text] for row, one in enumerate(found)}


def test_many_texts_have_one_prompt_that_is_read_once(
    model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[Engine] = []

    class Watched(Engine):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            engines.append(self)

    monkeypatch.setattr("clearhead.recipes.writing.Engine", Watched)
    never_ends = drawn(logit_bias={tokenizer.end_of_text: -100})
    generate(model, tokenizer, "abcdefgh" * 3, sampling=never_ends, samples=100)
    [engine] = engines
    assert engine.n_read == 24 + 100 * 14


def test_beams_are_those_of_the_engine(model: GPT, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("bad").tolist()
    greedy = SamplingConfig(
        temperature=0, max_new_tokens=15, stop_token_ids=(tokenizer.end_of_text,), logprobs=2
    )
    expected = beam_search(model, prompt, greedy, num_beams=6, length_penalty=0.5).hypotheses
    found = generate(
        *(model, tokenizer, "bad"),
        sampling=replace(greedy, stop_token_ids=()),
        samples=4,
        num_beams=6,
        length_penalty=0.5,
    )
    assert len(found) == 4
    for one, hypothesis in zip(found, expected, strict=False):
        assert one.token_ids == hypothesis.token_ids
        assert one.score == hypothesis.score
        assert one.seed is None
        assert one.logprobs == tuple(token.logprob for token in hypothesis.tokens)
        assert one.top_logprobs == tuple(token.top_logprobs for token in hypothesis.tokens)
        ids = [token for token in one.token_ids if token != tokenizer.end_of_text]
        assert one.text == tokenizer.decode(ids)
    by_default = generate(model, tokenizer, "bad", num_beams=6)
    assert by_default[0].finish_reason in ("stop", "context")


def test_a_stop_text_ends_a_beam(model: GPT, tokenizer: Tokenizer) -> None:
    sampling = SamplingConfig(temperature=0, max_new_tokens=15)
    options: dict[str, Any] = {"sampling": sampling, "num_beams": 3, "samples": 3}
    assert all("b" in one.text for one in generate(model, tokenizer, "bad", **options))
    found = generate(model, tokenizer, "bad", stop=["zero", "b"], **options)
    stopped = [one for one in found if one.finish_reason == "stop"]
    assert stopped
    for one in stopped:
        assert one.stop == "b"
        assert "b" not in one.text
        assert tokenizer.decode(one.token_ids) == f"{one.text}b"


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_guesses_change_no_text_and_are_counted(
    model: GPT, tokenizer: Tokenizer, temperature: float
) -> None:
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=30, seed=2)
    torch.manual_seed(0)
    noisy = GPT(model.config).eval()
    noisy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    [plain] = generate(model, tokenizer, "abab", sampling=sampling)
    assert (plain.proposed, plain.accepted) == (None, None)
    if plain.backend == "torch":
        pytest.skip("bit for bit the same where the native kernels compute")
    for options in (
        {"prompt_lookup": True},
        {"draft": (noisy, tokenizer)},
        {"prompt_lookup": True, "draft": (noisy, tokenizer)},
    ):
        [found] = generate(model, tokenizer, "abab", sampling=sampling, **options)
        assert same(found, plain, "proposed", "accepted")
        assert found.proposed is not None
        assert found.accepted is not None
        assert 0 <= found.accepted <= found.proposed
        assert found.proposed > 0


def test_a_draft_with_another_tokenizer_is_refused(model: GPT, tokenizer: Tokenizer) -> None:
    other = CharTokenizer("ABCDEFGH .\n")
    assert other.vocab_size == tokenizer.vocab_size
    with pytest.raises(ClearheadError, match=r"the draft's tokenizer \(char\) has not the tokens"):
        generate(model, tokenizer, "a", draft=(model, other))
    with pytest.raises(ClearheadError, match=r"\(bytes\) has not the tokens .*\(char\)"):
        generate(model, tokenizer, "a", draft=(model, build_tokenizer("bytes")))
    same_tokens = CharTokenizer("".join(sorted(LETTERS)))
    assert generate(model, tokenizer, "a", sampling=drawn(), draft=(model, same_tokens))


def test_log_probabilities_are_the_models_own(model: GPT, tokenizer: Tokenizer) -> None:
    [one] = generate(model, tokenizer, "fade", sampling=drawn(temperature=1.5, logprobs=3))
    with torch.inference_mode():
        ids = torch.tensor([[*one.prompt_token_ids, *one.token_ids]])
        expected = model(ids)[0, 3:-1].log_softmax(-1)
    assert one.logprobs is not None
    assert one.top_logprobs is not None
    assert len(one.logprobs) == len(one.top_logprobs) == one.n_tokens
    for at, token in enumerate(one.token_ids):
        assert one.logprobs[at] == pytest.approx(float(expected[at, token]), abs=1e-4)
        best = expected[at].topk(3).indices.tolist()
        assert [other for other, _ in one.top_logprobs[at]] == best


def test_a_full_context_is_dealt_with_as_asked(model: GPT, tokenizer: Tokenizer) -> None:
    sampling = SamplingConfig(seed=0, max_new_tokens=100, logit_bias={tokenizer.end_of_text: -100})
    [stops] = generate(model, tokenizer, "abc", sampling=sampling)
    assert (stops.n_tokens, stops.finish_reason) == (46, "context")
    [slides] = generate(model, tokenizer, "abc", sampling=sampling, when_full="slide")
    assert (slides.n_tokens, slides.finish_reason) == (100, "length")
    assert slides.token_ids[:46] == stops.token_ids
    with pytest.raises(
        ClearheadError, match="the text does not fit into the model's context of 48"
    ):
        generate(model, tokenizer, "abc", sampling=sampling, when_full="error")


@pytest.mark.parametrize("num_beams", [1, 2])
def test_what_computed_is_told(model: GPT, tokenizer: Tokenizer, num_beams: int) -> None:
    engine = Engine(model)
    [one] = generate(model, tokenizer, "a", num_beams=num_beams)
    assert (one.backend, one.why) == (engine.backend, engine.why)
    handle = model.norm.register_forward_hook(lambda *_: None)
    try:
        [one] = generate(model, tokenizer, "a", num_beams=num_beams)
    finally:
        handle.remove()
    assert one.backend == "torch"
    assert one.why is not None
    assert "norm has hooks" in one.why


def test_of_a_draft_too(model: GPT, tokenizer: Tokenizer) -> None:
    if Engine(model).backend == "torch":
        pytest.skip("torch computes all the same")
    draft = GPT(model.config).eval()
    draft.norm.register_forward_hook(lambda *_: None)
    [one] = generate(model, tokenizer, "a", sampling=drawn(), draft=(draft, tokenizer))
    assert one.backend != "torch"
    assert one.why is not None
    assert one.why.startswith("the draft is computed by torch: norm has hooks")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"samples": 2.0}, "samples is 2.0; it must be a whole number, at least 1"),
        (
            {"best_of": 1, "samples": 2},
            "best_of is 1; it must be a whole number, at least samples, 2",
        ),
        ({"best_of": 2.5}, "best_of is 2.5; it must be a whole number"),
        ({"best_of": 2, "sampling": SamplingConfig(temperature=0)}, "at temperature 0 all are the"),
        ({"num_beams": 0}, "num_beams is 0; it must be a whole number, from 1 to 1000"),
        ({"num_beams": "2"}, "num_beams is '2'; it must be"),
        ({"num_beams": 2, "samples": 3}, "samples is 3; beam search finds as many as num_beams, 2"),
        ({"num_beams": 2, "length_penalty": 99}, "length_penalty is 99; it must be a number from"),
        ({"num_beams": 2, "best_of": 2}, "give num_beams or best_of, not both"),
        ({"num_beams": 2, "prompt_lookup": True}, "give num_beams or prompt_lookup, not both"),
        ({"num_beams": 2, "draft": (None, None)}, "give num_beams or draft, not both"),
        ({"num_beams": 2, "when_full": "slide"}, "with beams it must be 'stop' or 'error'"),
        ({"num_beams": 2, "sampling": SamplingConfig()}, "temperature is 1.0; beam search draws"),
        ({"length_penalty": 2}, "give num_beams above 1"),
        ({"early_stopping": True}, "give num_beams above 1"),
        ({"when_full": "wrap"}, "when_full is 'wrap'; it must be 'stop', 'slide' or 'error'"),
    ],
)
def test_options_that_make_no_sense_are_errors(
    model: GPT, tokenizer: Tokenizer, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ClearheadError) as caught:
        generate(model, tokenizer, "a", **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
