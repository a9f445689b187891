"""Every way in which a server can fail, against a real one on this machine."""

import socket
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server import (
    CONTENT,
    PATH,
    SHA256,
    announces,
    chunked,
    drips,
    endless,
    is_whole,
    leads_to,
    sends,
    serves,
    status,
)

from clearhead.checkpoint.download import download, guard, http, transfer
from clearhead.errors import ClearheadError

OK = b"HTTP/1.1 200 OK\r\n"


def test_wrong_bytes(server, refused, out):
    server.script(PATH, serves(CONTENT[:-1] + b"!"))
    told = refused(sha256=SHA256)
    assert f"not {SHA256}" in told
    assert server.url + PATH in told
    assert not (out / "weights.bin").exists()
    assert not (out / "weights.bin.part").exists()
    assert not (out / "download.json").exists()


@pytest.mark.parametrize("length", [len(CONTENT) + 1, 10**15, 10**17])
def test_a_length_above_the_truth(server, refused, out, length):
    server.script(PATH, *[announces(length)] * 20)
    told = refused()
    assert "broke off" in told or "the disk has" in told
    assert not (out / "weights.bin").exists()


@pytest.mark.parametrize("length", ["-5", "many", "5, 6", "9" * 5000])
def test_a_length_that_is_none(server, refused, out, length):
    server.script(PATH, *[announces(length)] * 20)
    assert server.url in refused()
    assert not (out / "weights.bin").exists()


def test_a_length_below_the_truth_is_found_by_the_checksum(server, refused, out):
    server.script(PATH, announces(1000))
    assert "SHA-256" in refused(sha256=SHA256)
    assert not (out / "weights.bin").exists()


def test_chunks_without_a_length(server, fetch, out):
    server.script(PATH, chunked(CONTENT))
    fetch()
    assert is_whole(out)


def test_chunks_that_break_off(server, fetch, out):
    server.script(PATH, chunked(CONTENT[:3000], end=b""))
    fetch()
    assert is_whole(out)
    assert server.ranges(PATH)[1] in (None, "bytes=3000-")


def test_no_length_at_all(server, refused, fetch, out):
    server.script(PATH, *[sends(OK + b"\r\n", CONTENT)] * 2)
    assert "--sha256" in refused()
    fetch(sha256=SHA256)
    assert is_whole(out)


def test_a_body_without_end_is_cut(server, refused, out, monkeypatch):
    monkeypatch.setattr(transfer, "_UNANNOUNCED", 1 << 20)
    piece = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    server.script(PATH, endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", piece))
    assert "sends more than the 1,048,576 bytes" in refused()
    assert not out.exists() or not (out / "weights.bin.part").exists()


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        (OK, b"X: " + b"y" * 60000 + b"\r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"Trailer: without end\r\n" * 1000),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 60000),
    ],
    ids=["interim answers", "headers", "trailers", "chunk sizes"],
)
def test_anything_else_without_end_is_cut(server, refused, monkeypatch, head, piece):
    monkeypatch.setattr(guard, "MOST_OTHER_BYTES", 1 << 20)
    monkeypatch.setattr(http, "_MOST_FAILURES", 0)
    server.script(PATH, endless(head, piece))
    assert server.url in refused()


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b"H"),
        (OK, b"X: y\r\n"),
        (OK + b"Content-Length: 1000\r\n\r\n", b"x"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    ],
    ids=["status", "headers", "body", "chunk sizes"],
)
def test_a_server_that_drips_is_left(server, refused, monkeypatch, head, piece):
    monkeypatch.setattr(guard, "WINDOW_SECONDS", 0.3)
    monkeypatch.setattr(http, "_MOST_FAILURES", 0)
    server.script(PATH, drips(head, piece))
    began = time.monotonic()
    assert server.url in refused()
    assert time.monotonic() - began < 5


def test_a_server_that_is_silent_is_left(server, refused, monkeypatch):
    monkeypatch.setattr(http, "READ_SECONDS", 0.2)
    server.script(PATH, *[sends(b"", pause=2)] * 6)
    assert "did not answer in time" in refused()


def test_waits_grow_and_heed_retry_after(server, fetch, out, waits):
    server.script(PATH, status(503), status(429, Retry_After="7"), status(502), status(500))
    fetch()
    assert is_whole(out)
    assert waits == [1, 7, 4, 8]


def test_retry_after_as_a_date(server, fetch, waits):
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    server.script(PATH, status(503, Retry_After=until))
    fetch()
    assert 40 < waits[0] <= 50


