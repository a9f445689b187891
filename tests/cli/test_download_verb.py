"""`clearhead download`, from a real server on this machine."""

import json
import os
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

CONTENT = b"weights" * 100_000


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Serve two files in a folder; returns its address."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("HF_TOKEN", "HF_ENDPOINT"):
            monkeypatch.delenv(name)
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(CONTENT)
    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_a_folder(call, site, tmp_path):
    command = ("download", "some/model", "--from", site, "--out", tmp_path / "out")
    status, out, err = call(*command)
    assert status == 0
    assert (tmp_path / "out/model.safetensors").read_bytes() == CONTENT
    assert "model.safetensors: 700.0 kB of 700.0 kB" in err
    for told in ("700,000", "fetched", f"clearhead import {tmp_path / 'out'} OUT"):
        assert told in out.replace("\n", "")
    status, out, err = call(*command)
    assert (status, err) == (0, "")
    assert "was there" in out
    assert "fetched" not in out


def test_json(call, site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digest = sha256(CONTENT).hexdigest()
    url = f"{site}model.safetensors"
    status, out, _ = call("download", "a/model", "--from", url, "--sha256", digest, "--json")
    assert status == 0
    assert json.loads(out) == {
        "folder": "model",
        "from": url,
        "files": {"model.safetensors": {"url": url, "bytes": len(CONTENT), "sha256": digest}},
        "fetched": ["model.safetensors"],
    }


def test_a_mirror(refused, site, tmp_path):
    command = ("download", "124M", "--mirror", site, "--out", tmp_path / "out")
    assert f"{site}gpt-2/models/124M/checkpoint: there is no such file" in refused(*command)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gpt3"], "huggingface has no 'gpt3'"),
        (["gpt2-mediu", "--from", "openai"], "did you mean 'gpt2-medium'"),
        (["gpt2", "--from", "nowhere"], "--from is 'nowhere'"),
        (["gpt2", "--sha256", "12"], "64 hexadecimal digits"),
        (["gpt2", "--sha256", "0" * 64], "that of one file"),
        (["https://h/x"], "no model's name"),
        (["gpt2", "--mirror", "mirror"], "no address"),
        (["gpt2", "--form", "openai"], "'--form'"),
    ],
)
def test_a_mistake_is_one_line(refused, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert told in refused("download", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_offline_says_what_to_do(refused, tmp_path):
    host = "http://127.0.0.1:9"
    told = refused("download", "gpt2", "--mirror", host, "--out", tmp_path / "out")
    assert f"{host}/openai-community/gpt2/resolve/main/{{config.json," in told
    assert "--mirror" in told
