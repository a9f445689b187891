"""What a server answers, of which nothing is believed that its own words contradict."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import requests
from urllib3.exceptions import HTTPError

from clearhead.errors import ClearheadError

_BLOCK = 1 << 18
_PARTIAL, _RANGE_BEYOND_END = 206, 416
_NUMBER = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
UNSAFE = re.compile(r"[^\x21-\x7e]")
"""What stands in no address and in no token."""


class BrokenError(Exception):
    """A transfer that failed and may succeed when it is tried again.

    Args:
        reason: What happened, naming the address.
        wait: The seconds that the server asks to wait.
    """

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait


class UnreachableError(BrokenError):
    """No connection came about: nothing is there, or this machine is offline."""


class MissingError(ClearheadError):
    """The server has no such file."""


@dataclass(frozen=True)
class Answer:
    """A server's answer whose body is yet to be read."""

    url: str
    """The address that was asked for; redirects may have led elsewhere."""
    response: requests.Response
    """What carries the body."""

    @property
    def is_part(self) -> bool:
        """Whether the body is the part of a file that was asked for."""
        return self.response.status_code == _PARTIAL

    @property
    def is_beyond_end(self) -> bool:
        """Whether the file ends before the part that was asked for."""
        return self.response.status_code == _RANGE_BEYOND_END

    @property
    def length(self) -> int | None:
        """The bytes of the body, if the server announces them."""
        value = self.response.headers.get("Content-Length", "").strip()
        return int(value) if _NUMBER.fullmatch(value) and not self.is_chunked else None

    @property
    def is_chunked(self) -> bool:
        """Whether the end of the body is marked in the body itself."""
        return "Transfer-Encoding" in self.response.headers

    @property
    def range(self) -> tuple[int, int, int] | None:
        """Which part of the file it is: begin, end, and the size of the file."""
        found = _RANGE.fullmatch(self.response.headers.get("Content-Range", "").strip())
        return (int(found[1]), int(found[2]) + 1, int(found[3])) if found else None

    @property
    def validator(self) -> str | None:
        """What tells this version of the file from another, in the words of If-Range."""
        tag = self.response.headers.get("ETag", "")
        if re.fullmatch(r'"[\x21\x23-\x7e]{1,200}"', tag):
            return tag
        modified = self.response.headers.get("Last-Modified", "")
        return modified if re.fullmatch(r"[\w:, +-]{1,60}", modified, re.ASCII) else None

    def blocks(self) -> Iterator[bytes]:
        """Stream the body as it comes.

        Raises:
            BrokenError: The connection failed.
        """
        try:
            while block := self.response.raw.read1(_BLOCK, decode_content=False):
                yield block
        except (HTTPError, OSError, ValueError) as error:
            raise BrokenError(f"{self.url} broke off{cause(error)}") from error


def cause(error: BaseException) -> str:
    """Return the system's own words for what lies at the bottom of a failure, in brackets."""
    for one in reversed(list(chain(error))):
        if isinstance(one, OSError) and (reason := one.strerror or str(one)):
            return f" ({UNSAFE.sub(' ', reason)[:100]})"
    return ""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield a failure and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
