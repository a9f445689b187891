"""One GET, whatever the server does: bounded in time, in redirects and in what is believed."""

import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from clearhead.checkpoint.download.answer import (
    UNSAFE,
    Answer,
    BrokenError,
    MissingError,
    UnreachableError,
    cause,
    chain,
)
from clearhead.checkpoint.download.guard import GuardedAdapter
from clearhead.errors import ClearheadError

T = TypeVar("T")

CONNECT_SECONDS = 10.0
"""How long a server may take to accept a connection."""
READ_SECONDS = 30.0
"""How long it may be silent."""

_MOST_REDIRECTS = 10
_MOST_FAILURES = 5  # in a row
_ENOUGH = 16 << 20  # bytes after which a failure counts as the first again
_MOST_WAIT = 300.0
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_OK, _PARTIAL, _RANGE_BEYOND_END = 200, 206, 416
_NUMBER = re.compile(r"[0-9]{1,18}")


class Client:
    """Sends requests.

    Args:
        sleep: Waits so many seconds.
        token: Sent as a login, to `token_home` alone; empty if there is none.
        token_home: An address of the only server that may see the token.
    """

    def __init__(self, sleep: Callable[[float], None], token: str, token_home: str) -> None:
        if UNSAFE.search(token):
            raise ClearheadError("HF_TOKEN holds a character that no token has; set it anew")
        self._token, self._token_home = token, _origin(urlsplit(check_url(token_home)))
        self._sleep, self._has_reached = sleep, False
        self._session = requests.Session()
        self._session.auth = _no_login
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, GuardedAdapter())

    def close(self) -> None:
        """Let go of the connections."""
        self._session.close()

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """Ask for a file, and follow where it leads.

        Args:
            url: Its address.
            headers: What to send beside the usual.

        Yields:
            The answer: all of the file, a part of it, or that it ends before that part.

        Raises:
            BrokenError: The server failed, or cannot be reached.
            ClearheadError: It refuses.
        """
        at = check_url(url)
        for _ in range(_MOST_REDIRECTS + 1):
            response = self._send(url, at, headers)
            try:
                if response.status_code not in _REDIRECTS:
                    _check(url, response)
                    yield Answer(url, response)
                    return
                at = _next(url, at, response.headers.get("Location", ""))
            finally:
                response.close()
        raise ClearheadError(
            f"{url} leads on more than {_MOST_REDIRECTS} times; take another mirror"
        )

    def persist(self, attempt: Callable[[], T], brought: Callable[[], int] = int) -> T:
        """Try until it works, with growing waits, or those that the server asks for.

        Args:
            attempt: What to try.
            brought: Returns the bytes that the last attempt brought.

        Raises:
            UnreachableError: No server has been reached so far.
            ClearheadError: It failed too often, or the server asks to wait too long.
        """
        failures = 0
        while True:
            try:
                return attempt()
            except BrokenError as error:
                if isinstance(error, UnreachableError) and not self._has_reached:
                    raise
                failures = 1 if brought() >= _ENOUGH else failures + 1
                if error.wait > _MOST_WAIT:
                    raise ClearheadError(
                        f"{error} and asks to wait {error.wait:,.0f} s; run again after that"
                    ) from error
                if failures > _MOST_FAILURES:
                    raise ClearheadError(
                        f"{error}, and so {failures} times in a row; run again later"
                    ) from error
                self._sleep(max(error.wait, 2.0 ** (failures - 1)))

    def _send(self, url: str, at: str, headers: Mapping[str, str]) -> requests.Response:
        """Send one request; a failure names the address that was asked for first."""
        more = {"Accept-Encoding": "identity", "User-Agent": "clearhead"}
        if self._token and _origin(urlsplit(at)) == self._token_home:
            more["Authorization"] = f"Bearer {self._token}"
        self._session.cookies.clear()
        try:
            response = self._session.get(
                at,
                headers={**headers, **more},
                stream=True,
                allow_redirects=False,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
            )
        except requests.ConnectionError as error:
            if any(isinstance(one, ssl.SSLCertVerificationError) for one in chain(error)):
                raise ClearheadError(
                    f"{url}: its certificate is not valid; do not go on"
                ) from error
            if _never_connected(error):
                raise UnreachableError(f"{url} cannot be reached{cause(error)}") from error
            raise BrokenError(f"{url} gives no proper answer{cause(error)}") from error
        except requests.Timeout as error:
            raise BrokenError(f"{url}: did not answer in time") from error
        except (requests.RequestException, HTTPError, ValueError) as error:
            raise ClearheadError(f"{url}: the answer makes no sense{cause(error)}") from error
        self._has_reached = True
        return response


def check_url(url: str) -> str:
    """Return an address that can be asked for.

    Raises:
        ClearheadError: It is none, or carries a password.
    """
    shown = UNSAFE.sub("?", url)[:200]
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one or UNSAFE.search(url):
        raise ClearheadError(f"{shown!r} is no address; give one that begins with https://")
    if parts.username is not None:
        raise ClearheadError(f"the address at {parts.hostname} carries a login; leave it out")
    return url


def _next(url: str, at: str, location: str) -> str:
    """Return where a redirect leads."""
    try:
        to = check_url(urljoin(at, location))
    except (ValueError, ClearheadError) as error:
        raise ClearheadError(
            f"{url} leads to what is no web address; take another mirror"
        ) from error
    if at.startswith("https:") and not to.startswith("https:"):
        raise ClearheadError(
            f"{url} leads away from https, where anyone could change it; take another mirror"
        )
    return to


def _check(url: str, response: requests.Response) -> None:
    """Refuse an answer that brings no file."""
    status = response.status_code
    if status in (404, 410):
        raise MissingError(f"{url}: there is no such file ({status}); check the name")
    if status in (401, 403):
        raise ClearheadError(
            f"{url}: access refused ({status}); check the name, and if the model is private or "
            "asks for consent, set HF_TOKEN to a token that may read it"
        )
    if status in _PASSING:
        wait = _retry_after(response.headers.get("Retry-After", "").strip())
        raise BrokenError(f"{url}: the server answers {status}", wait)
    if status not in (_OK, _PARTIAL, _RANGE_BEYOND_END):
        raise ClearheadError(f"{url}: the server answers {status}; take another mirror")
    for header, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        if response.headers.get(header, plain).lower() != plain:
            raise ClearheadError(
                f"{url}: is sent compressed, though it was asked for as it is; take another mirror"
            )


def _retry_after(value: str) -> float:
    """Return the seconds that a server asks to wait, 0 if it says nothing that makes sense."""
    if _NUMBER.fullmatch(value):
        return float(value)
    try:
        until = parsedate_to_datetime(value)
        wait = until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0
    return max(0.0, wait.total_seconds())


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port


def _no_login(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep requests from sending a login that it finds in ~/.netrc."""
    return request


def _never_connected(error: requests.ConnectionError) -> bool:
    """Say whether a failure came before the connection did."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, NewConnectionError | ConnectTimeoutError)
