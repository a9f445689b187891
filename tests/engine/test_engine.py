"""Texts join and leave a running batch, share what was computed, and never meet."""

import asyncio
import gc
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clearhead.engine import Engine, SamplingConfig, Text
from clearhead.engine.reading import CHUNK
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig, KVCache
from clearhead.native import Backend

GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def long_model() -> GPT:
    """It holds some whole pieces of a prompt."""
    torch.manual_seed(3)
    config = GPTConfig(vocab_size=97, context_length=400, d_model=32, n_heads=4, n_layers=2)
    return GPT(config).eval()


def finish(engine: Engine) -> None:
    while engine.step():
        pass


def alone(model: GPT, prompt: list[int], sampling: SamplingConfig, **options: object) -> list[int]:
    engine = Engine(model, slots=1)
    text = engine.submit(prompt, sampling, **options)  # type: ignore[arg-type]
    finish(engine)
    return text.history.new_ids


def some_sampling(numbers: random.Random) -> SamplingConfig:
    greedy = SamplingConfig(temperature=0, max_new_tokens=numbers.randint(1, 12))
    drawn = replace(
        greedy,
        temperature=numbers.uniform(0.3, 2),
        top_k=numbers.choice([0, 5]),
        top_p=numbers.choice([1, 0.9]),
        presence_penalty=numbers.choice([0, 0.5]),
        stop_token_ids=tuple(numbers.sample(range(97), 3)),
        seed=numbers.randrange(1000),
    )
    return numbers.choice([greedy, drawn])


def test_joining_and_leaving_changes_no_text(model: GPT) -> None:
    numbers = random.Random(0)
    engine, texts = Engine(model, slots=4), []
    for _ in range(60):
        prompt = [numbers.randrange(97) for _ in range(numbers.randint(1, 30))]
        texts.append((prompt, engine.submit(prompt, some_sampling(numbers))))
        for _ in range(numbers.randrange(4)):
            engine.step()
    finish(engine)
    for prompt, text in texts:
        assert text.history.new_ids == alone(model, prompt, text.sampling)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells no resident memory")
def test_five_thousand_requests(model: GPT) -> None:
    """A tenth is cancelled; none is lost or gets another's tokens; memory stays."""
    numbers = random.Random(1)
    engine, running, done, cancelled = Engine(model, slots=16), [], 0, 0
    expected: dict[tuple[tuple[int, ...], SamplingConfig], list[int]] = {}
    kinds = [
        ([numbers.randrange(97) for _ in range(numbers.randint(1, 30))], some_sampling(numbers))
        for _ in range(150)
    ]
    objects: list[int] = []
    resident: list[int] = []
    for number in range(5000):
        prompt, sampling = numbers.choice(kinds)
        text = engine.submit(prompt, sampling)
        running.append((prompt, text))
        if numbers.random() < 0.1:
            for _ in range(numbers.randrange(3)):
                engine.step()
            cancelled += not text.ended
            engine.cancel(text)
        while len(running) >= 20:
            engine.step()
            for prompt, text in [one for one in running if one[1].ended]:
                running.remove((prompt, text))
                new = text.history.new_ids
                key = (tuple(prompt), replace(text.sampling, logit_bias=None))
                if key not in expected:
                    expected[key] = alone(model, prompt, text.sampling)
                whole = expected[key]
                assert new == (whole[: len(new)] if text.cancelled else whole)
                done += 1
        if number % 1000 == 999:
            gc.collect()
            objects.append(len(gc.get_objects()))
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    finish(engine)
    assert done + len(running) == 5000
    assert cancelled > 200
    assert all(text.ended for _, text in running)
    assert objects[-1] - objects[1] < 1000
    assert resident[-1] - resident[1] < 20_000_000


def test_a_prompt_that_was_read_is_not_read_again(long_model: GPT) -> None:
    numbers = random.Random(2)
    prompt = [numbers.randrange(97) for _ in range(2 * CHUNK + 40)]
    engine = Engine(long_model, slots=4)
    first, again = engine.submit(prompt, GREEDY), engine.submit(prompt, GREEDY)
    other = engine.submit([*prompt[: CHUNK + 9], *prompt[:20]], GREEDY)
    engine.step()
    assert [first.n_shared, again.n_shared, other.n_shared] == [0, len(prompt), CHUNK]
    assert engine.n_read == len(prompt) + (CHUNK + 29 - CHUNK)
    finish(engine)
    assert first.history.new_ids == again.history.new_ids == alone(long_model, prompt, GREEDY)
    assert other.history.new_ids == alone(long_model, list(other.history.prompt_ids), GREEDY)
    later = engine.submit(prompt, GREEDY)  # a slot that was left still holds it
    engine.step()
    assert later.n_shared == len(prompt)


def test_a_next_turn_reads_what_is_new(long_model: GPT) -> None:
    numbers = random.Random(4)
    turn = [numbers.randrange(97) for _ in range(CHUNK + 60)]
    engine = Engine(long_model, slots=1)
    first = engine.submit(turn, GREEDY)
    finish(engine)
    second = [*turn, *first.history.new_ids, 5, 6]
    text = engine.submit(second, GREEDY)
    finish(engine)
    assert text.n_shared == CHUNK
    assert text.history.new_ids == alone(long_model, second, GREEDY)


def test_a_cancelled_text_leaves_its_slot_at_once(model: GPT) -> None:
    engine = Engine(model, slots=1)
    first, second = engine.submit([1], GREEDY), engine.submit([2], GREEDY)
    engine.step()
    assert not second.events
    engine.cancel(first)
    [event] = engine.step()
    assert event.token_id == alone(model, [2], GREEDY)[0]
    assert first.finish_reason is None
    assert first.ended
    engine.cancel(second)
    assert engine.step() == []


