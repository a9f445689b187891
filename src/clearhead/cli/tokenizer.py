"""`clearhead tokenizer train` and `clearhead tokenizer show`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text
from tyro.conf import Positional

from clearhead.cli import show as shown
from clearhead.cli.parse import Flag, parse, text
from clearhead.errors import ClearheadError
from clearhead.recipes.tokenize import bytes_per_token, train_tokenizer
from clearhead.tokenizer import TokenView, build_tokenizer, save_tokenizer, show_tokens

_COLOURS = ("black on bright_cyan", "black on bright_yellow", "black on bright_green")


@dataclass(frozen=True)
class TrainArguments:
    """Learn a byte-level BPE from text."""

    sources: Positional[tuple[str, ...]]
    """pydocs, files (.txt, .md, .jsonl, .parquet) or folders of such."""
    vocab_size: int
    """How many tokens there shall be, the 256 bytes and the end-of-text token included."""
    out: Path
    """The folder to write tokenizer.json into: a new or empty one."""
    encoding: str = "utf-8"
    """How the text files are encoded."""
    field: str = "text"
    """The field or column that holds the text, in JSON lines and Parquet."""
    json: Flag = False
    """Print the result as one JSON object."""


@dataclass(frozen=True)
class ShowArguments:
    """Tell how a text is cut into tokens."""

    text: Positional[str]
    """The text; <|endoftext|> in it is the special token."""
    tokenizer: str
    """gpt2, bytes, or a folder with a tokenizer.json, such as a checkpoint."""
    json: Flag = False
    """Print the result as one JSON object."""


def train(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(TrainArguments, arguments, prog)
    out = parsed.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ClearheadError(f"{out}: exists and is not empty; choose another --out")
    spec = f"bpe:{parsed.vocab_size}"
    with shown.notes(shown.progress()):
        tokenizer = train_tokenizer(
            spec, parsed.sources, encoding=parsed.encoding, field=parsed.field
        )
    ratio = bytes_per_token(tokenizer, parsed.sources, encoding=parsed.encoding, field=parsed.field)
    out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, out)
    if parsed.json:
        shown.as_json(
            {
                "folder": str(out),
                "tokenizer": tokenizer.name,
                "vocab_size": tokenizer.vocab_size,
                "bytes_per_token": ratio,
                "hash": tokenizer.hash,
            }
        )
        return 0
    size = f"{tokenizer.vocab_size:,}"
    if tokenizer.vocab_size < parsed.vocab_size:
        size += f" (the text has no pairs for all {parsed.vocab_size:,})"
    shown.facts(
        {
            "folder": out,
            "vocabulary": size,
            "compression": f"{ratio:.3f} bytes of text a token, on the first MiB",
        }
    )
    return 0


def show(arguments: Sequence[str], prog: str) -> int:
    """Run the verb; returns the exit status."""
    parsed = parse(ShowArguments, arguments, prog)
    tokenizer = build_tokenizer(parsed.tokenizer)
    tokens = show_tokens(text(parsed.text, "the text"), tokenizer)
    if parsed.json:
        rows = [{"id": one.id, "text": one.text, "bytes": list(one.bytes)} for one in tokens]
        shown.as_json({"tokenizer": tokenizer.name, "tokens": rows})
        return 0
    shown.table(
        "", ("id", "text", "bytes"), [(f"{t.id}", _escaped(t), t.bytes.hex(" ")) for t in tokens]
    )
    pieces = Text()
    for number, token in enumerate(tokens):
        pieces.append(_escaped(token), style=_COLOURS[number % len(_COLOURS)])
    console = shown.result()
    console.print(pieces, soft_wrap=True)
    n_bytes = sum(len(token.bytes) for token in tokens)
    shown.line(console, f"{len(tokens)} tokens for {n_bytes} bytes, {tokenizer.name}", "dim")
    return 0


def _escaped(token: TokenView) -> str:
    r"""Return a token's text in which a line end is \n and a byte that is no text is \xNN."""
    plain = token.bytes.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)
