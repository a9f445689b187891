"""Which files make up a model, where they are asked for, and who may see the token."""

import json
import os
from hashlib import sha1, sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server import chunked, leads_to, sends, serve, status

from clearhead.checkpoint.download import download, sources
from clearhead.errors import ClearheadError

REVISION = "0123456789abcdef" * 2 + "01234567"
API = "/api/models/some/model?blobs=true"
RESOLVE = f"/some/model/resolve/{REVISION}"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}).encode()
CONFIG = b'{"model_type": "gpt2"}'


@pytest.fixture
def other():
    with serve() as server:
        yield server


@pytest.fixture
def refused(out):
    def refused(*arguments, **options):
        with pytest.raises(ClearheadError) as caught:
            download(*arguments, out, sleep=id, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refused


def entry(name, content):
    if not name.endswith((".safetensors", ".bin")):
        blob = sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        return {"rfilename": name, "size": len(content), "blobId": blob}
    lfs = {"sha256": sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
    return {"rfilename": name, "size": len(content), "blobId": "0" * 40, "lfs": lfs}


def publish(server, files):
    """Put a model on the hub that the server plays."""
    siblings = [entry(name, content) for name, content in files.items()]
    server.files[API] = json.dumps({"sha": REVISION, "siblings": siblings}).encode()
    for name, content in files.items():
        server.files[f"{RESOLVE}/{name}"] = content


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_of_the_hub(server, out):
    files = {
        "config.json": CONFIG,
        "merges.txt": b"#version\n",
        "tokenizer.json": b"{}",
        "model.safetensors": b"weights" * 1000,
    }
    extra = {"README.md": b"read", "pytorch_model.bin": b"pickle", "flax_model.msgpack": b"x"}
    publish(server, files | extra)
    done = download("some/model", out, mirror=server.url)
    assert contents(out) == files | {"download.json": (out / "download.json").read_bytes()}
    assert set(done.fetched) == set(files)
    record = json.loads((out / "download.json").read_text())
    assert (record["name"], record["from"]) == ("some/model", "huggingface")
    assert record["files"]["config.json"]["url"] == f"{server.url}{RESOLVE}/config.json"
    asked = len(server.asked)
    assert download("some/model", out, mirror=server.url).fetched == ()
    assert len(server.asked) == asked


def test_shards(server, out):
    files = {"config.json": CONFIG, "model.safetensors.index.json": INDEX}
    shards = {SHARDS[0]: b"one" * 500, SHARDS[1]: b"two" * 500}
    publish(server, files | shards | {"model-00003-of-00003.safetensors": b"not named"})
    download("some/model", out, mirror=server.url)
    assert set(contents(out)) == {*files, *shards, "download.json"}


def test_only_what_is_missing_is_fetched(server, refused, out):
    files = {"config.json": CONFIG, "model.safetensors": b"weights" * 1000}
    publish(server, files)
    server.script(f"{RESOLVE}/model.safetensors", status(404))
    refused("some/model", mirror=server.url)
    assert not (out / "download.json").exists()
    assert download("some/model", out, mirror=server.url).fetched == ("model.safetensors",)


def test_an_old_model_has_its_pickle_fetched(server, out):
    publish(server, {"config.json": CONFIG, "pytorch_model.bin": b"pickle"})
    download("some/model", out, mirror=server.url)
    assert (out / "pytorch_model.bin").read_bytes() == b"pickle"


def test_a_model_without_weights(server, refused):
    publish(server, {"config.json": CONFIG, "flax_model.msgpack": b"x"})
    assert "some/model has none of model.safetensors" in refused("some/model", mirror=server.url)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_wrong_bytes_of_the_right_size(server, refused, out, name):
    files = {"config.json": CONFIG, "model.safetensors": b"weights" * 1000}
    publish(server, files)
    server.files[f"{RESOLVE}/{name}"] = files[name][:-1] + b"!"
    assert f"{name} is not what it should be" in refused("some/model", mirror=server.url)
    assert not (out / name).exists()


def test_another_size_than_the_hub_tells(server, refused, out):
    publish(server, {"config.json": CONFIG, "model.safetensors": b"weights" * 1000})
    server.files[f"{RESOLVE}/model.safetensors"] = b"weights" * 1001
    told = refused("some/model", mirror=server.url)
    assert "announces 7,007 bytes where 7,000 are expected" in told
    server.script(f"{RESOLVE}/model.safetensors", chunked(b"weights" * 1001))
    assert "sends more than the 7,000 bytes" in refused("some/model", mirror=server.url)
    assert not (out / "model.safetensors.part").exists()


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../evil.safetensors",
            "/tmp/evil.safetensors",
            "a/b.safetensors",
            "..\\evil.safetensors",
        ),
        *("evil.sh", ".safetensors", "..safetensors", "a\0.safetensors", "", "C:x.safetensors"),
        "x" * 300 + ".safetensors",
    ],
)
def test_a_weight_map_that_points_outside_the_folder(server, refused, out, name):
    index = json.dumps({"weight_map": {"a": name}}).encode()
    files = {"config.json": CONFIG, "model.safetensors.index.json": index, name: b"evil"}
    publish(server, files)
    assert "no file beside it" in refused("some/model", mirror=server.url)
    assert set(contents(out)) == {*list(files)[:2], "download.json.part"}


