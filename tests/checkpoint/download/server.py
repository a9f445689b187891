"""A real HTTP server on this machine that can misbehave; nothing here reaches a network."""

import json
import re
import time
from collections import defaultdict
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

PATH = "/models/weights.bin"
CONTENT = bytes(range(256)) * 2000
SHA256 = sha256(CONTENT).hexdigest()
MODIFIED = formatdate(1e9, usegmt=True)


class Server(ThreadingHTTPServer):
    """Serves `files`; the first requests for a path are answered by `scripts[path]`, in turn."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files = {}
        self.scripts = defaultdict(list)
        self.asked = []

    def script(self, path, *behaviours):
        self.scripts[path] = list(behaviours)

    def ranges(self, path):
        """Return the Range of each request for a path, None where there was none."""
        return [headers.get("Range") for asked, headers in self.asked if asked == path]

    def handle_error(self, request, client_address):
        """Leave a client that goes away without a word."""


@contextmanager
def serve():
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        script = self.server.scripts[self.path]
        behaviour = script.pop(0) if script else honest
        behaviour(self, self.server.files.get(self.path))
        self.wfile.flush()

    def log_message(self, *_):
        pass

    def begin(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def hang_up(self):
        self.close_connection = True


def etag(content):
    return f'"{sha1(content).hexdigest()}"'


def honest(handler, content, **more):
    """Serve a file as one should: with its length, its version, and parts of it."""
    if content is None:
        handler.begin(404, {"Content-Length": 0})
        return
    headers = {"ETag": etag(content), "Last-Modified": MODIFIED, "Accept-Ranges": "bytes"}
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    is_same = handler.headers.get("If-Range", etag(content)) in (etag(content), MODIFIED)
    start = int(wanted[1]) if wanted and is_same else 0
    if start >= len(content) > 0:
        total = {"Content-Range": f"bytes */{len(content)}", "Content-Length": 0}
        handler.begin(416, headers | total)
        return
    if wanted and is_same:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    body = content[start:]
    handler.begin(
        206 if wanted and is_same else 200, headers | {"Content-Length": len(body)} | more
    )
    handler.wfile.write(body)


def breaks_off(after):
    """Close the connection when so many bytes have gone out."""

    def behave(handler, content):
        write, left = handler.wfile.write, after
        head_ends = False

        def cut(data):
            nonlocal left, head_ends
            if not head_ends:
                head_ends = data.endswith(b"\r\n\r\n")
                return write(data)
            write(data[:left])
            left = max(0, left - len(data))
            return len(data)

        handler.wfile.write = cut
        honest(handler, content)
        handler.hang_up()

    return behave


def announces(length):
    """Lie about the length, then send the file and close."""

    def behave(handler, content):
        handler.begin(200, {"Content-Length": length, "ETag": etag(content)})
        handler.wfile.write(content)
        handler.hang_up()

    return behave


def serves(other, **headers):
    """Serve other bytes."""
    return lambda handler, _: honest(handler, other, **headers)


def ignores_ranges(handler, content):
    handler.begin(200, {"Content-Length": len(content), "ETag": etag(content)})
    handler.wfile.write(content)


def status(code, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, _: handler.begin(code, named | {"Content-Length": 0})


def leads_to(url, code=302):
    return status(code, Location=url)


def sends(*pieces, pause=0.0):
    """Send bytes as they are, whatever was asked for, and close."""

    def behave(handler, _):
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause)
        handler.hang_up()

    return behave


def endless(head, piece):
    """Never stop sending the same piece."""

    def behave(handler, _):
        handler.hang_up()
        handler.wfile.write(head)
        while True:
            handler.wfile.write(piece)

    return behave


def drips(head, piece, pause=0.05):
    """Never stop sending the same piece, slowly."""

    def behave(handler, _):
        handler.hang_up()
        handler.wfile.write(head)
        for _ in range(400):
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause)

    return behave


def chunked(content, end=b"0\r\n\r\n"):
    """Serve a file without its length, in chunks that mark their end."""

    def behave(handler, _):
        handler.begin(200, {"Transfer-Encoding": "chunked", "ETag": etag(content)})
        for start in range(0, len(content), 1000):
            piece = content[start : start + 1000]
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        handler.wfile.write(end)
        handler.hang_up()

    return behave


def is_whole(folder):
    """Hold that a folder has the one file and the record of it, and nothing else."""
    record = json.loads((folder / "download.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == ["download.json", "weights.bin"]
    assert (folder / "weights.bin").read_bytes() == CONTENT
    entry = record["files"]["weights.bin"]
    assert (entry["bytes"], entry["sha256"]) == (len(CONTENT), SHA256)
    return True


def serves_then_breaks(content, after):
    cut = breaks_off(after)
    return lambda handler, _: cut(handler, content)
