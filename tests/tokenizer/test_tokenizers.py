import json
import os
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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

anything = st.text(st.characters(exclude_categories=["Cs"]))
blanks = st.text(st.sampled_from(" \t\n\r\v\f\x85\xa0\u2003\u3000ab1'.é日"), max_size=40)


def texts_of(tokenizer, corpus):
    """Strategy: any text that the tokenizer can take."""
    if tokenizer.name == "char":
        return st.text(st.sampled_from(sorted(set("".join(corpus)))))
    return anything | blanks | prompts(anything)


def prompts(texts):
    """Strategy: texts with the end-of-text token here and there."""
    return st.lists(texts, max_size=4).map(END_OF_TEXT.join)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_decoding_gives_the_text_back(tokenizer, corpus, data):
    text = data.draw(texts_of(tokenizer, corpus))
    ids = tokenizer.encode_ordinary(text)
    assert ids.dtype == np.uint32
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


@pytest.fixture(scope="module")
def tiktokens_own(tmp_path_factory):
    """tiktoken's gpt2, as it makes it from its cache."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        for name in ("encoder.json", "vocab.bpe"):
            gpt2_module._cached(name).write_bytes(gpt2_module._vocabulary_file(name))
        return tiktoken.get_encoding("gpt2")


@given(anything | blanks | prompts(blanks) | st.just(f"a {_CUT}  b"))
@settings(max_examples=500, deadline=None)
def test_gpt2s_ids_equal_tiktokens(gpt2, tiktokens_own, text):
    assert gpt2.encode_ordinary(text).tolist() == tiktokens_own.encode_ordinary(text)
    theirs = tiktokens_own.encode(text, allowed_special={END_OF_TEXT})
    assert gpt2.encode(text).tolist() == theirs


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_documents_and_any_ids_read_as_with_hugging_faces_tokenizers(tokenizer, corpus, data):
    theirs = _hugging_faces(tokenizer.to_json())
    text = data.draw(texts_of(tokenizer, corpus))
    assert tokenizer.encode_ordinary(text).tolist() == theirs.encode(text).ids
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@cache
def _hugging_faces(content):
    theirs = tokenizers.Tokenizer.from_str(content)
    theirs.encode_special_tokens = True  # so that the literal is plain text
    return theirs


@pytest.mark.parametrize("text", [" " * 10**6, "\n" * 10**6 + "a", "a" * 10**6, "ab1! " * 10**5])
def test_a_long_run_is_no_trouble(gpt2, text):
    assert gpt2.decode(gpt2.encode_ordinary(text)) == text


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
def test_transformers_gives_the_same_ids_and_text(tokenizer, transformers_tokenizer, corpus, data):
    text = data.draw(prompts(texts_of(tokenizer, corpus)))
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


def test_it_travels_to_other_processes(tokenizer, corpus):
    twin = pickle.loads(pickle.dumps(tokenizer))
    assert twin.encode(corpus[0]).tolist() == tokenizer.encode(corpus[0]).tolist()
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


def test_half_a_surrogate_pair_is_named(tokenizer):
    with pytest.raises(ClearheadError, match="place 1, half of a surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(ClearheadError, match="place 1, half of a surrogate"):
        tokenizer.encode_ordinary("a\ud800")


def test_an_error_in_the_corpus_comes_through_the_trainer():
    def documents():
        yield "some text"
        raise ClearheadError("book.txt is not UTF-8 at byte 5")

    for spec in ("char", "bpe:300"):
        with pytest.raises(ClearheadError, match="at byte 5"):
            build_tokenizer(spec, documents)


def test_bpe_learns_the_same_from_the_same_and_says_its_real_size(corpus):
    first, second = (build_tokenizer("bpe:300", lambda: iter(corpus * 3)) for _ in range(2))
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
        ("bpe:2000000000", "too large"),
        ("char", "corpus"),
        ("bpe:300", "corpus"),
    ],
)
def test_what_is_no_tokenizer_is_explained(spec, message):
    documents = (lambda: iter(["abc"])) if spec.startswith("bpe:2") else None
    with pytest.raises(ClearheadError, match=message):
        build_tokenizer(spec, documents)


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


_IN_WORKERS = """
import multiprocessing
from clearhead.tokenizer import build_tokenizer

if __name__ == "__main__":
    tokenizer = build_tokenizer("bpe:600", lambda: iter(["hello world, "] * 5000))
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            results = pool.map(tokenizer.encode_ordinary, ["hello world"] * 4)
        assert all(ids.tolist() == results[0].tolist() for ids in results)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no fork")
def test_workers_neither_warn_nor_wait_for_each_other(tmp_path):
    (tmp_path / "script.py").write_text(_IN_WORKERS)
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_importing_the_room_does_without_torch():
    code = "import sys, clearhead.tokenizer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path.cwd())
