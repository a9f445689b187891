import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

from clearhead.model import GPT, PRESETS, GPTConfig, KVCache
from clearhead.native import FEW, accelerate, decode
from clearhead.native.build import path, variants
from clearhead.native.library import Library

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
def logits(model: GPT, ids: torch.Tensor, dtype: torch.dtype, pieces: list[int]) -> torch.Tensor:
    """Return the logits of each token, read in pieces of these lengths."""
    cache = KVCache(model.config, len(ids), dtype=dtype)
    parts = ids.split(pieces, 1)
    return torch.cat([model(part, cache) for part in parts], 1)


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
    fast = accelerate(model)
    assert fast.name == variant
    ids = torch.randint(model.config.vocab_size, (3, 40))
    expected = model(ids)
    pieces = [1, 7, FEW, 1, 1, 2, 3, 9]
    torch.testing.assert_close(logits(fast.model, ids, torch.float32, pieces), expected)
    longer = logits(fast.model, ids, torch.float32, [FEW + 1, 1, 40 - FEW - 2])
    torch.testing.assert_close(longer, expected)


def test_bf16_is_as_close_to_fp32_as_torch_s(variant):
    exact = build(SMALL)
    model = build(SMALL, torch.bfloat16)
    ids = torch.randint(SMALL.vocab_size, (2, 40))
    expected = exact(ids)
    theirs = (logits(model, ids, torch.bfloat16, [1] * 40).float() - expected).abs().mean()
    ours = logits(accelerate(model).model, ids, torch.bfloat16, [1] * 40).float() - expected
    assert ours.abs().mean() <= theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_bit_for_bit_in_any_batch(dtype, variant, threads):
    model = accelerate(build(replace(SMALL, d_model=192, vocab_size=1000), dtype)).model
    ids = torch.randint(1000, (FEW + 5, 12))
    together = logits(model, ids, dtype, [3, 1, 1, 7])
    torch.set_num_threads(1)
    for row, alone in enumerate(ids.split(1)):
        assert torch.equal(logits(model, alone, dtype, [12]), together[row : row + 1])
        assert torch.equal(logits(model, alone, dtype, [1] * 12), together[row : row + 1])


def test_rows_may_lie_in_any_slots(variant):
    model = build(SMALL)
    fast = accelerate(model).model
    ids = torch.randint(SMALL.vocab_size, (2, 9))
    with torch.inference_mode():
        cache = KVCache(SMALL, 5)
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
        found = fast(ids, cache.at([3, 1]))
        torch.testing.assert_close(found, model(ids))
        assert cache.keys[:, [0, 2, 4]].isnan().all()
        more = torch.randint(SMALL.vocab_size, (1, 1))
        expected = model(torch.cat([ids[1:], more], 1))[:, -1:]
        torch.testing.assert_close(fast(more, cache.at([1])), expected)


def test_large_scores_do_not_overflow(variant):
    model = build(SMALL)
    for block in model.blocks:
        block.attention.qkv.weight.data *= 300
    ids = torch.randint(SMALL.vocab_size, (1, 30))
    found = logits(accelerate(model).model, ids, torch.float32, [1] * 30)
    torch.testing.assert_close(found, model(ids), rtol=1e-3, atol=1e-3)


def test_the_model_itself_stays_as_it_was(variant):
    model = build(SMALL)
    before = list(model.named_modules())
    fast = accelerate(model).model
    assert list(model.named_modules()) == before
    assert fast.token_embedding.weight is model.token_embedding.weight
    assert fast.head.linear is model.head


def test_gradients_are_left_to_torch(variant):
    model = build(SMALL)
    fast = accelerate(model).model
    ids = torch.randint(SMALL.vocab_size, (1, 5))
    found = fast(ids, KVCache(SMALL, 1))
    assert found.requires_grad
    torch.testing.assert_close(found, model(ids))


class Other(nn.Linear):
    """Some other layer."""


def test_what_the_kernels_do_not_know_is_left_to_torch_and_said(variant):
    hooked = build(SMALL)
    hooked.blocks[1].mlp.register_forward_hook(lambda *_: None)
    assert accelerate(hooked).model is hooked
    assert "blocks.1.mlp has hooks" in accelerate(hooked).why
    swapped = build(SMALL)
    swapped.blocks[0].attention.out_proj = Other(48, 48)
    assert "blocks.0.attention.out_proj is a Other" in accelerate(swapped).why
    double = build(SMALL, torch.float64)
    assert "float64" in accelerate(double).why


def test_without_a_compiler_torch_computes_and_it_is_said(monkeypatch):
    monkeypatch.setattr(decode.native, "library", lambda: None)
    model = build(SMALL)
    found = accelerate(model)
    assert (found.model, found.name) == (model, "torch")
    assert "no C++ compiler" in found.why


def test_several_python_threads_may_compute_at_once(variant, threads):
    model = build(SMALL)
    ids = torch.randint(SMALL.vocab_size, (8, 1, 30))
    expected = [logits(model, one, torch.float32, [30]) for one in ids]

    def run(one):
        fast = accelerate(model).model
        for _ in range(20):
            found = logits(fast, one, torch.float32, [1] * 30)
        return found

    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(run, ids), expected, strict=True):
            torch.testing.assert_close(found, right)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(variant, threads):
    # Torch's own threads do not survive a fork, so only the kernels compute in the child.
    head = accelerate(build(PRESETS["nano"])).model.head
    x = torch.randn(1, 192)
    with torch.inference_mode():
        expected = head(x)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(head(x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
