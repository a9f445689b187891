import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

from clearhead.errors import ClearheadError
from clearhead.model import GPT, PRESETS, GPTConfig, KVCache
from clearhead.native import FEW, Backend, decode
from clearhead.native.build import path, variants
from clearhead.native.library import Library
from clearhead.quantize import quantize_nearest

SMALL = GPTConfig(vocab_size=131, context_length=48, d_model=48, n_heads=4, n_layers=3, dropout=0.0)


def _here() -> list[str]:
    built = [variant for variant in variants() if path(variant).exists()]
    return [variant for variant in built if Library(variant).runs_here()]


@pytest.fixture(params=_here() or [pytest.param("", marks=pytest.mark.skip("no compiler"))])
def variant(request, monkeypatch):
    monkeypatch.setattr(decode.native, "library", lambda: Library(request.param))
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def build(config: GPTConfig, dtype: torch.dtype = torch.float32) -> GPT:
    torch.manual_seed(1)
    model = GPT(config).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


@torch.inference_mode()
def logits(reader: Backend, ids: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    """Return the logits of each token, read in pieces of these lengths."""
    cache = reader.cache(len(ids))
    parts = ids.split(pieces, 1)
    return torch.cat([reader.read(part, cache, all_logits=True) for part in parts], 1)


def by_torch(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    """Return torch's logits, a token at a time with a cache, in bf16 if the model is."""
    cache = KVCache(model.config, len(ids), dtype=model.position_embedding.weight.dtype)
    with torch.inference_mode():
        return torch.cat([model(part, cache) for part in ids.split(1, 1)], 1)


CONFIGS = {
    "small": SMALL,
    "exact gelu": replace(SMALL, exact_gelu=True),
    "no biases": replace(SMALL, bias=False, qkv_bias=False),
    "odd sizes": replace(SMALL, d_model=36, n_heads=3, vocab_size=37, tied_head=False),
    "one head": replace(SMALL, d_model=16, n_heads=1),
}


def test_the_kernels_were_compiled_for_this_processor():
    if variants():
        assert _here(), "no native kernel runs here; was there a C++ compiler at installation?"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cached_model_computes_what_torch_computes(name, variant, threads):
    model = build(CONFIGS[name])
    reader = Backend(model)
    assert (reader.name, reader.why) == (variant, None)
    ids = torch.randint(model.config.vocab_size, (3, 40))
    expected = model(ids)
    pieces = [1, 7, FEW, 1, 1, 2, 3, 9]
    torch.testing.assert_close(logits(reader, ids, pieces), expected)
    longer = logits(reader, ids, [FEW + 1, 1, 40 - FEW - 2])
    torch.testing.assert_close(longer, expected)
    last = reader.read(ids, KVCache(model.config, 3))
    torch.testing.assert_close(last, expected[:, -1])


def test_a_long_prompt_is_what_torch_computes(variant, threads):
    config = replace(SMALL, context_length=300, d_model=192)
    model = build(config)
    ids = torch.randint(config.vocab_size, (1, 300))
    torch.testing.assert_close(logits(Backend(model), ids, [290, 10]), model(ids))


def test_tokens_that_do_not_fit_or_are_none_are_refused(variant):
    reader = Backend(build(SMALL))
    cache = KVCache(SMALL, 2, capacity=5)
    reader.read(torch.tensor([[1, 2, 3]]), cache.at([1]))
    with pytest.raises(ClearheadError, match="3 tokens and 3 more do not fit into a cache of 5"):
        reader.read(torch.tensor([[4, 5, 6]]), cache.at([1]))
    for unknown in (-1, SMALL.vocab_size, 2**40):
        with pytest.raises(IndexError):
            reader.read(torch.tensor([[4, unknown]]), cache.at([1]))
    assert cache.lengths.tolist() == [0, 3]


def test_bf16_is_as_close_to_fp32_as_torch_s(variant):
    exact = build(SMALL)
    model = build(SMALL, torch.bfloat16)
    ids = torch.randint(SMALL.vocab_size, (2, 40))
    expected = exact(ids)
    theirs = (by_torch(model, ids).float() - expected).abs().mean()
    ours = logits(Backend(model), ids, [1] * 40) - expected
    assert ours.abs().mean() <= theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_bit_for_bit_in_any_batch(dtype, variant, threads):
    reader = Backend(build(replace(SMALL, d_model=192, vocab_size=1000), dtype))
    same_in_any_batch(reader)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_row_of_few_bits_is_the_same_too(bits, group, variant, threads):
    model = quantize_nearest(build(replace(SMALL, d_model=192, vocab_size=1000)), bits, group)
    reader = Backend(model)
    assert reader.cache(1).keys.dtype == torch.bfloat16
    same_in_any_batch(reader)


def same_in_any_batch(reader: Backend) -> None:
    ids = torch.randint(1000, (FEW + 5, 12))
    together = logits(reader, ids, [3, 1, 1, 7])
    torch.set_num_threads(1)
    for row, alone in enumerate(ids.split(1)):
        assert torch.equal(logits(reader, alone, [12]), together[row : row + 1])
        assert torch.equal(logits(reader, alone, [1] * 12), together[row : row + 1])


def test_what_is_not_finite_stays_so(variant):
    model = build(SMALL)
    model.blocks[1].norm_1.bias.data[3] = torch.nan
    ids = torch.randint(SMALL.vocab_size, (1, 3))
    assert logits(Backend(model), ids, [3]).isnan().all()
    model.blocks[1].norm_1.bias.data[3] = 0.0
    quantize_nearest(model, 8).blocks[1].norm_1.bias.data[3] = torch.inf
    assert not logits(Backend(model), ids, [3]).isfinite().any()


def test_rows_may_lie_in_any_slots(variant):
    model = build(SMALL)
    reader = Backend(model)
    ids = torch.randint(SMALL.vocab_size, (2, 9))
    with torch.inference_mode():
        cache = KVCache(SMALL, 5)
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
        found = reader.read(ids, cache.at([3, 1]), all_logits=True)
        torch.testing.assert_close(found, model(ids))
        assert cache.keys[:, [0, 2, 4]].isnan().all()
        more = torch.randint(SMALL.vocab_size, (1, 1))
        expected = model(torch.cat([ids[1:], more], 1))[:, -1]
        torch.testing.assert_close(reader.read(more, cache.at([1])), expected)


def test_large_scores_do_not_overflow(variant):
    model = build(SMALL)
    for block in model.blocks:
        block.attention.qkv.weight.data *= 300
    ids = torch.randint(SMALL.vocab_size, (1, 30))
    found = logits(Backend(model), ids, [1] * 30)
    torch.testing.assert_close(found, model(ids), rtol=1e-3, atol=1e-3)


def test_the_model_itself_stays_as_it_was(variant):
    model = build(SMALL).train()
    before = [(name, module, module.training) for name, module in model.named_modules()]
    Backend(model).read(torch.tensor([[1, 2]]), KVCache(SMALL, 1))
    after = [(name, module, module.training) for name, module in model.named_modules()]
    assert after == before


class Other(nn.Linear):
    """Some other layer."""


def test_what_the_kernels_do_not_know_is_left_to_torch_and_said(variant):
    hooked = build(SMALL)
    hooked.blocks[1].mlp.register_forward_hook(lambda *_: None)
    assert Backend(hooked).name == "torch"
    assert "blocks.1.mlp has hooks" in Backend(hooked).why
    swapped = build(SMALL)
    swapped.blocks[0].attention.out_proj = Other(48, 48)
    assert "blocks.0.attention.out_proj is a Other" in Backend(swapped).why
    double = build(SMALL, torch.float64)
    assert "float64" in Backend(double).why


def test_without_a_compiler_torch_computes_and_it_is_said(monkeypatch):
    monkeypatch.setattr(decode.native, "library", lambda: None)
    model = build(replace(SMALL, dropout=0.5)).train()
    found = Backend(model)
    assert found.name == "torch"
    assert "no C++ compiler" in found.why
    ids = torch.randint(SMALL.vocab_size, (2, 9))
    computed = logits(found, ids, [4, 5])
    assert model.training
    torch.testing.assert_close(computed, model.eval()(ids))


def test_several_python_threads_may_compute_at_once(variant, threads):
    model = build(SMALL)
    ids = torch.randint(SMALL.vocab_size, (8, 1, 30))
    expected = [model(one) for one in ids]

    def run(one):
        reader = Backend(model)
        for _ in range(20):
            found = logits(reader, one, [1] * 30)
        return found

    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(run, ids), expected, strict=True):
            torch.testing.assert_close(found, right)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(variant, threads):
    # Torch's own threads do not survive a fork, so only the kernels compute in the child.
    reader = Backend(build(PRESETS["nano"]))
    ids, config = torch.tensor([[1]]), PRESETS["nano"]
    expected = reader.read(ids, KVCache(config, 1))
    cache = KVCache(config, 1)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(reader.read(ids, cache), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
