"""Files of tokenizers: those that others wrote, and those that are broken or mean harm."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clearhead.tokenizer.folder as folder_module
from clearhead.errors import ClearheadError
from clearhead.tokenizer import END_OF_TEXT, build_tokenizer, load_tokenizer, save_tokenizer
from clearhead.tokenizer.gpt2 import GPT2Tokenizer

SMALL = {
    spec: json.loads(build_tokenizer(spec, lambda: iter(["it's the fox, the fox"] * 3)).to_json())
    for spec in ("bpe:290", "char", "bytes")
}


def loaded(folder, parsed):
    text = parsed if isinstance(parsed, str) else json.dumps(parsed)
    (folder / "tokenizer.json").write_text(text)
    return load_tokenizer(folder)


def test_what_transformers_saves_again_is_the_same_tokenizer(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    (tmp_path / "again").mkdir()
    save_tokenizer(tokenizer, tmp_path)
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    again = tmp_path / "again" / "tokenizer.json"
    assert again.read_text() != tokenizer.to_json()
    twin = load_tokenizer(again.parent)
    assert type(twin) is type(tokenizer)
    assert (twin.name, twin.hash) == (tokenizer.name, tokenizer.hash)


def test_gpt2s_older_file_format_is_gpt2(gpt2, tmp_path):
    parsed = json.loads(gpt2.to_json())
    model = parsed["model"]
    model["merges"] = [" ".join(pair) for pair in model["merges"]]
    del model["type"], model["ignore_merges"], parsed["pre_tokenizer"]["use_regex"]
    model["continuing_subword_prefix"] = model["end_of_word_suffix"] = ""
    parsed["post_processor"] = {"type": "ByteLevel", "trim_offsets": False}
    twin = loaded(tmp_path, parsed)
    assert isinstance(twin, GPT2Tokenizer)
    assert twin.hash == gpt2.hash


def test_gpt2s_vocabulary_used_otherwise_is_not_gpt2(gpt2, tmp_path):
    parsed = json.loads(gpt2.to_json())
    parsed["model"]["merges"].pop()
    twin = loaded(tmp_path, parsed)
    assert not isinstance(twin, GPT2Tokenizer)
    assert twin.name == "bpe:50257"


def test_the_smallest_bpe_comes_back(tmp_path):
    smallest = build_tokenizer("bpe:257", lambda: iter(["abc"]))
    twin = loaded(tmp_path, smallest.to_json())
    assert (twin.name, twin.hash) == ("bpe:257", smallest.hash)


@pytest.mark.parametrize(
    ("spec", "path", "value", "message"),
    [
        ("bpe:290", ("normalizer",), {"type": "NFC"}, "normalizer"),
        ("bpe:290", ("pre_tokenizer", "add_prefix_space"), True, "add_prefix_space"),
        ("bpe:290", ("pre_tokenizer", "type"), "Metaspace", "Metaspace"),
        ("bpe:290", ("decoder",), None, "decoder"),
        ("bpe:290", ("model", "type"), "Unigram", "Unigram"),
        # This one ends the process if Rust gets to see it.
        ("bpe:290", ("model", "continuing_subword_prefix"), "a", "continuing_subword_prefix"),
        ("bpe:290", ("model", "merges", 0), ["t", "zz"], "merge"),
        ("bpe:290", ("model", "vocab", "a"), 2**40, "ids"),
        ("bpe:290", ("model", "vocab", "a"), 1.5, "whole number"),
        ("bpe:290", ("model", "vocab", "日"), 290, "ids"),
        ("bpe:290", ("model", "vocab", END_OF_TEXT), 5, "two ids"),
        ("bpe:290", ("added_tokens",), [], "added_tokens"),
        ("bpe:290", ("added_tokens", 0, "content"), "</s>", "</s>"),
        ("bpe:290", ("added_tokens", 0, "lstrip"), True, "lstrip"),
        ("bpe:290", ("post_processor",), {"type": "TemplateProcessing"}, "post_processor"),
        ("char", ("model", "unk_token"), "t", "unk_token"),
        ("char", ("model", "merges"), [["t", "h"]], "merge"),
        ("char", ("added_tokens", 0, "id"), 0, "ids"),
    ],
)
def test_a_tokenizer_of_another_kind_says_what_is_not_read(tmp_path, spec, path, value, message):
    parsed = copy.deepcopy(SMALL[spec])
    part = parsed
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(ClearheadError, match=message) as caught:
        loaded(tmp_path, parsed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "token", "other", "message"),
    [
        ("bytes", "a", "日", "256 bytes"),
        ("bytes", "a", "aa", "256 bytes"),
        ("char", "x", "xx", "single characters"),
        ("char", "x", "\ud800", "surrogates"),
    ],
)
def test_a_vocabulary_of_other_tokens_is_refused(tmp_path, spec, token, other, message):
    parsed = copy.deepcopy(SMALL[spec])
    vocab = parsed["model"]["vocab"]
    vocab[other] = vocab.pop(token)
    with pytest.raises(ClearheadError, match=message):
        loaded(tmp_path, parsed)


def places(part, path=()):
    """Every place in parsed JSON, the innermost last."""
    items = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from([[], {}, [["a", "b"]], {"type": "Sequence"}, "<|endoftext|>", "\ud800"]),
)


@given(st.sampled_from(sorted(SMALL)), st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_refused_or_loses_nothing(tmp_path_factory, spec, data):
    parsed = copy.deepcopy(SMALL[spec])
    path = data.draw(st.sampled_from(list(places(parsed))))
    part = parsed
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = data.draw(junk)
    error = ""
    try:
        tokenizer = loaded(tmp_path_factory.getbasetemp(), parsed)
    except ClearheadError as refusal:
        error = str(refusal)
    if error:
        assert "tokenizer.json" in error
        assert "\n" not in error
        assert len(error) < 400
    else:
        text = f"it's the fox{END_OF_TEXT}"
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.binary(max_size=200) | st.sampled_from([b"[]", b"{}", b'{"model": {"vocab": 1}}']))
@settings(max_examples=100, deadline=None)
def test_a_file_that_is_no_json_gives_one_clear_line(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ClearheadError, match=r"tokenizer\.json") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_half_a_file_no_file_and_a_file_nested_without_end(tokenizer, tmp_path):
    with pytest.raises(ClearheadError, match="damaged"):
        loaded(tmp_path, tokenizer.to_json()[:-100])
    with pytest.raises(ClearheadError, match="cannot be read"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ClearheadError, match="damaged"):
        loaded(tmp_path, "[" * 100_000)


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    content = json.dumps(SMALL["char"])
    monkeypatch.setattr(folder_module, "_LARGEST", len(content))
    assert loaded(tmp_path, content).name == "char"
    with pytest.raises(ClearheadError, match="larger than"):
        loaded(tmp_path, content + " ")
