"""What `bench_generate` tells: the arithmetic of bytes and shares, and what it refuses."""

from pathlib import Path

import pytest
import torch

from clearhead import checkpoint
from clearhead.engine import Engine
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig, preset
from clearhead.model.linear import Linear
from clearhead.quantize import quantize_nearest
from clearhead.recipes import bench, limits
from clearhead.recipes.bench import bench_generate, bits_of, flop_of_prompt
from clearhead.recipes.limits import Limit, matrix_peak, memory_bandwidth
from clearhead.tokenizer import build_tokenizer

BANDWIDTH, PEAK = 2e10, 3e11


@pytest.fixture(autouse=True)
def known_limits(monkeypatch):
    """Limits that are known, in place of a gigabyte's reading."""
    monkeypatch.setattr(bench, "memory_bandwidth", lambda _: Limit(BANDWIDTH, "a fixture"))
    monkeypatch.setattr(bench, "fastest_products", lambda *_: Limit(PEAK, "float32"))


@pytest.fixture(scope="module")
def config():
    return GPTConfig(vocab_size=257, context_length=40, d_model=32, n_heads=4, n_layers=2)


@pytest.fixture(scope="module")
def saved(config, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bench") / "plain"
    checkpoint.save(path, GPT(config), build_tokenizer("bytes"))
    return path


@pytest.fixture(scope="module")
def quantized(config, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "small"
    checkpoint.save(path, quantize_nearest(GPT(config), 4), build_tokenizer("bytes"))
    return path


def brief(path=None, **options):
    return bench_generate(path, rounds=1, device="cpu", **options)


def test_bytes_are_those_of_the_weights_and_of_keys_and_values_of_mean_length():
    found = brief(preset="nano", prompt_tokens=20, new_tokens=9)
    one = preset("nano")
    width = one.d_model
    matrices = 12 * one.n_layers * width**2 + one.vocab_size * width
    vectors = one.n_layers * (9 + 4) * width + 2 * width  # biases, and two norms a block; the last
    assert found.bytes_per_token == 4 * (matrices + vectors)
    # After 16 tokens and the first new one, 9 more are written: 17 to 25 positions are read.
    assert found.cache_bytes_per_token == 2 * 4 * one.n_layers * width * 21
    assert (found.prompt_tokens, found.new_tokens, found.after) == (20, 9, 16)


@pytest.mark.parametrize("batch", [1, 3])
def test_shares_are_what_is_read_and_computed_over_the_limits(batch):
    found = brief(preset="nano", batch=batch, prompt_tokens=20, new_tokens=9)
    steps = found.decode_tokens_per_s / batch  # in a second; each reads the weights once
    read = steps * (found.bytes_per_token + batch * found.cache_bytes_per_token)
    assert found.bandwidth_share == pytest.approx(read / BANDWIDTH)
    prompts = found.prefill_tokens_per_s / 20
    computed = prompts * flop_of_prompt(preset("nano"), 20)
    assert found.matrix_share == pytest.approx(computed / PEAK)
    assert (found.bandwidth, found.bandwidth_by) == (BANDWIDTH, "a fixture")
    assert (found.matrix_peak, found.matrix_peak_by) == (PEAK, "float32")
    assert found.first_token_ms > 0


def test_operations_are_those_of_all_products(config):
    model, length = GPT(config), 7
    flop = 2 * model.head.weight.numel()
    for position in range(1, length + 1):
        for name, module in model.named_modules():
            if isinstance(module, Linear) and name != "head":
                flop += 2 * module.weight.numel()
        # Each head's scores, and its sum of values, over the tokens so far.
        flop += config.n_layers * config.n_heads * 2 * (2 * config.head_dim * position)
    assert flop_of_prompt(config, length) == flop


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize("of", ["preset", "checkpoint"])
def test_bits(bits, of, saved, config):
    given = {"preset": "nano"} if of == "preset" else {"path": saved}
    found = brief(**given, bits=bits, new_tokens=2, prompt_tokens=2)
    assert found.bits == bits
    assert ("rounded to nearest" in found.weights) == (bits < 16)
    assert ("random" in found.weights) == (of == "preset")
    if of == "checkpoint":
        model = GPT(config)
        model = quantize_nearest(model, bits) if bits < 16 else model.to(bench._DTYPES[bits])
        assert bits_of(model) == bits
        assert found.bytes_per_token == bench.bytes_per_token(model)


def test_a_quantised_checkpoint_keeps_its_bits(quantized):
    for bits in (None, 4):
        found = brief(quantized, bits=bits)
        assert (found.bits, found.weights) == (4, "as saved")
    for bits in (32, 16, 8):
        with pytest.raises(ClearheadError, match=f"has 4 bits a weight, not {bits}; leave"):
            brief(quantized, bits=bits)


def test_lengths_are_what_a_short_context_has_room_for(saved):
    found = brief(saved)
    assert (found.prompt_tokens, found.after, found.new_tokens) == (40, 16, 24)
    assert (found.weights, found.bits, found.model) == ("as saved", 32, str(saved))


def test_what_is_measured_is_the_engine_on_prompts_of_its_own(saved, monkeypatch):
    texts = []

    class Seen(Engine):
        def submit(self, *args, **kwargs):
            texts.append(super().submit(*args, **kwargs))
            return texts[-1]

    monkeypatch.setattr(bench, "Engine", Seen)
    bench_generate(saved, batch=2, prompt_tokens=30, new_tokens=5, rounds=2, device="cpu")
    lengths = [(len(text.history.prompt_ids), len(text.history.new_ids)) for text in texts]
    assert lengths == [(16, 1), (30, 1), (30, 1), (16, 6), (16, 6)] * 3  # a round warms up
    assert len({tuple(text.history.prompt_ids) for text in texts}) == len(texts)
    assert all(text.finish_reason == "length" for text in texts)
    assert all(text.sampling.temperature == 0 for text in texts)
    assert all(text.speculation is None for text in texts)


def test_weights_are_drawn_from_a_generator_of_their_own():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    brief(preset="nano", new_tokens=1, prompt_tokens=1)
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "give a checkpoint or the name of a preset, one of the two"),
        ({"path": "x", "preset": "nano"}, "give a checkpoint or the name of a preset"),
        ({"preset": "nanno"}, "did you mean 'nano'"),
        ({"preset": "nano", "bits": 3}, "bits is 3; it must be 32, 16, 8 or 4"),
        ({"preset": "nano", "batch": 0}, "batch is 0; it must be at least 1"),
        ({"preset": "nano", "prompt_tokens": 129}, "from 1 to 128, what the context of 128"),
        ({"preset": "nano", "prompt_tokens": 0}, "prompt_tokens is 0; it must be from 1 to 128$"),
        ({"preset": "nano", "new_tokens": 113}, "from 1 to 112, what the context of 128 has"),
    ],
)
def test_mistakes(options, told):
    with pytest.raises(ClearheadError, match=told):
        brief(**options)