@pytest.mark.parametrize(
    ("index", "told"),
    [
        (b"{}", "no weight_map"),
        (b'{"weight_map": []}', "no weight_map"),
        (b'{"weight_map": {"a": ["b"]}}', "no file beside it"),
        (b"\xff", "damaged"),
        (json.dumps({"weight_map": {"a": "b.safetensors"}}).encode(), "lacks b.safetensors"),
    ],
)
def test_an_index_that_makes_no_sense(server, refused, index, told):
    publish(server, {"config.json": CONFIG, "model.safetensors.index.json": index})
    assert told in refused("some/model", mirror=server.url)


def test_the_listing_is_tried_again(server, out):
    publish(server, {"config.json": CONFIG, "model.safetensors": b"weights"})
    cut = sends(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n[")
    waits = []
    server.script(API, status(503), cut, status(429, Retry_After="9"))
    download("some/model", out, mirror=server.url, sleep=waits.append)
    assert waits == [1, 2, 9]


@pytest.mark.parametrize(
    "listing",
    [b"", b"[", b"{}", b"[]", b"null", b"[" * 100_000, b'{"sha": 3, "siblings": []}', b"\xff"]
    + [f'{{"sha": "{REVISION}", "siblings": {one}}}'.encode() for one in ("3", "[3]", "[{}]")]
    + [
        json.dumps({"sha": REVISION, "siblings": [{"rfilename": "config.json", **one}]}).encode()
        for one in (
            {"size": -1},
            {"size": "x"},
            {"lfs": 3},
            {"lfs": {"sha256": "x"}},
            {"size": True},
        )
    ],
)
def test_a_listing_of_nonsense(server, refused, out, listing):
    server.files[API] = listing
    assert API in refused("some/model", mirror=server.url)
    assert not out.exists()


def test_a_listing_that_is_far_too_long(server, refused, monkeypatch):
    monkeypatch.setattr(sources, "_MOST_LISTING", 1000)
    server.files[API] = b"[" + b" " * 2000 + b"]"
    assert "far too long" in refused("some/model", mirror=server.url)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, 300), piece=st.binary(max_size=6), cut=st.integers(0, 6))
def test_a_damaged_listing_brings_nothing_but_our_error(server, at, piece, cut):
    publish(server, {"config.json": CONFIG, "model.safetensors": b"weights"})
    listing = server.files[API]
    server.files[API] = listing[:at] + piece + listing[at + cut :]
    with TemporaryDirectory() as folder:
        try:
            download("some/model", Path(folder, "out"), mirror=server.url, sleep=id)
        except ClearheadError:
            return
        assert Path(folder, "out/model.safetensors").read_bytes() == b"weights"


