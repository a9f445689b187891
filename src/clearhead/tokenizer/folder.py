"""Getting a tokenizer: by name, learnt from a corpus, or from a folder that holds one."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from clearhead.errors import ClearheadError, nearest
from clearhead.files import atomic_write
from clearhead.tokenizer.base import END_OF_TEXT, Tokenizer
from clearhead.tokenizer.gpt2 import GPT2Tokenizer, gpt2_tokenizer
from clearhead.tokenizer.huggingface import byte_characters, byte_level_json
from clearhead.tokenizer.learnt import (
    BPETokenizer,
    BytesTokenizer,
    CharTokenizer,
    learn_bpe,
    learn_characters,
)
from clearhead.tokenizer.reading import TokenizerFile, read_tokenizer_file

_LARGEST = 100 * 2**20
_LARGEST_SETTINGS = 16 * 2**20
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
        **({} if tokenizer.chat_template is None else {"chat_template": tokenizer.chat_template}),
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
        tokenizer = _tokenizer(read_tokenizer_file(path.read_bytes().decode()))
        tokenizer.chat_template = _chat_template(path.with_name("tokenizer_config.json"))
        return tokenizer
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ClearheadError(
            f"{path} is damaged, or of a kind that clearhead does not read: {error}"
        ) from error


def _chat_template(path: Path) -> str | None:
    """Return the template that stands in tokenizer_config.json, or in a file of its own."""
    alone = path.with_name("chat_template.jinja")
    for place in (alone, path):
        if place.exists() and place.stat().st_size > _LARGEST_SETTINGS:
            raise ClearheadError(f"{place} is larger than {_LARGEST_SETTINGS >> 20} MiB")
    if alone.exists():
        return alone.read_text(encoding="utf-8")
    settings = json.loads(path.read_bytes()) if path.exists() else {}
    template = settings.get("chat_template") if isinstance(settings, dict) else None
    return template if isinstance(template, str) else None


def _tokenizer(file: TokenizerFile) -> Tokenizer:
    if not file.byte_level:
        return CharTokenizer("".join(file.tokens))
    if not file.merges and file.tokens == list(byte_characters()):
        return BytesTokenizer()
    if file.split_words and _fingerprint(file) == _GPT2:
        return GPT2Tokenizer(file.vocab, file.merges)
    return BPETokenizer(byte_level_json(file.vocab, file.merges, split_words=file.split_words))


def _fingerprint(file: TokenizerFile) -> str:
    tokens = sorted(file.vocab, key=file.vocab.__getitem__)
    pairs = [" ".join(pair) for pair in file.merges]
    return sha256(json.dumps([tokens, pairs]).encode()).hexdigest()
