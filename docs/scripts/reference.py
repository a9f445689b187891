"""Write the pages of the documentation that are made from the code.

`python docs/scripts/reference.py` writes them; a test holds that what is committed is what the
code says now.
"""

import ast
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

from clearhead.cli.main import VERBS, main
from clearhead.engine import SamplingConfig
from clearhead.model import PRESETS, GPTConfig
from clearhead.recipes.pretrain import PretrainConfig, recipe
from clearhead.train import OptimizerConfig, ScheduleConfig

sys.path.insert(0, str(Path(__file__).parent))
import diagram
import mistakes

DOCS = Path(__file__).parent.parent
COLUMNS = "88"
MADE = (
    "<!-- Made by docs/scripts/reference.py; change that, or the code, and run `make docs`. -->\n"
)


def cli() -> str:
    """Return the page of the commands' own help texts."""
    parts = [
        MADE,
        "# Command line\n",
        "What each command prints when it is asked for `--help`. Every verb that reports takes "
        "`--json`: then standard output holds one JSON object and nothing else; progress goes to "
        "standard error. A verb ends with status 0, with 2 for a mistake that you can mend, and "
        "with 130 if it was interrupted.\n",
    ]
    for name in ["", *VERBS]:
        title = f"clearhead {name}".strip()
        parts.append(f"## {title}\n\n```text\n{help_of(name)}```\n")
    return "\n".join(parts)


def help_of(name: str) -> str:
    """Return what a verb prints for `--help` on a terminal of fixed width."""
    with _fixed_width(), redirect_stdout(io.StringIO()) as printed:
        main([*name.split(), "--help"])
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


@contextmanager
def _fixed_width() -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= {"COLUMNS": COLUMNS, "NO_COLOR": "1", "TERM": "dumb"}
    for name in ("FORCE_COLOR", "LINES"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def config() -> str:
    """Return the page of the configuration's fields."""
    nano = recipe("nano")
    sections: list[tuple[str, type, object]] = [
        ("", PretrainConfig, nano),
        ("model", GPTConfig, nano.model),
        ("optimizer", OptimizerConfig, nano.optimizer),
        ("schedule", ScheduleConfig, nano.schedule),
    ]
    parts = [
        MADE,
        "# Configuration\n",
        "What a TOML file for `clearhead train --config` may hold, and what a run's own "
        "`config.toml` does hold. On the command line the same fields are options: `batch_size` is "
        "`--batch-size`, `learning_rate` under `[optimizer]` is `--optimizer.learning-rate`. The "
        "defaults are those of `--preset nano`.\n",
    ]
    for name, cls, defaults in sections:
        title = f"[{name}]" if name else "At the top"
        parts += [f"## `{title}`\n" if name else f"## {title}\n"]
        parts += [f"{(cls.__doc__ or '').split(chr(10))[0]}\n", _fields(cls, defaults)]
    parts += ["## Presets\n", "What each `--preset` sets otherwise than `nano`.\n", _presets()]
    parts += [
        "## Sampling\n",
        "How `clearhead generate`, `clearhead chat` and their functions choose tokens; on the "
        "command line `max_new_tokens` is `--tokens` and `min_new_tokens` is `--min-tokens`.\n",
        _fields(SamplingConfig, SamplingConfig()),
    ]
    return "\n".join(parts)


def _fields(cls: type, defaults: object) -> str:
    told = _documented(cls)
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in fields(cls):  # type: ignore[arg-type]
        value = getattr(defaults, field.name)
        if not is_dataclass(value):
            kind = _type(field.type).replace("|", "\\|")
            row = (f"`{field.name}`", f"`{kind}`", _shown(value), told[field.name])
            rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows) + "\n"


def _documented(cls: type) -> dict[str, str]:
    """Return the text below each field, those of the base classes too."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__[:-1]):
        (body,) = ast.parse(dedent(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                found[ast.unparse(field.target)] = " ".join(text.split())
    return found


def _type(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) and not getattr(kind, "__args__", None) else kind
    text = str(text).replace("typing.", "").replace("pathlib._local.", "")
    text = re.sub(r"Literal\[(.*)\]", lambda choices: choices[1].replace(", ", " | "), text)
    return text.replace("pathlib.", "")


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(repr(one) for one in value)}]`"
    return f"`{value.as_posix() if isinstance(value, Path) else value}`"


def _presets() -> str:
    base = _flat(recipe("nano"))
    flat = {name: _flat(recipe(name)) for name in PRESETS}
    keys = [key for key in base if any(one[key] != base[key] for one in flat.values())]
    rows = [f"| field | {' | '.join(f'`{name}`' for name in flat)} |"]
    rows.append("| --- |" + " --- |" * len(flat))
    for key in keys:
        rows.append(
            f"| `{key}` | {' | '.join(_shown(_short(one[key])) for one in flat.values())} |"
        )
    return "\n".join(rows) + "\n"


def _flat(settings: object, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if is_dataclass(value):
            found |= _flat(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def _short(value: object) -> object:
    return f"{value:.3g}" if isinstance(value, float) and 0 < value < 0.01 else value


def errors() -> str:
    """Return the page of the messages, each as the command tells it now."""
    return f"{MADE}\n{mistakes.page()}"


def formats() -> str:
    """Return the page of the names that each format gives the tensors, from its own table."""
    parts = [
        MADE,
        "# Names of tensors in each format\n",
        "How `clearhead import` and `clearhead export` map names, from the tables that they use. "
        "V is the size of the vocabulary, T the context length, D the width; N numbers the blocks. "
        "Our linear layers are stored as [out, in].\n",
    ]
    one_block = replace(GPTConfig(), n_layers=1, tied_head=False)
    for name in FORMATS:
        table = import_module(f"clearhead.checkpoint.formats.{name}").TABLE
        parts += [f"## {name}\n", "| Ours | There | Shape there |", "| --- | --- | --- |"]
        for weight in table.weights(one_block):
            theirs = " + ".join(f"`{_numbered(one, table.block)}`" for one in weight.theirs)
            ours = weight.ours.replace("blocks.0.", "blocks.N.")
            shape = ", ".join(_SYMBOLS[size] for size in weight.shape)
            parts.append(f"| `{ours}` | {theirs} | [{shape}] |")
        parts.append("")
    return "\n".join(parts)


FORMATS = ("huggingface", "openai", "nanogpt", "book", "llmc", "gguf")
_SYMBOLS = {50257: "V", 1024: "T", 768: "D", 2304: "3D", 3072: "4D"}


def _numbered(name: str, block: str) -> str:
    before = block.format(layer=0)
    return block.format(layer="N") + name.removeprefix(before) if name.startswith(before) else name


PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli,
    "reference/config.md": config,
    "how-to/errors.md": errors,
    "reference/formats.md": formats,
    "images/architecture.svg": diagram.draw,
}


def write() -> None:
    """Write every made page."""
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")
        print(f"written: docs/{name}")


if __name__ == "__main__":
    write()
