"""Generated tokens equal transformers'; a batch equals its prompts alone."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pair import Pair

from clearhead.engine import SamplingConfig, generate_ids
from clearhead.engine.reading import read
from clearhead.errors import ClearheadError
from clearhead.model import GPT, KVCache
from clearhead.native import Backend

Texts = dict[int, tuple[list[int], str | None]]


def run(
    model: GPT, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, **options: Any
) -> Texts:
    """Return each row's new tokens and the reason given with the last."""
    tokens: dict[int, list[int]] = defaultdict(list)
    reasons: dict[int, str | None] = {}
    for event in generate_ids(model, prompts, sampling, **options):
        assert reasons.get(event.row) is None, "a token after the last"
        tokens[event.row].append(event.token_id)
        reasons[event.row] = event.finish_reason
    return {row: (tokens[row], reasons[row]) for row in tokens}


def random_prompts(n: int, longest: int, seed: int = 0) -> list[list[int]]:
    numbers = random.Random(seed)
    return [[numbers.randrange(97) for _ in range(numbers.randint(1, longest))] for _ in range(n)]


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_equals_transformers(pair: Pair, penalty: float) -> None:
    prompts = random_prompts(200, longest=24)
    sampling = SamplingConfig(temperature=0, max_new_tokens=16, repetition_penalty=penalty)
    ours = run(pair.ours, prompts, sampling)
    by_length: dict[int, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        by_length[len(prompt)].append(row)
    for length, rows in by_length.items():
        ids = torch.tensor([prompts[row] for row in rows])
        theirs = pair.theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=16,
            repetition_penalty=penalty,
        )
        for row, tokens in zip(rows, theirs[:, length:].tolist(), strict=True):
            assert ours[row] == (tokens, "length")
    assert len({token for tokens, _ in ours.values() for token in tokens}) > 20


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(temperature=0, max_new_tokens=30),
        SamplingConfig(seed=7, max_new_tokens=30),
        SamplingConfig(0.8, 20, 0.9, 0.02, repetition_penalty=1.2, max_new_tokens=30, seed=3),
    ],
    ids=["greedy", "seeded", "filtered"],
)
def test_a_batch_equals_each_prompt_alone(pair: Pair, sampling: SamplingConfig) -> None:
    """Rows end at different steps: by a stop id, by `is_finished`, by the context, by length."""
    prompts = random_prompts(24, longest=40, seed=1)
    stop_ids = list(range(5))
    seeds = None if sampling.seed is None else [100 + row for row in range(24)]

    def enough(_: int, ids: Sequence[int]) -> bool:
        return ids[-1] % 25 == 24

    together = run(pair.ours, prompts, sampling, seeds=seeds, stop_ids=stop_ids, is_finished=enough)
    for row, prompt in enumerate(prompts):
        alone = run(
            pair.ours,
            [prompt],
            sampling,
            seeds=None if seeds is None else [seeds[row]],
            stop_ids=stop_ids,
            is_finished=enough,
        )
        assert alone[0] == together[row]
    assert {reason for _, reason in together.values()} >= {"stop", "context"}


@torch.inference_mode()
def test_cached_logits_equal_those_of_the_whole_text_read_anew(pair: Pair) -> None:
    """By what the engine computes with; the whole text is read by ours and by transformers'."""
    reader = Backend(pair.ours)
    for prompt in random_prompts(20, longest=30):
        new, _ = run(pair.ours, [prompt], SamplingConfig(seed=1, max_new_tokens=10))[0]
        cache = KVCache(pair.ours.config, 1)
        logits = [read(reader, prompt, cache)]
        logits += [read(reader, [token], cache) for token in new[:-1]]
        whole = torch.tensor([[*prompt, *new[:-1]]])
        cached = torch.stack(logits, 1)  # [1, 10, V]
        n = len(new)
        torch.testing.assert_close(cached, pair.ours(whole)[:, -n:], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(cached, pair.theirs(whole).logits[:, -n:], atol=1e-4, rtol=1e-5)


def test_the_seed_alone_decides(model: GPT) -> None:
    prompts = [[1, 2], [1, 2], [3]]
    sampling = SamplingConfig(seed=5, max_new_tokens=20)
    first, again = run(model, prompts, sampling), run(model, prompts, sampling)
    assert first == again
    assert first[0] == first[1]
    other = run(model, prompts, sampling, seeds=[5, 6, 7])
    assert other[0] == first[0]
    assert other[1] != first[1]
    unseeded = run(model, prompts, SamplingConfig(max_new_tokens=20))
    assert unseeded[0] != unseeded[1]


def test_one_token_more_than_the_context_holds_and_the_reason_says_so(model: GPT) -> None:
    sampling = SamplingConfig(temperature=0, max_new_tokens=100)
    texts = run(model, [[1] * 40, [1] * 39, [1] * 10], sampling)
    assert [len(tokens) for tokens, _ in texts.values()] == [1, 2, 31]
    assert {reason for _, reason in texts.values()} == {"context"}
    exact = run(model, [[1] * 10], SamplingConfig(temperature=0, max_new_tokens=31))
    assert exact[0] == (texts[2][0], "length")


def test_a_stop_id_is_given_and_ends_its_row(model: GPT) -> None:
    sampling = SamplingConfig(temperature=0, max_new_tokens=10)
    tokens, _ = run(model, [[4, 9]], sampling)[0]
    end = tokens.index(tokens[3])
    asked = []
    stopped = run(
        model,
        [[4, 9]],
        sampling,
        stop_ids=[tokens[3]],
        is_finished=lambda row, ids: bool(asked.append((row, list(ids)))),
    )
    assert stopped[0] == (tokens[: end + 1], "stop")
    assert asked == [(0, tokens[:n]) for n in range(1, end + 1)]


def test_the_model_and_torch_are_as_before_between_tokens(model: GPT) -> None:
    model.train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    try:
        greedy = SamplingConfig(temperature=0, max_new_tokens=8)
        tokens = []
        for event in generate_ids(model, [[3, 4, 5]], greedy):
            tokens.append(event.token_id)
            assert [module.training for module in model.modules()] == modes
            assert not torch.is_inference_mode_enabled()
    finally:
        model.eval()
    assert run(model, [[3, 4, 5]], greedy)[0][0] == tokens, "dropout was on"


def test_the_global_random_state_is_left_alone(model: GPT) -> None:
    before = torch.get_rng_state()
    run(model, [[1]], SamplingConfig(max_new_tokens=3))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_prompts_no_tokens(model: GPT) -> None:
    assert list(generate_ids(model, [], SamplingConfig())) == []


@pytest.mark.parametrize(
    ("prompts", "parts"),
    [
        ([[1, 2], [3, 97]], ["prompt 1", "id 97", "position 1", "vocabulary of 97"]),
        ([[-1]], ["prompt 0", "id -1", "position 0"]),
        ([[1], [2] * 43], ["prompt 1", "43 tokens", "3 more", "context of 40"]),
        ([[]], ["prompt 0 is empty"]),
    ],
)
def test_a_bad_prompt_is_an_error_at_once(
    model: GPT, prompts: list[list[int]], parts: list[str]
) -> None:
    with pytest.raises(ClearheadError) as caught:
        generate_ids(model, prompts, SamplingConfig())
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


def test_seeds_must_be_one_a_prompt(model: GPT) -> None:
    with pytest.raises(ClearheadError, match="2 prompts have 1 seeds"):
        generate_ids(model, [[1], [2]], SamplingConfig(), seeds=[1])