def test_no_rounds():
    with pytest.raises(ClearheadError, match="rounds is 0; it must be at least 1"):
        bench_generate(preset="nano", rounds=0)


def test_a_context_of_one_token(tmp_path):
    config = GPTConfig(vocab_size=257, context_length=1, d_model=8, n_heads=2, n_layers=1)
    checkpoint.save(tmp_path / "one", GPT(config), build_tokenizer("bytes"))
    with pytest.raises(ClearheadError, match="context is 1: there is nothing to write in it"):
        brief(tmp_path / "one")


def test_a_classifier_writes_nothing(tmp_path):
    config = GPTConfig(
        vocab_size=257,
        context_length=32,
        d_model=8,
        n_heads=2,
        n_layers=1,
        labels=("good", "bad"),
        tied_head=False,
    )
    checkpoint.save(tmp_path / "labels", GPT(config), build_tokenizer("bytes"))
    with pytest.raises(ClearheadError, match="use clearhead classify"):
        brief(tmp_path / "labels")


def test_the_machines_limits_are_measured(monkeypatch):
    found = memory_bandwidth(n_bytes=2**20, times=1)
    assert found.per_second > 0
    assert "a sum" in found.by or "a matrix by a vector" in found.by
    monkeypatch.setattr(limits, "_SIZES", (64,))
    assert matrix_peak(torch.float32) > 0
    faster = limits.fastest_products(torch.bfloat16)
    assert faster.by in ("float32", "bfloat16")


def test_a_type_without_instructions_is_not_waited_for(monkeypatch):
    multiplied = []

    def slow(left, right):
        multiplied.append(len(left))

    monkeypatch.setattr(limits, "linear", slow)
    monkeypatch.setattr(limits, "_seconds", lambda run, device: run() or 1.5)
    assert matrix_peak() == 2 * 1024**3 / 1.5
    assert multiplied == [1024] * 8
