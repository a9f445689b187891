"""Arguments from dataclasses, by tyro."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff

from clearhead.errors import ClearheadError, nearest

A = TypeVar("A")
Flag = FlagCreatePairsOff[bool]
"""A switch that is off unless it is named."""


def parse(cls: type[A], arguments: Sequence[str], prog: str, default: A | None = None) -> A:
    """Return a dataclass filled from arguments; `--help` and mistakes end as tyro ends them.

    Args:
        cls: The dataclass; its docstrings are the help.
        arguments: What follows the verb.
        prog: The command and the verb, for messages.
        default: Values for what is not given; the dataclass's own by default.

    Raises:
        ClearheadError: An option is unknown, or a value is refused by the dataclass.
        SystemExit: After the help (status 0), or a mistake that tyro has told (status 2).
    """
    given: dict[str, Any] = {} if default is None else {"default": default}
    parsed, unknown = tyro.cli(
        cls, args=arguments, prog=prog, return_unknown_args=True, config=(DisallowNone,), **given
    )
    if unknown:
        raise ClearheadError(_unknown(unknown, list(_options(cls)), prog))
    return parsed


def text(value: str, name: str) -> str:
    """Return a text that was given as an argument, if it is one.

    Raises:
        ClearheadError: Its bytes are not UTF-8, which Python hides in lone surrogates.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ClearheadError(f"{name} is not UTF-8 text, at character {error.start}") from error
    return value


def _unknown(words: Sequence[str], options: Sequence[str], prog: str) -> str:
    option = next((word for word in words if word.startswith("-")), None)
    if option is None:
        return f"{prog}: {words[0]!r} is one argument too many; {prog} --help tells what there is"
    option = option.split("=")[0]
    return f"{prog} has no option {option!r}; {_closest(option, options, prog)}"


def _closest(option: str, options: Sequence[str], prog: str) -> str:
    hint = nearest(option.replace("_", "-"), options)
    return hint if hint.startswith("did you") else f"{prog} --help lists what there is"


def _options(cls: Any, prefix: str = "") -> Iterator[str]:
    """Name the options that tyro makes of a dataclass."""
    types = get_type_hints(cls)
    for field in fields(cls):
        name = field.name.replace("_", "-")
        if is_dataclass(types[field.name]):
            flat = field.metadata.get("flat", False)
            yield from _options(types[field.name], prefix if flat else f"{prefix}{name}.")
        else:
            yield f"--{prefix}{name}"
            if types[field.name] is bool:
                yield f"--{prefix}no-{name}"
