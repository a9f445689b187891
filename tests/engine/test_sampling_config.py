"""Settings out of range are told by name, value and range."""

import math
from dataclasses import replace

import pytest

from clearhead.engine import SEEDS, SamplingConfig, fresh_seed
from clearhead.errors import ClearheadError


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("temperature", -0.1, "0 or a number from 0.0001 to 10000"),
        ("temperature", 1e-9, "0 or a number"),
        ("temperature", math.nan, "0 or a number"),
        ("temperature", math.inf, "0 or a number"),
        ("temperature", False, "0 or a number"),
        ("temperature", "hot", "0 or a number"),
        ("top_k", -1, "at least 0"),
        ("top_k", 2.0, "at least 0"),
        ("top_p", 1.1, "from 0 to 1"),
        ("min_p", -0.1, "from 0 to 1"),
        ("typical_p", math.nan, "from 0 to 1"),
        ("typical_p", 2, "from 0 to 1"),
        ("repetition_penalty", 0, "from 0.01 to 100"),
        ("presence_penalty", 2.1, "from -2 to 2"),
        ("presence_penalty", None, "from -2 to 2"),
        ("frequency_penalty", -2.1, "from -2 to 2"),
        ("frequency_penalty", True, "from -2 to 2"),
        ("logit_bias", [(1, 2.0)], "must map token ids to numbers"),
        ("min_new_tokens", -1, "from 0 to 200"),
        ("min_new_tokens", 201, "from 0 to 200"),
        ("max_new_tokens", 0, "at least 1"),
        ("max_new_tokens", True, "at least 1"),
        ("stop_token_ids", 3, "a list of token ids"),
        ("stop_token_ids", "12", "a list of token ids"),
        ("logprobs", -1, "from 0 to 20"),
        ("logprobs", 21, "from 0 to 20"),
        ("logprobs", True, "from 0 to 20"),
        ("seed", -1, "from 0 to 4294967295"),
        ("seed", SEEDS, "from 0 to 4294967295"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(
    field: str, value: object, valid: str
) -> None:
    with pytest.raises(ClearheadError) as caught:
        SamplingConfig(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{field} is {value!r}; ")
    assert valid in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"logit_bias": {5: 100.5}},
            "logit_bias[5] is 100.5; it must be a number from -100 to 100",
        ),
        ({"logit_bias": {5: "1"}}, "logit_bias[5] is '1'; it must be a number from -100 to 100"),
        (
            {"logit_bias": {"5": 1}},
            "a token id in logit_bias is '5'; it must be a whole number, at least 0",
        ),
        (
            {"stop_token_ids": [-3]},
            "a token id in stop_token_ids is -3; it must be a whole number, at least 0",
        ),
    ],
)
def test_what_is_wrong_inside_a_field_is_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ClearheadError) as caught:
        SamplingConfig(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            SamplingConfig(logit_bias={1: 1.0, 97: 1.0}),
            "logit_bias has the token id 97; it must be from 0 to 96, the model's last",
        ),
        (
            SamplingConfig(stop_token_ids=(200, 3)),
            "stop_token_ids has the token id 200; it must be from 0 to 96, the model's last",
        ),
        (
            SamplingConfig(min_new_tokens=2, stop_token_ids=tuple(range(97))),
            "min_new_tokens is 2 and every token is in stop_token_ids; leave at least one out",
        ),
    ],
)
def test_the_vocabulary_bounds_token_ids(config: SamplingConfig, message: str) -> None:
    with pytest.raises(ClearheadError) as caught:
        config.check_vocabulary(97)
    assert str(caught.value) == message


def test_the_last_token_is_in_the_vocabulary() -> None:
    SamplingConfig(
        logit_bias={96: -100}, min_new_tokens=1, stop_token_ids=range(1, 97)
    ).check_vocabulary(97)


def test_a_config_is_hashable_and_keeps_its_tokens() -> None:
    bias = {1: 2}
    config = SamplingConfig(logit_bias=bias, stop_token_ids=[3, 4])
    bias[1] = 1000
    assert config.logit_bias == {1: 2}
    assert config.stop_token_ids == (3, 4)
    assert {config: 1}[replace(config)] == 1


def test_a_fresh_seed_is_a_valid_one() -> None:
    seeds = {fresh_seed() for _ in range(20)}
    assert len(seeds) > 1
    for seed in seeds:
        SamplingConfig(seed=seed)
