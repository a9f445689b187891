"""Reading a tokenizer.json without trusting it: nothing in it reaches Rust unchecked.

The parser of Hugging Face's tokenizers can end the whole process on a file that is crafted or
damaged, so a file is read for its meaning here, and the tokenizer is made anew from that. The
same tokenizer has then the same hash, whichever program wrote its file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

from clearhead.tokenizer.base import END_OF_TEXT
from clearhead.tokenizer.huggingface import byte_characters

_MODEL = {
    "type": ("BPE", None),
    "dropout": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (False, None),
    "ignore_merges": (False, None),
}
_BYTE_LEVEL = {"type": ("ByteLevel",), "add_prefix_space": (False,), "use_regex": (True, False)}
_END_OF_TEXT = {
    "content": (END_OF_TEXT,),
    "special": (True,),
    "single_word": (False, None),
    "lstrip": (False, None),
    "rstrip": (False, None),
}


@dataclass(frozen=True)
class TokenizerFile:
    """What a tokenizer.json says."""

    vocab: dict[str, int]
    """The model's tokens and their ids; the end-of-text token may or may not be among them."""
    merges: list[tuple[str, str]]
    """Pairs of tokens, the first to be merged first."""
    byte_level: bool
    """Whether tokens are written in byte characters; otherwise each is one character."""
    split_words: bool
    """Whether GPT-2's pattern splits the text before."""

    @property
    def tokens(self) -> list[str]:
        """The tokens in order of their ids, without the end-of-text token."""
        ordered = sorted(self.vocab, key=self.vocab.__getitem__)
        return [token for token in ordered if token != END_OF_TEXT]


def read_tokenizer_file(content: str) -> TokenizerFile:
    """Return what a tokenizer.json says, if encoding with it loses nothing.

    Raises:
        ValueError: It is no tokenizer.json, or one of another kind; says what is not as it must be.
        RecursionError: It is nested without end.
    """
    whole = _checked(json.loads(content), "the file", {"normalizer": (None,)})
    model = _checked(whole.get("model"), "model", _MODEL)
    vocab = _vocabulary(model, whole)
    merges = _merges(model, vocab)
    _check_adds_nothing(whole.get("post_processor"))
    if whole.get("pre_tokenizer") is None:
        _checked(whole.get("decoder"), "decoder", {"type": ("Fuse",)})
        file = TokenizerFile(vocab, merges, byte_level=False, split_words=False)
        _check_characters(file, model, vocab.get(END_OF_TEXT, len(vocab)))
        return file
    # Files from before the field existed always split.
    pre_tokenizer = {"use_regex": True} | _checked(whole["pre_tokenizer"], "pre_tokenizer", {})
    _checked(pre_tokenizer, "pre_tokenizer", _BYTE_LEVEL)
    _checked(whole.get("decoder"), "decoder", {"type": ("ByteLevel",)})
    file = TokenizerFile(
        vocab, merges, byte_level=True, split_words=bool(pre_tokenizer["use_regex"])
    )
    alphabet = set(byte_characters())
    if not alphabet <= vocab.keys() or not alphabet.issuperset("".join(file.tokens)):
        raise ValueError("model.vocab is not made of the 256 bytes")
    return file


def _checked(part: object, where: str, allowed: Mapping[str, tuple[object, ...]]) -> dict[str, Any]:
    """Return `part` if it is an object whose fields have the values that are allowed them."""
    if not isinstance(part, dict):
        raise ValueError(f"{where} is {shortened(part)}, not an object")
    for field, values in allowed.items():
        if part.get(field) not in values:
            raise ValueError(f"{where}.{field} is {shortened(part.get(field))}, not {values[0]!r}")
    return part


def _vocabulary(model: dict[str, Any], whole: dict[str, Any]) -> dict[str, int]:
    vocab = _checked(model.get("vocab"), "model.vocab", {})
    added = whole.get("added_tokens")
    if not isinstance(added, list) or len(added) != 1:
        raise ValueError(f"added_tokens is not {END_OF_TEXT} alone")
    end_of_text = _checked(added[0], "added_tokens", _END_OF_TEXT).get("id")
    if any(type(i) is not int for i in (*vocab.values(), end_of_text)):
        raise ValueError("an id is not a whole number")
    ids = {**vocab, END_OF_TEXT: end_of_text}
    if vocab.get(END_OF_TEXT, end_of_text) != end_of_text:
        raise ValueError(f"{END_OF_TEXT} has two ids")
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError("the ids are not 0, 1, 2 and so on")
    return vocab


def _merges(model: dict[str, Any], vocab: dict[str, int]) -> list[tuple[str, str]]:
    listed = model.get("merges")
    if not isinstance(listed, list):
        raise ValueError(f"model.merges is {shortened(listed)}, not a list")
    merges = []
    for merge in listed:
        pair = merge.split(" ") if type(merge) is str else merge
        if type(pair) is list and len(pair) == 2 and type(pair[0]) is type(pair[1]) is str:
            left, right = pair
            if left in vocab and right in vocab and left + right in vocab:
                merges.append((left, right))
                continue
        raise ValueError(f"the merge {shortened(merge)} is not of tokens of the vocabulary")
    return merges


def _check_adds_nothing(post_processor: object) -> None:
    if post_processor is None:
        return
    fields = _checked(post_processor, "post_processor", {})
    # transformers writes a template that has no tokens of its own.
    is_empty = fields.get("type") == "TemplateProcessing" and fields.get("special_tokens") == {}
    if not is_empty and fields.get("type") != "ByteLevel":
        raise ValueError("post_processor adds tokens to those of the text")


def _check_characters(file: TokenizerFile, model: dict[str, Any], end_of_text: int) -> None:
    _checked(model, "model", {"unk_token": (None,)})
    tokens = file.tokens
    if file.merges or end_of_text != len(tokens) or any(len(token) != 1 for token in tokens):
        raise ValueError(f"model.vocab is not single characters, then {END_OF_TEXT}")
    "".join(tokens).encode()  # half of a surrogate pair is no character
