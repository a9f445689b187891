"""What checks arrays' shapes and types while the tests run; conftest.py puts it in."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for mypy


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its arguments and result checked, if there is an array among them.

    The other functions are left to mypy: tests hand them stand-ins, and a person's mistakes.
    """
    has_array = "jaxtyping." in str(getattr(function, "__annotations__", ""))
    return _beartype(function) if has_array else function
