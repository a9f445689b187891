"""Every format that is known: recognised by content when read, chosen by name when written."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from clearhead.checkpoint.formats.source import Source
from clearhead.errors import ClearheadError, nearest

_READ = ("huggingface", "openai", "gguf", "llmc", "nanogpt", "book")
_WITHOUT_HEADS = ("nanogpt", "book")
_ENDINGS = (".gguf", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Writer:
    """How a format is written."""

    file: str
    """The file that holds the model, within the folder."""
    dtypes: tuple[str, ...]
    """What it can store, the usual one first."""
    readable: bool
    """Whether it can be read back as a `Source`."""


WRITERS = {
    "onnx": Writer("model.onnx", ("f32",), False),
    "gguf": Writer("model.gguf", ("f32", "f16", "bf16", "q8_0", "q4_0"), True),
    "nanogpt": Writer("ckpt.pt", ("f32", "f16", "bf16"), True),
    "llmc": Writer("model.bin", ("f32", "bf16"), True),
    "book": Writer("model.pth", ("f32", "f16", "bf16"), True),
}
"""The formats that are written, by name."""


def open_source(path: Path, *, vocab_size: int | None = None, n_heads: int | None = None) -> Source:
    """Open a checkpoint of any known format.

    Args:
        path: A file, or a folder that holds one checkpoint.
        vocab_size: The tokenizer's vocabulary, to which a padded one is cut.
        n_heads: The number of heads, for formats that do not tell it.

    Raises:
        ClearheadError: There is no such file, it is of no known format, or it is damaged.
    """
    if not path.exists():
        raise ClearheadError(f"{path} does not exist; give a file or a folder of weights")
    for candidate in _candidates(path):
        for name in _READ:
            module = _module(name)
            if module.recognise(candidate):
                return _open(name, module, candidate, vocab_size, n_heads)
    raise ClearheadError(
        f"{path} is of no known format; known are a Hugging Face folder, OpenAI's checkpoint "
        "folder, GGUF, llm.c's .bin, and the state dicts of nanoGPT, minGPT and the from-scratch "
        "book"
    )


def writer(to: str, dtype: str) -> tuple[Writer, Callable[[Source, Path, str], list[str]]]:
    """Return how a format is written.

    Raises:
        ClearheadError: There is no such format, or it cannot store the type.
    """
    if to not in WRITERS:
        raise ClearheadError(f"there is no format {to!r} to export to; {nearest(to, WRITERS)}")
    found = WRITERS[to]
    if dtype not in found.dtypes:
        raise ClearheadError(f"{to} stores {', '.join(found.dtypes)}, not {dtype!r}")
    function: Callable[[Source, Path, str], list[str]] = getattr(_module(to), f"write_{to}")
    return found, function


def _module(name: str) -> ModuleType:
    return import_module(f"clearhead.checkpoint.formats.{name}")


def _open(
    name: str, module: ModuleType, path: Path, vocab_size: int | None, n_heads: int | None
) -> Source:
    heads = {"n_heads": n_heads} if name in _WITHOUT_HEADS else {}
    source: Source = getattr(module, f"open_{name}")(path, vocab_size, **heads)
    return source


def _candidates(path: Path) -> list[Path]:
    """Return the path, and the one file of a folder that looks like weights."""
    if not path.is_dir():
        return [path]
    inside = sorted(one for one in path.iterdir() if one.suffix in _ENDINGS and one.is_file())
    return [path, *inside] if len(inside) == 1 else [path]
