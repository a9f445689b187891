"""GGUF: written as llama.cpp runs it, read back, damage told."""

import json
import struct

import pytest
import torch
from fuzz import fuzz
from torch.nn import functional as F

from clearhead.checkpoint.formats import gguf
from clearhead.checkpoint.formats.source import ModelSource, build
from clearhead.checkpoint.formats.table import our_weights
from clearhead.errors import ClearheadError
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import build_tokenizer

pytest.importorskip("gguf")
TEXT = ["the quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 40]


def tokenizer_of(kind):
    return build_tokenizer(kind, lambda: iter(TEXT))


def model_of(tokenizer, **options):
    torch.manual_seed(3)
    shape = {"context_length": 64, "d_model": 64, "n_heads": 4, "n_layers": 2, "dropout": 0.0}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **{**shape, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def written(folder, kind="bytes", dtype="f32", **options):
    tokenizer = tokenizer_of(kind)
    model = model_of(tokenizer, **options)
    folder.mkdir(exist_ok=True)
    gguf.write_gguf(ModelSource(model, tokenizer), folder, dtype)
    return model, tokenizer, folder / "model.gguf"


@pytest.mark.parametrize("options", [{}, {"tied_head": False}, {"bias": False, "qkv_bias": False}])
def test_f32_comes_back_bit_for_bit(tmp_path, options):
    model, _, path = written(tmp_path, **options)
    tokens = torch.randint(256, (2, 64))
    with gguf.open_gguf(path) as source:
        again = build(source)
        assert source.config.tied_head == model.config.tied_head
        state = model.state_dict()
        for name, _ in our_weights(model.config):
            assert torch.equal(source.read(name), state[name]), name
    torch.testing.assert_close(again(tokens), model(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "limit"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 200), ("q4_0", 1 / 7)]
)
def test_smaller_types_stay_within_their_steps(tmp_path, dtype, limit):
    model, _, path = written(tmp_path, dtype=dtype)
    with gguf.open_gguf(path) as source:
        assert source.dtype == torch.float32
        kinds = ", ".join(sorted(("F32", dtype.upper())))
        assert source.notes == [f"stored as {kinds}, read as F32"]
        for name, _ in our_weights(model.config):
            before, after = model.state_dict()[name], source.read(name)
            is_exact = before.ndim == 1 or name.startswith("position")
            difference = (before - after).abs().max() / before.abs().max()
            assert difference == 0 if is_exact else 0 < difference <= limit, name


@pytest.mark.parametrize("kind", ["bytes", "bpe:300"])
def test_the_tokenizer_comes_along(tmp_path, kind):
    _, tokenizer, path = written(tmp_path, kind)
    text = "the dog naïvely jumps 日本 <|endoftext|> over"
    with gguf.open_gguf(path) as source:
        assert source.tokenizer.vocab_size == tokenizer.vocab_size
        assert source.tokenizer.end_of_text == tokenizer.end_of_text
        assert source.tokenizer.encode(text).tolist() == tokenizer.encode(text).tolist()


def learn(model, tokenizer):
    """Let the model learn the text, so that it writes what can be shown: llama.cpp holds back."""
    ids = torch.tensor(tokenizer.encode(TEXT[0]).tolist()[: 8 * 65]).view(8, 65)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["bytes", "bpe:300"])
def test_llama_cpp_writes_the_same_tokens(tmp_path, kind):
    llama = pytest.importorskip("xllamacpp")
    tokenizer = tokenizer_of(kind)
    model = model_of(tokenizer)
    learn(model, tokenizer)
    gguf.write_gguf(ModelSource(model, tokenizer), tmp_path, "f32")
    path = tmp_path / "model.gguf"
    settings = llama.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_gpu_layers, settings.warmup = 64, 0, False
    settings.cpuparams.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    server = llama.Server(settings)
    for prompt in ("the quick", "a dog sleeps"):
        request = {"prompt": prompt, "n_predict": 24, "top_k": 1, "n_probs": 1}
        answer = server.handle_completions(request)
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        theirs = [one["id"] for one in answer["choices"][0]["logprobs"]["content"]]
        ours = greedily(model, tokenizer.encode(prompt).tolist(), 24)
        assert theirs == ours


@torch.no_grad()
def greedily(model, ids, count):
    steps = []
    for _ in range(count):
        steps.append(int(model(torch.tensor([ids + steps]))[0, -1].argmax()))
    return steps


def test_what_llama_cpp_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ClearheadError, match="no tokenizer of whole characters"):
        written(tmp_path, "char")
    with pytest.raises(ClearheadError, match="blocks of 32, and d_model is 24"):
        written(tmp_path, dtype="q8_0", d_model=24)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF", "header ends too early"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9 is not known"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "promises 1,152,921,504,606,846,976 entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 10**12, 0), "promises 1,000,000,000,000 entries"),
        (
            b"GGUF"
            + struct.pack("<IQQQ", 3, 0, 1, 1)
            + b"a"
            + struct.pack("<IIQ", 9, 4, 2**61)
            + bytes(40),
            "promises 2,305,843,009,213,693,952 entries",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "the architecture 'None'"),
    ],
)
def test_headers_that_promise_too_much(tmp_path, content, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ClearheadError, match=message):
        gguf.open_gguf(path)


def read_all(path):
    gguf.recognise(path)
    with gguf.open_gguf(path) as source:
        for name, _ in our_weights(source.config):
            source.read(name)


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path):
    shape = {"context_length": 2, "d_model": 32, "n_heads": 1, "n_layers": 1}
    _, _, path = written(tmp_path / "whole", dtype="q8_0", **shape)
    (tmp_path / "damaged").mkdir()
    assert fuzz(path, read_all, tmp_path / "damaged") > 1000
