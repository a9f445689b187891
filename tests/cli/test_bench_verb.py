"""`clearhead bench generate`."""

import json

import pytest

from clearhead.recipes import bench
from clearhead.recipes.limits import Limit


@pytest.fixture(autouse=True)
def known_limits(monkeypatch):
    monkeypatch.setattr(bench, "memory_bandwidth", lambda _: Limit(4e9, "a fixture"))
    monkeypatch.setattr(bench, "fastest_products", lambda *_: Limit(2e11, "float32"))


def test_json(call, run):
    status, out, err = call("bench", "generate", run, "--rounds", 2, "--device", "cpu", "--json")
    report = json.loads(out)
    assert status == 0
    assert out.count("\n") == 1
    assert {
        *("prefill_tokens_per_s", "decode_tokens_per_s", "first_token_ms", "bytes_per_token"),
        *("cache_bytes_per_token", "bandwidth", "bandwidth_share", "matrix_peak", "matrix_share"),
        *("bits", "backend", "why", "batch", "threads", "prompt_tokens", "new_tokens", "after"),
    } <= report.keys()
    assert (report["model"], report["bits"], report["batch"]) == (str(run), 32, 1)
    assert (report["prompt_tokens"], report["after"], report["new_tokens"]) == (32, 16, 16)
    assert "warming up" in err
    assert "round 2 of 2" in err


def test_a_table(call):
    command = ("bench", "generate", "--preset", "nano", "--bits", "4", "--batch", "2")
    status, out, _ = call(*command, "--new-tokens", "3", "--rounds", "1", "--device", "cpu")
    assert status == 0
    assert "nano: weights random, rounded to nearest for this measurement" in out
    assert "3 tokens after 16, 2 texts at once" in out
    assert "4.0 GB/s (a fixture); writing takes" in out
    assert "200 GFLOP/s (float32); reading takes" in out
    assert "(by all texts together)" in out


def test_it_says_why_torch_computes(call, monkeypatch):
    class OnTorch(bench.Engine):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.backend, self.why = "torch", "the reason"

    monkeypatch.setattr(bench, "Engine", OnTorch)
    command = ("bench", "generate", "--preset", "nano", "--new-tokens", "1", "--prompt-tokens", "1")
    _, out, _ = call(*command, "--rounds", "1", "--device", "cpu")
    assert "computed by       torch" in out
    assert "because           the reason" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give a checkpoint or the name of a preset"),
        (["--preset", "nano", "--prompt-tokens", "999"], "prompt_tokens is 999; it must be from 1"),
        (["none"], "none"),
    ],
)
def test_mistakes(refused, arguments, told):
    assert told in refused("bench", "generate", *arguments)
