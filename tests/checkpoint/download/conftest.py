"""A server that can misbehave, and one file that is fetched from it."""

import os

import pytest
from server import CONTENT, PATH, serve

from clearhead.checkpoint.download import download
from clearhead.errors import ClearheadError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """Keep a proxy, a token or an endpoint of this machine out of the tests."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("HF_TOKEN", "HF_ENDPOINT"):
            monkeypatch.delenv(name)


@pytest.fixture
def server():
    with serve() as server:
        server.files[PATH] = CONTENT
        yield server


@pytest.fixture
def waits():
    return []


@pytest.fixture
def fetch(server, tmp_path, waits):
    """Download the one file; returns what the library tells."""

    def fetch(url=None, **options):
        url = url or server.url + PATH
        return download("some", tmp_path / "out", source=url, sleep=waits.append, **options)

    return fetch


@pytest.fixture
def refused(fetch):
    """Download what cannot be had; returns the one line that says why."""

    def refused(*arguments, **options):
        with pytest.raises(ClearheadError) as caught:
            fetch(*arguments, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refused


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"
