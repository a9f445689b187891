import pytest
import torch

from clearhead.engine import Engine, SamplingConfig
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig, KVCache
from clearhead.native import Backend, decode
from clearhead.native.graphs import CapturedSteps
from clearhead.quantize import quantize_nearest

SMALL = GPTConfig(
    vocab_size=131, context_length=150, d_model=48, n_heads=4, n_layers=2, dropout=0.0
)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    ),
]


@pytest.fixture(params=DEVICES)
def model(request, monkeypatch):
    """A model computed by torch."""
    monkeypatch.setattr(decode.native, "library", lambda: None)
    torch.manual_seed(0)
    return GPT(SMALL).eval().to(request.param)


def with_steps(reader: Backend) -> Backend:
    """Let a backend take captured steps; on a CPU they are the same operations, not captured."""
    reader._steps = CapturedSteps(reader.model)
    return reader


def without_steps(reader: Backend) -> Backend:
    reader._steps = None
    return reader


@torch.inference_mode()
def test_steps_compute_what_the_model_computes(model):
    steps, plain = with_steps(Backend(model)), without_steps(Backend(model))
    ours, theirs = steps.cache(4), plain.cache(4)
    for length, slots in ((63, [2]), (9, [0, 3])):  # slot 2 goes on beyond the 64 of a graph
        ids = torch.randint(131, (len(slots), length))
        for reader, cache in ((steps, ours), (plain, theirs)):
            reader.read(ids, cache.at(slots))
    for slots in ([2], [2], [0, 2], [3, 0, 2], [3]):
        ids = torch.randint(131, (len(slots), 1))
        found = steps.read(ids, ours.at(slots))
        expected = plain.read(ids, theirs.at(slots))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert ours.lengths.tolist() == theirs.lengths.tolist()
    torch.testing.assert_close(
        steps.read(ids, ours.at([3]), all_logits=True),
        plain.read(ids, theirs.at([3]), all_logits=True),
        rtol=1e-4,
        atol=1e-4,
    )


@torch.inference_mode()
def test_a_step_leaves_other_slots_as_they_are(model):
    reader = with_steps(Backend(model))
    cache = reader.cache(3, capacity=20)
    reader.read(torch.randint(131, (1, 20)), cache.at([1]))  # it is full
    reader.read(torch.randint(131, (1, 5)), cache.at([2]))
    held = [(cache.keys[:, s, :, :n].clone(), n) for s, n in ((1, 20), (2, 5))]
    for _ in range(20):
        reader.read(torch.tensor([[7]]), cache.at([0]))
    assert cache.lengths.tolist() == [20, 20, 5]
    for (keys, n), slot in zip(held, (1, 2), strict=True):
        assert torch.equal(cache.keys[:, slot, :, :n], keys)
    with pytest.raises(ClearheadError, match="20 tokens and 1 more do not fit"):
        reader.read(torch.tensor([[7]]), cache.at([0]))


@torch.inference_mode()
def test_all_slots_and_another_cache(model):
    reader, ids = with_steps(Backend(model)), torch.randint(131, (2, 1))
    expected = model(ids.to(model.device))[:, -1]
    for _ in range(2):
        found = reader.read(ids, KVCache(SMALL, 2, device=model.device))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [32, 16, 4])
def test_an_engine_writes_the_same_by_steps(model, bits):
    if bits == 16:
        model.bfloat16()
    if bits == 4:
        quantize_nearest(model, 4)
    written = []
    for wrap in (with_steps, without_steps):
        engine = Engine(model, slots=3)
        wrap(engine._reader)
        generator = torch.Generator().manual_seed(1)
        texts = []
        for n in (3, 30, 70, 5, 11, 2, 100):
            prompt = torch.randint(131, (n,), generator=generator).tolist()
            sampling = SamplingConfig(temperature=0, max_new_tokens=5 + n)
            texts.append(engine.submit(prompt, sampling))
        while engine.step():
            pass
        written.append([text.history.new_ids for text in texts])
    agreeing = sum(a == b for a, b in zip(*written, strict=True))
    # In bf16, two tokens may be equally likely but for rounding.
    assert agreeing >= (4 if bits == 16 else 7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_cuda_steps_are_captured_unless_a_hook_would_be_missed():
    model = GPT(SMALL).eval().cuda()
    reader = Backend(model)
    reader.read(torch.tensor([[1]]), reader.cache(1))
    assert all(step._graph is not None for step in reader._steps._steps.values())
    model.blocks[0].register_forward_hook(lambda *_: None)
    assert Backend(model)._steps is None
