"""The file format tokenizer.json, written with Hugging Face's tokenizers."""

from collections.abc import Mapping, Sequence
from functools import cache

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from clearhead.tokenizer.base import END_OF_TEXT


def byte_level_json(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, split_words: bool = True
) -> str:
    """Return the tokenizer.json of a byte-level BPE.

    Args:
        vocab: Token, written in byte characters, to id.
        merges: Pairs of tokens, the first to be merged first.
        split_words: Whether GPT-2's pattern splits the text before.
    """
    tokenizer = HuggingFaceTokenizer(models.BPE(vocab=dict(vocab), merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=split_words
    )
    tokenizer.decoder = decoders.ByteLevel()
    return with_end_of_text(tokenizer).to_str()


def with_end_of_text(tokenizer: HuggingFaceTokenizer) -> HuggingFaceTokenizer:
    """Add the end-of-text token, as the last id unless the vocabulary has it."""
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


@cache
def byte_characters() -> tuple[str, ...]:
    """Return the character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 characters stand for themselves, the others for U+0100 onwards, in order.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = {byte: byte for byte in printable}
    codes |= {byte: 256 + place for place, byte in enumerate(others)}
    return tuple(chr(codes[byte]) for byte in range(256))


@cache
def _bytes_of_characters() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(byte_characters())}


def piece_bytes(token: str) -> bytes:
    """Return the bytes that a token written in byte characters stands for.

    Raises:
        KeyError: The token is not written in byte characters.
    """
    if token == END_OF_TEXT:
        return token.encode()
    return bytes(map(_bytes_of_characters().__getitem__, token))
