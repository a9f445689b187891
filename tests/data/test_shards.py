import json
import shutil

import numpy as np
import pytest
from bytes_tokenizer import BytesTokenizer
from hypothesis import given
from hypothesis import strategies as st

from clearhead.data import TokenDataset, describe, is_prepared, prepare, split
from clearhead.errors import ClearheadError
from clearhead.tokenizer import END_OF_TEXT

LENGTHS = [100, 40, 300, 7, 1, 60]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    base = tmp_path_factory.mktemp("shards")
    (base / "a.txt").write_text(END_OF_TEXT.join("x" * length for length in LENGTHS))
    prepare([base / "a.txt"], base / "out", BytesTokenizer(), processes=1, shard_tokens=64)
    return base / "out"


@pytest.fixture(scope="module")
def dataset(prepared):
    return TokenDataset.open(prepared)


@pytest.fixture
def copied(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def refused(folder, **options):
    with pytest.raises(ClearheadError) as caught:
        TokenDataset.open(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def one_document(folder, length):
    (folder / "one.txt").write_text("y" * length)
    prepare([folder / "one.txt"], folder / "one", BytesTokenizer(), processes=1)
    return TokenDataset.open(folder / "one")


@given(st.data())
def test_read_crosses_shards(dataset, data):
    whole = [token for length in LENGTHS for token in [ord("x")] * length + [256]]
    assert len(dataset) == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole) - start))
    tokens = dataset.read(start, length)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == whole[start : start + length]


def test_read_outside_is_refused(dataset):
    for start, length in [(-1, 2), (0, len(dataset) + 1), (5, -1)]:
        with pytest.raises(IndexError):
            dataset.read(start, length)


def test_damage_names_the_file(copied):
    assert is_prepared(copied)
    path = copied / "tokens-00003.bin"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    assert "tokens-00003.bin: damaged: its checksum" in refused(copied)
    TokenDataset.open(copied, verify=False)
    path.write_bytes(content[:-2])
    assert "tokens-00003.bin: damaged: 126 bytes" in refused(copied, verify=False)
    path.unlink()
    assert "tokens-00003.bin: cannot be read" in refused(copied)


def test_damaged_document_starts(copied):
    path = copied / "documents.bin"
    path.write_bytes(path.read_bytes()[::-1])
    assert "documents.bin: damaged" in refused(copied)


def test_a_token_outside_the_vocabulary_is_named(copied):
    path = copied / "tokens-00001.bin"
    content = bytearray(path.read_bytes())
    content[2 * 5 : 2 * 5 + 2] = (60_000).to_bytes(2, "little")
    path.write_bytes(content)
    dataset = TokenDataset.open(copied, verify=False)
    dataset.read(0, 64)
    with pytest.raises(ClearheadError, match=r"tokens-00001\.bin: token 5 is 60000, outside"):
        dataset.read(0, 100)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", -1),
        ("tokens", 513),
        ("tokens", 1e300),
        ("tokens", True),
        ("documents", 0),
        ("documents", 1 << 61),
        ("documents", 1 << 70),
        ("dtype", "object"),
        ("dtype", "float64"),
        ("vocab_size", 1 << 20),
        ("vocab_size", 0),
        ("end_of_text", 257),
        ("shard_tokens", 0),
        ("format", 2),
        ("shards", {}),
        ("shards", []),
        ("shards", [{"name": "../../etc/passwd", "tokens": 514, "sha256": "0" * 64}]),
        ("shards", [{"name": "/dev/zero", "tokens": 514, "sha256": "0" * 64}]),
        ("shards", [{"name": "tokens-00000.bin", "tokens": -5, "sha256": "0" * 64}]),
        ("shards", [{"name": "tokens-00000.bin", "tokens": 514, "sha256": "x"}]),
        ("shards", [[]]),
        ("sources", None),
        ("documents_sha256", 5),
        ("extra", 1),
    ],
)
def test_hostile_manifests(copied, field, value):
    path = copied / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    assert "copy" in refused(copied)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_broken_manifests(copied, content):
    (copied / "manifest.json").write_bytes(content)
    assert "damaged manifest" in refused(copied)


def test_a_folder_that_is_not_prepared(tmp_path):
    assert not is_prepared(tmp_path)
    assert "no prepared corpus" in refused(tmp_path)
    with pytest.raises(ClearheadError, match="no prepared corpus"):
        describe(tmp_path / "missing")


def test_split_is_between_documents(dataset):
    # 514 tokens; the last documents have 61, 2, 8, 301, …
    for fraction, held in [(0.01, 61), (0.1, 61), (0.12, 63), (0.125, 71), (0.2, None)]:
        train, val = split(dataset, fraction)
        if held is None:  # 372 tokens would be held out, more than half
            assert (val.cut, val.start) == ("token", int(514 * 0.8))
            continue
        expected = "token" if held > 3 * 514 * fraction else "document"
        assert val.cut == train.cut == expected
        if expected == "document":
            assert len(val) == held
            assert val.start in dataset.document_starts
        assert (train.start, train.stop, val.stop) == (0, val.start, 514)


@given(st.floats(0.001, 0.99))
def test_split_holds_out_what_was_asked(dataset, fraction):
    train, val = split(dataset, fraction)
    assert len(train) + len(val) == len(dataset)
    assert len(val) >= len(dataset) * fraction - 1
    assert len(train) > 0


def test_split_of_one_document_is_inside_it(tmp_path):
    dataset = one_document(tmp_path, 999)
    train, val = split(dataset, 0.1)
    assert (len(train), len(val), val.cut) == (900, 100, "token")
    assert val.read(0, 100).tolist() == dataset.read(900, 100).tolist()
    with pytest.raises(IndexError):
        train.read(899, 2)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_split_needs_a_fraction(dataset, fraction):
    with pytest.raises(ClearheadError, match="val_fraction"):
        split(dataset, fraction)
