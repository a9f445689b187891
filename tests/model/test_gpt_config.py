"""The model's config: its checks, and the first notebook's dictionary."""

import pytest
import torch

from clearhead.errors import ClearheadError
from clearhead.model import GPT, PRESETS, GPTConfig, preset

NOTEBOOK = {
    "vocab_size": 50257,
    "context_size": 1024,
    "emb_dim": 768,
    "num_of_heads": 12,
    "num_of_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


def test_the_notebooks_dictionary_is_taken() -> None:
    assert GPTConfig.from_dict(NOTEBOOK) == GPTConfig(qkv_bias=False)
    other = {**NOTEBOOK, "context_length": 256}
    del other["context_size"]
    assert GPTConfig.from_dict(other) == GPTConfig(qkv_bias=False, context_length=256)
    assert GPTConfig.from_dict({"d_model": 64, "n_heads": 2}) == GPTConfig(d_model=64, n_heads=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_lenght": 5}, "unknown key 'context_lenght' .* did you mean 'context_length'"),
        ({"num_heads": 5}, "unknown key 'num_heads' .* did you mean 'n_heads'"),
        ({"zzz": 5}, "unknown key 'zzz' .* valid: bias, context_length, context_size"),
        ({"context_length": 5}, "gives context_length twice, also as 'context_length'"),
        ({"emb_dim": "768"}, "d_model is '768'; it must be a whole number"),
        ({"qkv_bias": 0}, "qkv_bias is 0; it must be true or false"),
        ({"drop_rate": 1.0}, "dropout is 1.0; it must be a number from 0 to below 1"),
        ({"drop_rate": float("nan")}, "dropout is nan; it must be"),
        ({"num_of_layers": 0}, "n_layers is 0; it must be a whole number from 1"),
        ({"vocab_size": 2**31}, "vocab_size is 2147483648; it must be a whole number from 1"),
    ],
)
def test_a_wrong_dictionary_is_told(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ClearheadError, match=message):
        GPTConfig.from_dict({**NOTEBOOK, **changes})


@pytest.mark.parametrize(
    ("d_model", "n_heads", "advice"),
    [
        (768, 10, "8 or 12"),
        (768, 7, "6 or 8"),
        (7, 3, "1 or 7"),
        (8, 9, "8"),
        (2**31 - 1, 2**30, "1 or 2147483647"),  # a prime: found without trying every number
    ],
)
def test_heads_that_do_not_divide_the_width_are_told(
    d_model: int, n_heads: int, advice: str
) -> None:
    with pytest.raises(ClearheadError) as caught:
        GPTConfig(d_model=d_model, n_heads=n_heads)
    assert str(caught.value) == (
        f"n_heads={n_heads} does not divide d_model={d_model}; the nearest that do: {advice}"
    )


# Of the sizes that OpenAI released, counted by transformers' GPT2LMHeadModel.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2-124m", 124_439_808),
        ("gpt2-355m", 354_823_168),
        ("gpt2-774m", 774_030_080),
        ("gpt2-1558m", 1_557_611_200),
    ],
)
def test_presets_have_gpt2s_sizes(name: str, count: int) -> None:
    with torch.device("meta"):
        assert GPT(preset(name)).n_parameters() == count


def test_a_preset_takes_another_vocabulary() -> None:
    assert preset("nano", vocab_size=65).vocab_size == 65
    assert preset("nano").d_model == PRESETS["nano"].d_model


def test_an_unknown_preset_is_told() -> None:
    with pytest.raises(ClearheadError, match="no preset is called 'gpt2-124'; did you mean"):
        preset("gpt2-124")