def test_the_token_goes_to_its_endpoint_alone(server, other, out, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", " hf_secret\n")
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    publish(server, {"config.json": CONFIG, "model.safetensors": b"weights"})
    other.files["/cdn"] = b"weights"
    server.script(f"{RESOLVE}/model.safetensors", leads_to(f"{other.url}/cdn"))
    download("some/model", out)
    assert {headers.get("Authorization") for _, headers in server.asked} == {"Bearer hf_secret"}
    assert [headers.get("Authorization") for _, headers in other.asked] == [None]
    assert "hf_secret" not in (out / "download.json").read_text()


def test_no_mirror_and_no_other_source_sees_the_token(server, out, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    publish(server, {"config.json": CONFIG, "model.safetensors": b"weights"})
    download("some/model", out, mirror=server.url)
    download("x", tmp_path / "x", source=f"{server.url}{RESOLVE}/config.json")
    assert {headers.get("Authorization") for _, headers in server.asked} == {None}


def test_an_endpoint_that_is_none(refused, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://[")
    assert "no address" in refused("gpt2")
    assert "no address" in refused("124M")


def test_no_login_is_taken_from_netrc(server, out, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    publish(server, {"config.json": CONFIG, "model.safetensors": b"weights"})
    download("some/model", out, mirror=server.url)
    assert {headers.get("Authorization") for _, headers in server.asked} == {None}


def test_a_token_that_is_none_is_not_shown(server, refused, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_sec\nret")
    told = refused("some/model")
    assert "HF_TOKEN" in told
    assert "sec" not in told


@pytest.mark.parametrize(
    ("name", "owner"), [("gpt2-xl", "openai-community"), ("distilgpt2", "distilbert")]
)
def test_short_names_of_the_hub(server, refused, name, owner):
    refused(name, mirror=server.url)
    assert server.asked[0][0] == f"/api/models/{owner}/{name}?blobs=true"


OPENAI = {name: name.encode() * 100 for name in sources._OPENAI_FILES}


@pytest.mark.parametrize(
    ("name", "source", "size"), [("355M", None, "355M"), ("gpt2-xl", "openai", "1558M")]
)
def test_openais_own(server, out, monkeypatch, name, source, size):
    monkeypatch.setattr(sources, "GPT2_SHA256", {})
    for file, content in OPENAI.items():
        server.files[f"/gpt-2/models/{size}/{file}"] = content
    done = download(name, out, source=source, mirror=server.url)
    assert done.fetched == tuple(OPENAI)
    assert contents(out) == OPENAI | {"download.json": (out / "download.json").read_bytes()}


@pytest.mark.parametrize("name", ["encoder.json", "vocab.bpe", "model.ckpt.index", "checkpoint"])
def test_openais_published_checksums_are_compared(server, refused, monkeypatch, name):
    known = {name: sha256(b"another").hexdigest()}
    monkeypatch.setattr(sources, "GPT2_SHA256", known)
    monkeypatch.setattr(sources, "_OPENAI_124M", {})
    for file, content in OPENAI.items():
        server.files[f"/gpt-2/models/124M/{file}"] = content
    assert f"{name} is not what it should be" in refused("124M", mirror=server.url)


def test_the_checksums_are_those_of_the_published_files():
    folder = os.environ.get("CLEARHEAD_DATA")
    if not folder:
        pytest.skip("CLEARHEAD_DATA does not name the folder with OpenAI's files")
    known = {**sources._OPENAI_124M, **sources.GPT2_SHA256}
    for name, digest in known.items():
        (path,) = {*Path(folder).glob(f"weights/*/{name}"), *Path(folder).glob(f"tokenizer/{name}")}
        assert sha256(path.read_bytes()).hexdigest() == digest


def test_a_folder_at_an_address(server, out):
    files = {"config.json": CONFIG, "model.safetensors": b"weights"}
    server.files |= {f"/m/{name}": content for name, content in files.items()}
    assert set(download("x", out, source=f"{server.url}/m/").fetched) == set(files)


def test_a_folder_at_an_address_with_shards(server, out):
    files = {"config.json": CONFIG, "model.safetensors.index.json": INDEX}
    files |= {name: name.encode() for name in SHARDS}
    server.files |= {f"/{name}": content for name, content in files.items()}
    assert set(download("x", out, source=server.url).fetched) == set(files)


def test_a_shard_that_is_missing_at_an_address(server, refused, out):
    files = {"config.json": CONFIG, "model.safetensors.index.json": INDEX}
    server.files |= {f"/{name}": content for name, content in files.items()}
    assert f"{SHARDS[0]}: there is no such file" in refused("x", source=f"{server.url}/")
    assert not (out / "download.json").exists()


def test_openais_files_at_an_address(server, out):
    server.files |= {f"/m/{name}": content for name, content in OPENAI.items()}
    assert set(download("x", out, source=f"{server.url}/m/").fetched) == set(OPENAI)


def test_a_model_that_was_changed_since_the_download_was_begun(server, refused, out):
    files = {"config.json": CONFIG, "model.safetensors": b"weights" * 1000}
    publish(server, files)
    server.script(f"{RESOLVE}/model.safetensors", status(404))
    refused("some/model", mirror=server.url)
    publish(server, files | {"config.json": b"{}"})
    done = download("some/model", out, mirror=server.url)
    assert done.fetched == ("config.json", "model.safetensors")
    assert (out / "config.json").read_bytes() == b"{}"


def test_what_lies_there_by_hand_is_taken_if_it_is_right(server, out):
    publish(server, {"config.json": CONFIG, "model.safetensors": b"weights"})
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"weights")
    assert download("some/model", out, mirror=server.url).fetched == ("config.json",)


@pytest.mark.parametrize(
    "mirror", ["mirror", "ftp://h", "http://u:p@h", "http://h/?q", "http://h/#a"]
)
def test_a_mirror_that_is_none(refused, mirror):
    told = refused("gpt2", mirror=mirror)
    assert any(words in told for words in ("no address", "no host", "carries a login"))


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b/c", "/x", "a b", "a/..", "x\n", "a" * 200])
def test_a_name_that_is_none(refused, name):
    assert "no model's name" in refused(name)


def test_a_mirror_for_an_address_is_refused(refused):
    assert "--mirror" in refused("x", source="http://h/x", mirror="http://h")


def test_a_proxy_is_used(server, other, out, monkeypatch):
    monkeypatch.setenv("http_proxy", other.url)
    other.files["http://models.invalid/a.bin"] = b"through the proxy"
    download("x", out, source="http://models.invalid/a.bin")
    assert (out / "a.bin").read_bytes() == b"through the proxy"
    assert server.asked == []