def test_a_stream_that_is_closed_cancels(model: GPT) -> None:
    engine = Engine(model, slots=1)
    text = engine.submit([1], GREEDY)
    stream = engine.stream(text)
    next(stream)
    stream.close()
    assert text.cancelled
    assert engine.step() == []
    whole = engine.submit([1], GREEDY)
    tokens = [event.token_id for event in engine.stream(whole)]
    assert tokens == alone(model, [1], GREEDY)


def test_streams_of_several_tasks(model: GPT) -> None:
    """The event loop goes on meanwhile; a task that is cancelled frees its slot."""
    engine = Engine(model, slots=2)

    async def read(prompt: list[int]) -> list[int]:
        text = engine.submit(prompt, GREEDY)
        return [event.token_id async for event in engine.stream_async(text)]

    async def broken_off() -> Text:
        text = engine.submit([9], replace(GREEDY, max_new_tokens=30))

        async def endless() -> None:
            async for _ in engine.stream_async(text):
                await asyncio.sleep(0)

        task = asyncio.create_task(endless())
        while not text.history.new_ids:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return text

    async def everything() -> tuple[list[list[int]], Text]:
        tasks = [asyncio.create_task(read([n, n + 1])) for n in range(6)]
        text = await broken_off()
        return await asyncio.gather(*tasks), text

    found, text = asyncio.run(everything())
    assert found == [alone(model, [n, n + 1], GREEDY) for n in range(6)]
    assert text.cancelled


def test_threads_may_share_an_engine(model: GPT) -> None:
    engine = Engine(model, slots=3)

    def read(n: int) -> list[int]:
        text = engine.submit([n], GREEDY)
        return [event.token_id for event in engine.stream(text)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(24)))
    assert found == [alone(model, [n], GREEDY) for n in range(24)]


def test_a_text_slides_to_the_last_half_of_its_context(model: GPT) -> None:
    sampling = SamplingConfig(temperature=0, max_new_tokens=95)
    found = alone(model, [1, 2, 3], sampling, when_full="slide")
    assert len(found) == 95
    window: list[int] = [1, 2, 3]
    for token in found:
        with torch.inference_mode():
            assert int(model(torch.tensor([window]))[0, -1].argmax()) == token
        window.append(token)
        if len(window) > 40:
            window = window[-20:]


def test_a_text_that_may_not_fit_is_refused(model: GPT) -> None:
    engine = Engine(model)
    sampling = replace(GREEDY, max_new_tokens=12)
    engine.submit([1] * 29, sampling, when_full="error")
    with pytest.raises(ClearheadError, match="30 tokens, and with max_new_tokens=12 the text does"):
        engine.submit([1] * 30, sampling, when_full="error")
    with pytest.raises(ClearheadError, match="when_full is 'wrap'; it must be 'stop', 'slide' or"):
        engine.submit([1], sampling, when_full="wrap")  # type: ignore[arg-type]


def test_what_cannot_be_is_refused(model: GPT) -> None:
    with pytest.raises(ClearheadError, match="slots is 0; it must be at least 1"):
        Engine(model, slots=0)
    with pytest.raises(ClearheadError, match="prompt 0 is empty"):
        Engine(model).submit([], GREEDY)
    with pytest.raises(ClearheadError, match="token id 97"):
        Engine(model).submit([1], replace(GREEDY, stop_token_ids=(97,)))


def test_damaged_weights_end_all_texts(model: GPT) -> None:
    torch.manual_seed(0)
    damaged = GPT(model.config).eval()
    with torch.no_grad():
        damaged.norm.bias.fill_(float("nan"))
    engine = Engine(damaged, slots=1)
    texts = [engine.submit([1], GREEDY), engine.submit([2], GREEDY)]
    with pytest.raises(ClearheadError, match="logits are not finite"):
        engine.step()
    assert all(text.ended for text in texts)
    assert engine.step() == []


def test_a_reading_that_is_interrupted_leaves_the_engine_whole(
    long_model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-C in a notebook: the slot is free, and no other text shares what is half read."""
    numbers = random.Random(5)
    first = [numbers.randrange(97) for _ in range(2 * CHUNK + 40)]
    second = [*first[:CHUNK], *(numbers.randrange(97) for _ in range(CHUNK + 40))]
    engine = Engine(long_model, slots=1)
    engine.submit(first, GREEDY)
    finish(engine)
    read = Backend.read

    def interrupted(reader: Backend, ids: torch.Tensor, cache: KVCache) -> torch.Tensor:
        found = read(reader, ids, cache)
        if cache.lengths.max() > 2 * CHUNK:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Backend, "read", interrupted)
    text = engine.submit(second, GREEDY)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert text.ended
    monkeypatch.setattr(Backend, "read", read)
    again = engine.submit(first, GREEDY)
    finish(engine)
    assert again.n_shared == 0
    assert again.history.new_ids == alone(long_model, first, GREEDY)


def test_log_probabilities_are_the_models_own(model: GPT) -> None:
    engine = Engine(model)
    text = engine.submit([4, 5], SamplingConfig(max_new_tokens=5, seed=1, top_k=3, logprobs=4))
    finish(engine)
    ids = [4, 5]
    for event in text.events:
        with torch.inference_mode():
            expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        assert event.logprob == pytest.approx(float(expected[event.token_id]), abs=1e-4)
        best = expected.topk(4)
        assert [token for token, _ in event.top_logprobs] == best.indices.tolist()
        ids.append(event.token_id)
