"""Text in, text out: stops, streaming, truncation, samples."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.engine import SEEDS, SamplingConfig
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig
from clearhead.recipes.completion import Completion
from clearhead.recipes.generate import generate
from clearhead.recipes.text_stream import TextStream

GREEDY = SamplingConfig(temperature=0)


class Pieces:
    """A tokenizer of the 256 bytes, some longer pieces, and the end-of-text token."""

    name = "pieces"

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = [bytes([byte]) for byte in range(256)] + list(pieces) + [b"<|endoftext|>"]
        self.vocab_size = len(self.pieces)
        self.end_of_text = self.vocab_size - 1

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.pieces[token] for token in ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")


def speaker(tokenizer: Pieces, *pieces: bytes, context_length: int = 24) -> GPT:
    """Return a GPT that, after a prompt of one token, says these pieces and then end-of-text."""
    model = GPT(
        GPTConfig(
            vocab_size=tokenizer.vocab_size,
            context_length=context_length,
            d_model=context_length,
            n_heads=1,
            n_layers=1,
            tied_head=False,
        )
    )
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.zero_()
        model.token_embedding.weight.zero_()
        model.position_embedding.weight.copy_(torch.eye(context_length))
        model.head.weight.zero_()
        for position in range(context_length):
            said = pieces[position] if position < len(pieces) else b"<|endoftext|>"
            model.head.weight[tokenizer.pieces.index(said), position] = 1
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Pieces:
    return Pieces()


@pytest.fixture(scope="module")
def model(tokenizer: Pieces) -> GPT:
    torch.manual_seed(0)
    shape = GPTConfig(tokenizer.vocab_size, context_length=32, d_model=16, n_heads=2, n_layers=1)
    return GPT(shape).eval()


def say(
    *pieces: bytes, stop: Sequence[str] = (), max_new_tokens: int = 20
) -> tuple[Completion, list[str]]:
    """Have a model say the pieces; return the completion and what was streamed."""
    tokenizer = Pieces(*(piece for piece in pieces if len(piece) > 1))
    shown: list[str] = []
    (completion,) = generate(
        speaker(tokenizer, *pieces),
        tokenizer,
        ">",
        sampling=SamplingConfig(temperature=0, max_new_tokens=max_new_tokens),
        stop=stop,
        on_text=lambda _, piece: shown.append(piece),
    )
    assert "".join(shown) == completion.text
    assert "" not in shown
    return completion, shown


def test_end_of_text_ends_the_text_and_is_not_part_of_it() -> None:
    completion, shown = say(b"Good ", b"day")
    assert completion.text == "Good day"
    assert completion.finish_reason == "stop"
    assert completion.stop is None
    assert completion.token_ids == (256, 257, 258)
    assert completion.prompt_token_ids == (ord(">"),)
    assert completion.n_tokens == 3
    assert completion.seconds > 0
    assert completion.tokens_per_second == pytest.approx(3 / completion.seconds)
    assert shown == ["Good ", "day"]


def test_length_and_context_are_told_apart() -> None:
    completion, _ = say(b"a", b"b", b"c", b"d", max_new_tokens=3)
    assert (completion.text, completion.finish_reason) == ("abc", "length")
    completion, _ = say(*[b"x", b"y"] * 12, max_new_tokens=100)
    assert (completion.text, completion.finish_reason) == ("xy" * 12, "context")


def test_a_stop_spans_tokens_and_ends_within_one() -> None:
    completion, shown = say(b"one", b" E", b"N", b"D two", b"three", stop=["zero", "END"])
    assert completion.text == "one "
    assert completion.stop == "END"
    assert completion.finish_reason == "stop"
    assert completion.n_tokens == 4
    assert shown == ["one", " "]


def test_what_only_began_like_a_stop_is_shown_when_that_is_certain() -> None:
    completion, shown = say(b"E", b"N", b"E", b"N", b"O", b"EN", stop=["END"])
    assert completion.text == "ENENOEN"
    assert completion.stop is None
    assert shown == ["EN", "ENO", "EN"]


def test_half_a_character_is_never_shown() -> None:
    first, second = "é".encode()[:1], "é".encode()[1:]
    completion, shown = say(b"caf", first, second, b"!")
    assert completion.text == "café!"
    assert shown == ["caf", "é", "!"]
    cut, shown = say(b"caf", first, max_new_tokens=2)
    assert cut.text == "caf\ufffd"
    assert shown == ["caf", "\ufffd"]


def test_a_stop_of_half_characters_in_tokens() -> None:
    completion, _ = say(b"a", b"\xe2\x82", b"\xac", b"b", stop=["€"])
    assert (completion.text, completion.stop) == ("a", "€")


def test_an_empty_prompt_starts_from_end_of_text(tokenizer: Pieces, model: GPT) -> None:
    (completion,) = generate(model, tokenizer, "", sampling=GREEDY)
    assert completion.prompt_token_ids == (tokenizer.end_of_text,)


def test_samples_have_the_seeds_that_follow_and_each_can_be_repeated_alone(
    tokenizer: Pieces, model: GPT
) -> None:
    shown: dict[int, str] = defaultdict(str)

    def on_text(sample: int, piece: str) -> None:
        shown[sample] += piece

    sampling = SamplingConfig(seed=SEEDS - 2, max_new_tokens=12)
    together = generate(model, tokenizer, "Hi", sampling=sampling, samples=4, on_text=on_text)
    assert [completion.seed for completion in together] == [SEEDS - 2, SEEDS - 1, 0, 1]
    assert len({completion.token_ids for completion in together}) == 4
    for sample, completion in enumerate(together):
        assert shown[sample] == completion.text
        again = SamplingConfig(seed=completion.seed, max_new_tokens=12)
        (alone,) = generate(model, tokenizer, "Hi", sampling=again)
        for name in {field.name for field in fields(Completion)} - {"seconds"}:
            assert getattr(alone, name) == getattr(completion, name)


def test_without_a_seed_one_is_drawn_and_told(tokenizer: Pieces, model: GPT) -> None:
    free = SamplingConfig(max_new_tokens=12)
    (first,) = generate(model, tokenizer, "Hi", sampling=free)
    (other,) = generate(model, tokenizer, "Hi", sampling=free)
    assert first.token_ids != other.token_ids
    seeded = SamplingConfig(max_new_tokens=12, seed=first.seed)
    (again,) = generate(model, tokenizer, "Hi", sampling=seeded)
    assert again.token_ids == first.token_ids


def test_text_is_the_decoded_tokens_whatever_they_are(tokenizer: Pieces, model: GPT) -> None:
    """A random model writes broken UTF-8 most of the time."""
    sampling = SamplingConfig(temperature=2, seed=0, max_new_tokens=25)
    completions = generate(model, tokenizer, "?", sampling=sampling, samples=20)
    for completion in completions:
        ids = [token for token in completion.token_ids if token != tokenizer.end_of_text]
        assert completion.text == tokenizer.decode(ids)
    assert any("\ufffd" in completion.text for completion in completions)


@pytest.mark.parametrize(
    ("n_prompt", "max_new_tokens", "n_kept"),
    [(10, 5, 10), (40, 5, 28), (28, 5, 28), (29, 5, 28), (40, 100, 16), (10, 100, 10)],
)
def test_truncating_left_makes_room_and_says_how_much_went(
    tokenizer: Pieces, model: GPT, n_prompt: int, max_new_tokens: int, n_kept: int
) -> None:
    prompt = "".join(chr(33 + place) for place in range(n_prompt))
    sampling = SamplingConfig(temperature=0, max_new_tokens=max_new_tokens)
    (completion,) = generate(model, tokenizer, prompt, sampling=sampling, truncate="left")
    assert tokenizer.decode(completion.prompt_token_ids) == prompt[n_prompt - n_kept :]
    assert completion.n_dropped == n_prompt - n_kept
    if completion.finish_reason == "length":
        assert completion.n_tokens == max_new_tokens


def test_a_prompt_longer_than_the_context_is_an_error(tokenizer: Pieces, model: GPT) -> None:
    with pytest.raises(ClearheadError, match="35 tokens, 3 more than the model's context of 32"):
        generate(model, tokenizer, "x" * 35)


def test_options_that_make_no_sense_are_errors(tokenizer: Pieces, model: GPT) -> None:
    with pytest.raises(ClearheadError, match="stop string is empty"):
        generate(model, tokenizer, "x", stop=["a", ""])
    with pytest.raises(ClearheadError, match="list of strings"):
        generate(model, tokenizer, "x", stop="END")
    with pytest.raises(ClearheadError, match="samples is 0"):
        generate(model, tokenizer, "x", samples=0)
    with pytest.raises(ClearheadError, match="'error' or 'left'"):
        generate(model, tokenizer, "x", truncate="right")  # type: ignore[arg-type]


@settings(max_examples=300)
@given(
    st.text("abAé€😀", max_size=30),
    st.lists(st.text("abAé€😀", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_a_stream_gives_the_same_text_however_it_is_cut(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    stream, raw = TextStream(stops), text.encode()
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=10).map(sorted))
    shown = ""
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        shown += stream.push(raw[start:end])
        assert "\ufffd" not in shown
    if stream.stop is None:  # everything is shown but what a stop may begin with
        held = raw.decode().removeprefix(shown)
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
    shown += stream.close()

    # The plain way: character by character, until the text ends with a stop.
    expected, stop = text, None
    for length in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:length].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            expected = text[: length - len(stop)]
            break
    assert (shown, stream.stop) == (expected, stop)