@pytest.mark.parametrize("value", ["soon", "-3", "Thu, 99 Xyz 99999 99:99:99 GMT", "nan", "1e9"])
def test_a_retry_after_that_makes_no_sense(server, fetch, waits, value):
    server.script(PATH, status(503, Retry_After=value))
    fetch()
    assert waits == [1]


def test_a_server_that_asks_to_wait_too_long(server, refused, waits, out):
    server.script(PATH, status(429, Retry_After="86400"))
    assert "asks to wait 86,400 s" in refused()
    assert waits == []
    assert not out.exists()


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_never_recovers(server, refused, waits, code):
    server.script(PATH, *[status(code)] * 50)
    assert f"the server answers {code}" in refused()
    assert len(server.asked) == 6
    assert waits == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("code", "told"),
    [(404, "no such file"), (401, "HF_TOKEN"), (403, "HF_TOKEN"), (418, "418"), (204, "204")],
)
def test_a_refusal_is_final_and_leaves_nothing(server, refused, waits, out, code, told):
    server.script(PATH, status(code))
    line = refused()
    assert told in line
    assert server.url + PATH in line
    assert (len(server.asked), waits) == (1, [])
    assert not out.exists()


def test_redirects_are_followed(server, fetch, out):
    server.files["/there"] = CONTENT
    server.script(PATH, leads_to("/a", 301), leads_to("/a", 301))
    server.script("/a", leads_to(f"{server.url}/there", 307))
    fetch()
    assert is_whole(out)


def test_redirects_in_a_circle(server, refused):
    server.script(PATH, *[leads_to("/b")] * 100)
    server.script("/b", *[leads_to(PATH)] * 100)
    assert "more than 10 times" in refused()
    assert len(server.asked) == 11


@pytest.mark.parametrize(
    "to",
    [
        "file:///etc/passwd",
        "ftp://h/x",
        "",
        "http://",
        "http://[",
        "http://u:p@127.0.0.1/",
        "http://h:99999/",
    ],
)
def test_a_redirect_to_what_is_no_web_address(server, refused, to):
    server.script(PATH, *[leads_to(to)] * 20)
    assert server.url in refused()


def test_a_redirect_from_https_to_http_is_refused():
    with pytest.raises(ClearheadError, match="leads away from https"):
        http._next("https://a/x", "https://a/x", "http://a/x")


def test_a_compressed_answer_is_refused(server, refused):
    server.script(PATH, serves(b"zip", **{"Content-Encoding": "gzip"}))
    assert "compressed" in refused()
    server.script(
        PATH, sends(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nzip\r\n0\r\n\r\n")
    )
    assert "compressed" in refused()


def test_offline(refused, out, waits):
    told = refused("http://127.0.0.1:9/model.bin")
    assert "offline" in told
    assert "Connection refused" in told
    assert "http://127.0.0.1:9/model.bin by hand" in told
    assert waits == []
    assert not out.exists()


def test_a_name_that_no_one_knows(refused, monkeypatch):
    def unknown(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    told = refused("http://nowhere.invalid/model.bin")
    assert "offline" in told
    assert "Name or service not known" in told


def test_a_server_that_goes_away(server, refused, waits):
    server.script(PATH, leads_to("http://127.0.0.1:9/x"), *[leads_to("http://127.0.0.1:9/x")] * 9)
    assert "6 times in a row" in refused()
    assert len(waits) == 5


ANSWER = (
    b'HTTP/1.1 200 OK\r\nContent-Length: 4\r\nETag: "a"\r\nContent-Type: text/plain\r\n'
    b"Transfer-Encoding: chunked\r\nLocation: /x\r\nRetry-After: 3\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(st.tuples(st.integers(0, len(ANSWER) - 1), st.binary(max_size=4)), max_size=4),
    code=st.sampled_from([b"200", b"206", b"302", b"416", b"429", b"1xx", b"999"]),
)
def test_whatever_bytes_are_answered_nothing_but_our_error_comes_out(server, changes, code):
    answer = bytearray(ANSWER.replace(b"200", code))
    for at, piece in changes:
        answer[at : at + len(piece)] = piece
    server.script("/fuzz.bin", *[sends(bytes(answer))] * 12)
    with TemporaryDirectory() as out, suppress(ClearheadError):
        download("some", Path(out), source=f"{server.url}/fuzz.bin", sleep=id)
