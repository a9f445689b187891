"""Config dataclasses to and from dictionaries and TOML, with errors that name the key."""

import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import tomli_w

from clearhead.errors import ClearheadError, nearest
from clearhead.files import atomic_write

C = TypeVar("C")

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


def from_dict(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """Build a config dataclass, and those nested in it, from plain values.

    A field is a bool, int, float, str, Path, Literal, a list or tuple of one of these, such a
    dataclass, or one of these or None. A whole number is taken for a float, a list for a tuple and
    a text for a path; nothing else is converted.

    Args:
        cls: The dataclass.
        values: Its fields; what is left out takes its default.
        where: What the values come from, to begin the error message with.

    Raises:
        ClearheadError: A key is unknown or missing, or a value has the wrong type or is refused by
            the dataclass. The message names the dotted key.
    """
    return cast("C", _build(cls, values, where, ""))


def to_dict(config: object) -> dict[str, Any]:
    """Return a config dataclass as plain values: nested dictionaries, lists, texts, numbers."""
    return {
        field.name: _plain(getattr(config, field.name)) for field in fields(cast("Any", config))
    }


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ClearheadError: It cannot be read, or is not TOML; the message has the line.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ClearheadError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ClearheadError(f"{path} is not UTF-8 text, at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ClearheadError(f"{path} is not valid TOML: {reason}") from error


def write_toml(path: Path, config: object) -> None:
    """Write a config dataclass or a dictionary as TOML, atomically; None values are left out.

    Raises:
        ValueError: What was written would not read back as the same config: a field is None, and
            its default is not.
    """
    plain = config if isinstance(config, dict) else to_dict(config)
    text = tomli_w.dumps(_without_none(plain))
    if is_dataclass(config) and from_dict(type(config), tomllib.loads(text), str(path)) != config:
        raise ValueError(f"{type(config).__name__} has a field that TOML cannot hold: {config}")
    with atomic_write(path) as file:
        file.write(text.encode())


def load(cls: type[C], path: Path) -> C:
    """Read a config dataclass from a TOML file.

    Raises:
        ClearheadError: As `load_toml` and `from_dict`.
    """
    return from_dict(cls, load_toml(path), str(path))


def _build(cls: Any, values: Mapping[str, Any], where: str, prefix: str) -> object:
    """Build the dataclass whose keys stand under `prefix` ("model.")."""
    known = {field.name: field for field in fields(cls) if field.init}
    for key in values:
        if key not in known:
            hint = nearest(str(key), known)
            raise ClearheadError(f"{where}: unknown key {short(f'{prefix}{key}')}; {hint}")
    types_of = get_type_hints(cls)
    given = {}
    for name, field in known.items():
        if name in values:
            given[name] = _convert(types_of[name], values[name], where, prefix + name)
        elif _is_required(field):
            expected = _describe(types_of[name])
            raise ClearheadError(f"{where}: {prefix}{name} is missing; it must be {expected}")
    try:
        return cls(**given)
    except ClearheadError as error:
        section = f"{prefix.removesuffix('.')}: " if prefix else ""
        raise ClearheadError(f"{where}: {section}{error}") from error


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _convert(expected: Any, value: Any, where: str, key: str) -> Any:
    """Return `value` as the annotation `expected` wants it."""
    origin, choices = get_origin(expected), get_args(expected)
    if is_dataclass(expected) and isinstance(value, Mapping):
        return _build(expected, value, where, f"{key}.")
    if origin in (Union, types.UnionType):  # of one type and None
        (inner,) = (one for one in choices if one is not type(None))
        return None if value is None else _convert(inner, value, where, key)
    if origin is Literal and any(value == one and type(value) is type(one) for one in choices):
        return value
    if origin in (list, tuple) and isinstance(value, list | tuple):
        items = [_convert(choices[0], one, where, f"{key}[{i}]") for i, one in enumerate(value)]
        return items if origin is list else tuple(items)
    if expected is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    if expected is Path and isinstance(value, str | Path):
        return Path(value)
    if expected in _WORDS and type(value) is expected:
        return value
    raise ClearheadError(f"{where}: {key} is {short(value)}; it must be {_describe(expected)}")


def _describe(expected: Any) -> str:
    """Say in words what an annotation allows."""
    origin, choices = get_origin(expected), get_args(expected)
    if origin in (Union, types.UnionType):
        return next(_describe(one) for one in choices if one is not type(None))
    if origin is Literal:
        return f"one of {', '.join(repr(one) for one in choices)}"
    if origin in (list, tuple):
        return f"a list, each item {_describe(choices[0])}"
    return "a table" if is_dataclass(expected) else _WORDS[expected]


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
