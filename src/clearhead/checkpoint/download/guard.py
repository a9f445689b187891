"""Connections on which a server can neither stall nor flood.

A timeout of a socket begins anew with every byte, and headers, interim answers and trailers may go
on without end. Here every byte that arrives passes one place that knows what came of it.
"""

import http.client
import io
import time
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.poolmanager import PoolManager

WINDOW_SECONDS = 60.0
"""In each stretch of so many seconds …"""
LEAST_BYTES = 60 << 10
"""… at least so many bytes of the body must arrive."""
MOST_OTHER_BYTES = 64 << 20
"""At most so many bytes of a stretch may be anything else."""


class _Guard(io.RawIOBase):
    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._began, self._arrived, self.body = time.monotonic(), 0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() - self._began > WINDOW_SECONDS:
            if self.body < LEAST_BYTES:
                raise TimeoutError(f"{self.body} bytes in {WINDOW_SECONDS:.0f} s")
            self._began, self._arrived, self.body = time.monotonic(), 0, 0
        if self._arrived - self.body > MOST_OTHER_BYTES:
            raise TimeoutError("headers without end")
        found: int | None = self._raw.readinto(buffer)
        self._arrived += found or 0
        return found

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._guard = _Guard(self.fp.detach())
        self.fp = io.BufferedReader(self._guard)

    def begin(self) -> None:
        super().begin()
        # urllib3 refuses it too, but leaves the connection open.
        if len(",".join(self.headers.get_all("Content-Length", [])).split(",")) > 1:
            raise http.client.HTTPException("two lengths")

    def read1(self, n: int = -1) -> bytes:
        block = super().read1(n)
        self._guard.body += len(block)
        return block


class _PlainConnection(HTTPConnection):
    response_class = _Response


class _SafeConnection(HTTPSConnection):
    response_class = _Response


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _SafePool(HTTPSConnectionPool):
    ConnectionCls = _SafeConnection


class GuardedAdapter(HTTPAdapter):
    """Makes requests use such connections, with a proxy or without."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Prepare the connections without a proxy."""
        super().init_poolmanager(*args, **options)
        _guard(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        """Prepare those through a proxy."""
        manager = super().proxy_manager_for(*args, **options)
        _guard(manager)
        return manager


def _guard(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SafePool}
