"""Getting a tokenizer: by name, learnt from a corpus, or from a folder that holds one."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from clearhead.errors import ClearheadError, nearest
from clearhead.files import atomic_write
from clearhead.tokenizer.base import END_OF_TEXT, Tokenizer
from clearhead.tokenizer.gpt2 import GPT2Tokenizer, gpt2_tokenizer
from clearhead.tokenizer.learnt import (
    BPETokenizer,
    BytesTokenizer,
    CharTokenizer,
    learn_bpe,
    learn_characters,
)

_LARGEST = 100 * 2**20
_GPT2 = "caca9045a4e575025978fb8f7fc6989e66e39f1fbd72ed4d0a49dc9dbc3b8869"


def build_tokenizer(spec: str, documents: Callable[[], Iterator[str]] | None = None) -> Tokenizer:
    """Return the tokenizer that `spec` names.

    Args:
        spec: gpt2, bytes, char, bpe:SIZE, or a folder with a tokenizer.json.
        documents: Starts an iteration over the corpus that char and bpe learn from.

    Raises:
        ClearheadError: There is no such tokenizer, or it needs a corpus.
    """
    kind, _, size = spec.partition(":")
    if spec == "gpt2":
        return gpt2_tokenizer()
    if spec == "bytes":
        return BytesTokenizer()
    if spec == "char" or kind == "bpe":
        if kind == "bpe" and not size.isdecimal():
            raise ClearheadError(f"tokenizer {spec!r} has no size; write bpe:4096, say")
        if documents is None:
            raise ClearheadError(f"the tokenizer {spec} is learnt from a corpus; give sources")
        return (
            learn_characters(documents()) if spec == "char" else learn_bpe(int(size), documents())
        )
    if Path(spec).is_dir():
        return load_tokenizer(Path(spec))
    hint = nearest(spec, ["gpt2", "bytes", "char", "bpe:SIZE", "a folder with a tokenizer.json"])
    raise ClearheadError(f"there is no tokenizer {spec!r}; {hint}")


def save_tokenizer(
    tokenizer: Tokenizer, folder: Path, *, context_length: int | None = None
) -> None:
    """Write tokenizer.json and tokenizer_config.json, as `transformers.AutoTokenizer` reads them.

    Args:
        tokenizer: What to save.
        folder: An existing folder.
        context_length: The most tokens of the model that it goes with.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        **({} if context_length is None else {"model_max_length": context_length}),
    }
    for name, content in {
        "tokenizer.json": tokenizer.to_json(),
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }.items():
        with atomic_write(folder / name) as file:
            file.write(content.encode())


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a folder with a tokenizer.json.

    Raises:
        ClearheadError: The file is missing, damaged, or of a kind that is not read here.
    """
    path = Path(folder) / "tokenizer.json"
    try:
        if path.stat().st_size > _LARGEST:
            raise ClearheadError(f"{path} is larger than {_LARGEST >> 20} MiB: no tokenizer")
        content = path.read_bytes().decode()
        parsed = json.loads(content)
        model = parsed["model"]
        vocab, merges = model["vocab"], model["merges"]
        if _fingerprint(vocab, merges) == _GPT2:
            return GPT2Tokenizer(content)
        if parsed["pre_tokenizer"] is None and not merges:
            return _checked(CharTokenizer(_characters(vocab)), content)
        if not merges and len(vocab) == 256:
            return _checked(BytesTokenizer(), content)
        return BPETokenizer(content)
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror}") from error
    except ClearheadError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot parse
        raise ClearheadError(
            f"{path} is damaged, or not a byte-level BPE or character tokenizer with {END_OF_TEXT}"
        ) from error


def _checked(tokenizer: Tokenizer, content: str) -> Tokenizer:
    if tokenizer.to_json() != content:
        raise ValueError("a tokenizer.json of another make")
    return tokenizer


def _characters(vocab: dict[str, int]) -> str:
    ordered = sorted((token for token in vocab if token != END_OF_TEXT), key=vocab.__getitem__)
    return "".join(ordered)


def _fingerprint(vocab: dict[str, int], merges: list[Any]) -> str:
    """Hash what a BPE does, whichever way its file is written."""
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    return sha256(json.dumps([sorted(vocab, key=vocab.__getitem__), pairs]).encode()).hexdigest()
