"""`clearhead data prepare` and `clearhead data info`."""

import json

import pytest


@pytest.fixture
def folder(call, corpus, tmp_path):
    folder = tmp_path / "prepared"
    assert call("data", "prepare", corpus, "--out", folder, "--tokenizer", "bytes")[0] == 0
    return folder


def test_prepare_tells_what_it_made(call, corpus, tmp_path):
    status, out, err = call(
        *("data", "prepare", corpus, "--out", tmp_path / "d", "--tokenizer", "bpe:270"),
        *("--processes", "1", "--json"),
    )
    report = json.loads(out)
    assert status == 0
    assert (report["documents"], report["tokenizer"]) == (40, "bpe:270")
    assert report["tokens"] == sum(shard["tokens"] for shard in report["shards"])
    assert report["token_file_bytes"] == (tmp_path / "d/tokens-00000.bin").stat().st_size
    assert report["seconds"] > 0
    assert "learning the tokenizer bpe:270" in err
    assert "preparing text: " in err


def test_prepare_again_says_that_it_is_done(call, corpus, folder):
    status, out, err = call("data", "prepare", corpus, "--out", folder, "--tokenizer", "bytes")
    assert status == 0
    assert "already prepared" in err
    assert "documents  40" in out


def test_another_field(call, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text('{"body": "one two"}\n{"body": "three"}\n')
    command = ("data", "prepare", source, "--out", tmp_path / "d", "--tokenizer", "char")
    status, out, _ = call(*command, "--field", "body", "--json")
    assert status == 0
    assert json.loads(out)["documents"] == 2


def test_info(call, corpus, folder):
    status, out, err = call("data", "info", folder)
    assert (status, err) == (0, "")
    assert "tokenizer  bytes (vocabulary of 257)" in out
    assert corpus.name in out
    assert "checksums" not in out
    assert "checksums  all hold" in call("data", "info", folder, "--verify")[1]
    report = json.loads(call("data", "info", folder, "--json", "--verify")[1])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.items() <= report.items()
    assert report["verified"]


def test_info_finds_a_damaged_shard(refused, folder):
    shard = folder / "tokens-00000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert "tokens-00000.bin: damaged" in refused("data", "info", folder, "--verify")


def test_training_on_a_prepared_folder(call, folder, tiny, tmp_path):
    at = tiny.index("--data") + 1
    command = [*tiny[:at], folder, *tiny[at + 1 :], "--out", tmp_path / "run", "--json"]
    assert call("train", *command)[0] == 0
    assert not (tmp_path / "run/data").exists()
