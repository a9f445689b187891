"""`clearhead tokenizer train` and `clearhead tokenizer show`."""

import json

import pytest

from clearhead.tokenizer import load_tokenizer


@pytest.fixture
def folder(call, corpus, tmp_path):
    folder = tmp_path / "tokenizer"
    command = ("tokenizer", "train", corpus, "--vocab-size", "280", "--out", folder)
    assert call(*command)[0] == 0
    return folder


def test_train_measures_the_compression(call, corpus, tmp_path):
    folder = tmp_path / "tokenizer"
    command = ("tokenizer", "train", corpus, "--vocab-size", "280", "--out", folder, "--json")
    status, out, _ = call(*command)
    report = json.loads(out)
    tokenizer = load_tokenizer(folder)
    texts = corpus.read_text().split("<|endoftext|>")
    n_tokens = sum(len(tokenizer.encode_ordinary(text)) for text in texts)
    assert status == 0
    assert report["vocab_size"] == tokenizer.vocab_size == 280
    assert report["hash"] == tokenizer.hash
    assert report["bytes_per_token"] == sum(map(len, texts)) / n_tokens


def test_a_vocabulary_that_the_text_does_not_fill_is_told(call, corpus, tmp_path):
    command = ("tokenizer", "train", corpus, "--vocab-size", "9999", "--out", tmp_path / "t")
    status, out, _ = call(*command)
    assert status == 0
    assert "the text has no pairs for all 9,999" in out


def test_train_leaves_other_files_alone(refused, corpus, folder):
    command = ("tokenizer", "train", corpus, "--vocab-size", "290", "--out", folder)
    assert "choose another --out" in refused(*command)
    assert load_tokenizer(folder).vocab_size == 280


def test_show_lists_id_text_and_bytes(call, folder):
    status, out, err = call(
        "tokenizer", "show", "\u00e9 [b]\n<|endoftext|>", "--tokenizer", "bytes"
    )
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["id", "text", "bytes"]
    assert rows[1] == ["195", "\\xc3", "c3"]
    assert ["10", "\\n", "0a"] in rows
    assert "\\xc3\\xa9 [b]\\n<|endoftext|>" in out
    assert "8 tokens for" in out


def test_show_json(call, folder):
    text = "the lazy <|endoftext|>"
    status, out, _ = call("tokenizer", "show", text, "--tokenizer", folder, "--json")
    report = json.loads(out)
    assert status == 0
    assert [token["id"] for token in report["tokens"]] == load_tokenizer(folder).encode(
        text
    ).tolist()
    assert b"".join(bytes(token["bytes"]) for token in report["tokens"]) == text.encode()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gpt3", "there is no tokenizer 'gpt3'; did you mean 'gpt2'?"),
        ("char", "learnt from a corpus"),
        ("bpe:4096", "learnt from a corpus"),
    ],
)
def test_show_mistakes(refused, name, told):
    assert told in refused("tokenizer", "show", "a text", "--tokenizer", name)


def test_show_refuses_what_is_no_text(refused):
    assert "not UTF-8" in refused("tokenizer", "show", "a\udcff", "--tokenizer", "bytes")
