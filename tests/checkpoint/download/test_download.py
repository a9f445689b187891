"""One file over HTTP: whole or not there, and gone on with wherever it broke off."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from server import (
    CONTENT,
    PATH,
    SHA256,
    breaks_off,
    etag,
    honest,
    ignores_ranges,
    is_whole,
    sends,
    serves_then_breaks,
    status,
)

from clearhead.checkpoint.download import download, transfer
from clearhead.errors import ClearheadError

OK = b"HTTP/1.1 200 OK\r\n"


def test_a_file(server, fetch, out):
    told = []
    done = fetch(progress=lambda *one: told.append(one))
    assert is_whole(out)
    assert done.fetched == ("weights.bin",)
    assert done.files["weights.bin"].url == server.url + PATH
    assert told[0] == ("weights.bin", 0, len(CONTENT))
    assert told[-1] == ("weights.bin", len(CONTENT), len(CONTENT))
    assert [one[1] for one in told] == sorted(one[1] for one in told)


def test_a_whole_folder_is_not_fetched_again(server, fetch, out):
    fetch()
    assert fetch().fetched == ()
    assert len(server.asked) == 1
    assert fetch(sha256=SHA256.upper()).fetched == ()
    assert len(server.asked) == 1


def test_an_empty_file(server, fetch, out):
    server.files[PATH] = b""
    assert fetch().files["weights.bin"].bytes == 0
    assert (out / "weights.bin").read_bytes() == b""


def test_a_transfer_that_breaks_off_goes_on(server, fetch, out, waits):
    server.script(PATH, breaks_off(1000), breaks_off(50_000))
    fetch()
    assert is_whole(out)
    assert server.ranges(PATH) == [None, "bytes=1000-", "bytes=51000-"]
    assert server.asked[1][1]["If-Range"] == etag(CONTENT)
    assert waits == [1, 2]


def test_it_goes_on_in_another_call(server, fetch, refused, out, waits):
    server.script(PATH, *[breaks_off(100)] * 6)
    assert "broke off, and so 6 times in a row; run again" in refused()
    assert waits == [1, 2, 4, 8, 16]
    assert sorted(path.name for path in out.iterdir()) == ["download.json.part", "weights.bin.part"]
    fetch()
    assert is_whole(out)
    assert server.ranges(PATH)[-1] == "bytes=600-"


def test_it_goes_on_after_a_kill(server, fetch, out):
    server.script(PATH, stalls_after(70_000))
    code = (
        "import sys; from pathlib import Path; from clearhead.checkpoint.download import download; "
        "download('some', Path(sys.argv[1]), source=sys.argv[2])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(out), server.url + PATH])
    part = out / "weights.bin.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = part.stat().st_size
    assert 0 < held <= 70_000
    fetch()
    assert is_whole(out)
    assert server.ranges(PATH) == [None, f"bytes={held}-"]


def stalls_after(count):
    head = f"Content-Length: {len(CONTENT)}\r\nETag: {etag(CONTENT)}\r\n\r\n".encode()
    return sends(OK + head + CONTENT[:count], pause=30)


def test_a_part_that_is_complete_needs_no_request(server, refused, fetch, out):
    server.script(PATH, *[breaks_off(100)] * 6)
    refused()
    (out / "weights.bin.part").write_bytes(CONTENT)
    asked = len(server.asked)
    fetch()
    assert is_whole(out)
    assert len(server.asked) == asked


def test_a_file_that_changes_between_attempts_begins_anew(server, fetch, out):
    server.script(PATH, serves_then_breaks(b"x" * 5000, 1000))
    fetch()
    assert is_whole(out)
    assert server.ranges(PATH) == [None, "bytes=1000-"]


def test_a_changed_file_is_noticed_though_the_server_does_not_look_at_if_range(server, fetch, out):
    def answers_with_a_part(handler, content):
        del handler.headers["If-Range"]
        honest(handler, content)

    other = bytes(reversed(CONTENT))
    server.script(PATH, serves_then_breaks(other, 1000), answers_with_a_part)
    fetch()
    assert is_whole(out)
    assert server.ranges(PATH) == [None, "bytes=1000-", None]


def test_without_a_version_nothing_is_gone_on_with(server, fetch, out):
    bare = sends(OK + b"Content-Length: 512000\r\n\r\n", CONTENT[:9000])
    server.script(PATH, bare)
    fetch()
    assert is_whole(out)
    assert server.ranges(PATH) == [None, None]


def test_without_a_version_the_checksum_tells(server, fetch, out):
    server.script(PATH, sends(OK + b"Content-Length: 512000\r\n\r\n", CONTENT[:9000]))
    fetch(sha256=SHA256)
    assert is_whole(out)
    assert server.ranges(PATH) == [None, "bytes=9000-"]


def test_what_was_gone_on_with_and_is_damaged_begins_anew(server, fetch, out):
    server.script(PATH, sends(OK + b"Content-Length: 512000\r\n\r\n", b"x" * 9000))
    fetch(sha256=SHA256)
    assert is_whole(out)
    assert server.ranges(PATH) == [None, "bytes=9000-", None]


def test_a_server_that_ignores_ranges(server, fetch, out):
    server.script(PATH, breaks_off(1000), ignores_ranges)
    fetch()
    assert is_whole(out)
    assert server.ranges(PATH) == [None, "bytes=1000-"]


@pytest.mark.parametrize(
    "value",
    ["bytes 999-511999/512000", "bytes 1000-1999/512000", "bytes 1000-511999/*", "nonsense", ""],
)
def test_a_part_that_was_not_asked_for_is_thrown_away(server, fetch, out, value):
    head = f"HTTP/1.1 206 P\r\nContent-Range: {value}\r\n\r\n".encode()
    server.script(PATH, breaks_off(1000), sends(head, CONTENT[1000:]))
    fetch()
    assert is_whole(out)
    assert server.ranges(PATH) == [None, "bytes=1000-", None]


def test_a_range_beyond_the_end(server, fetch, out):
    server.script(PATH, breaks_off(1000), status(416, Content_Range="bytes */10"))
    fetch()
    assert is_whole(out)


def test_a_file_of_another_is_never_overwritten(fetch, refused, out):
    out.mkdir()
    (out / "weights.bin").write_bytes(b"mine")
    assert "weights.bin exists already" in refused()
    assert "its SHA-256 is" in refused(sha256=SHA256)
    assert (out / "weights.bin").read_bytes() == b"mine"
    (out / "weights.bin").write_bytes(CONTENT)
    assert fetch(sha256=SHA256).fetched == ()
    assert is_whole(out)


def test_a_folder_with_another_download(server, fetch, refused, out):
    fetch()
    server.files["/other.bin"] = b"other"
    assert "holds another download" in refused(f"{server.url}/other.bin")
    assert is_whole(out)


def test_a_file_that_was_damaged_since_is_told(fetch, refused, out):
    fetch()
    (out / "weights.bin").write_bytes(b"damaged")
    assert "exists already" in refused()
    (out / "weights.bin").unlink()
    fetch()
    assert is_whole(out)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[", b"[]", b'{"name":"some"}', b"\xff", b'{"a":' * 100_000]
)
def test_a_damaged_record_is_told(fetch, refused, out, content):
    fetch()
    (out / "download.json").write_bytes(content)
    assert str(out) in refused()


@pytest.mark.parametrize("files", [None, 3, "a", {"a": 1}, {"a": {"url": 1}}, {"a": {}}])
def test_a_record_of_nonsense_is_told(server, refused, out, files):
    out.mkdir()
    record = {"name": "some", "from": server.url + PATH, "files": files}
    (out / "download.json").write_text(json.dumps(record))
    assert "download.json" in refused()


def test_two_at_once(fetch, refused, out):
    from filelock import FileLock

    out.mkdir()
    with FileLock(out / ".download.lock"):
        assert "another download" in refused()
    fetch()
    assert is_whole(out)


def test_a_full_disk_is_one_line_and_goes_on(server, refused, fetch, out, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    server.script(PATH, breaks_off(1000))
    with monkeypatch.context() as patched:
        patched.setattr(transfer.os, "fsync", full)
        assert "disk full" in refused()
    fetch()
    assert is_whole(out)


def test_a_disk_with_too_little_room_is_told_before(server, refused, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: usage)
    assert "needs 512,000 bytes more, and the disk has 1,000" in refused()


def test_an_older_version_is_gone_before_the_newer_is_written_down(
    server, refused, fetch, out, monkeypatch
):
    server.script(PATH, *[serves_then_breaks(bytes(reversed(CONTENT)), 1000)] * 6)
    refused()
    with monkeypatch.context() as patched:
        usage = type("Usage", (), {"free": 1000})
        patched.setattr(transfer.shutil, "disk_usage", lambda _: usage)
        assert "the disk has 1,000" in refused()
    fetch()
    assert is_whole(out)


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ClearheadError, match=r"cannot write into .*; choose another --out"):
            download("some", out, source=server.url + PATH)
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(ClearheadError, match=r"cannot write into .*Permission denied"):
            download("some", tmp_path / "closed", source=server.url + PATH)


@pytest.mark.parametrize(
    "url",
    ["http://", "ftp://h/x", "http://h:port/x", "http://u:p@h/x", "http://h/a b", "http://[/x"],
)
def test_an_address_that_is_none(refused, url):
    assert "address" in refused(url)


@pytest.mark.parametrize(
    "path", ["/..", "/%2e%2e", "/a%2fb", "/.hidden", "/download.json", "/a%00b"]
)
def test_an_address_whose_file_has_no_proper_name(server, refused, path):
    assert "no name for a file" in refused(server.url + path)
