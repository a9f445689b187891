import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from clearhead.data import find_sources, iter_documents
from clearhead.data.pydocs import pydocs_documents, pydocs_files
from clearhead.data.readers import LINE_CHARS
from clearhead.errors import ClearheadError

TEXT = "One.\r\n<|endoftext|>Zwei: ä\n<|endoftext|>\n"
DOCUMENTS = ["One.\r\n", "Zwei: ä\n"]


def texts(*sources, **options):
    return [document.text for document in iter_documents(sources, **options)]


def refused(*sources, **options):
    with pytest.raises(ClearheadError) as caught:
        texts(*sources, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["txt", "md"])
@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)],
)
def test_text_files(tmp_path, kind, suffix, compress):
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_bytes(compress(TEXT.encode()))
    assert texts(path) == DOCUMENTS


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)]
)
def test_compressed_members_in_a_row_and_cut_short(tmp_path, suffix, compress):
    path = tmp_path / f"a.txt{suffix}"
    parts = [str(list(range(1000))), str(list(range(2000)))]
    content = b"".join(compress(part.encode()) for part in parts)
    path.write_bytes(content)
    assert texts(path) == ["".join(parts)]
    path.write_bytes(content[:-20])
    assert "cut short" in refused(path)
    path.write_bytes(b"plain")
    assert "damaged" in refused(path)


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    rows = ["a<|endoftext|>b", " ", "ä\u2028c", "\ud800", "x" * 3_000_000]
    lines = "\n\n".join(json.dumps({"text": row, "n": 1}) for row in rows)
    path.write_bytes(gzip.compress(lines.encode()))
    assert texts(path) == [rows[0], *rows[2:3], "�", rows[4]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"body": "x"}', "no text under 'text'"),
        ('{"text": 3}', "'text' is int"),
    ],
)
def test_broken_jsonl_lines_are_numbered(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    message = refused(path)
    assert "line 3" in message
    assert reason in message


def test_jsonl_field_and_endless_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x"}')
    assert texts(path, field="body") == ["x"]
    path.write_bytes(b'{"text": ""}\n' + b"x" * (LINE_CHARS + (1 << 20)))
    assert "line 2: longer than 64 Mi" in refused(path)


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    rows = ["a", "<|endoftext|>b", *(str(number) for number in range(100))]
    pq.write_table(pa.table({"text": rows, "n": range(len(rows))}), path, row_group_size=7)
    assert texts(path) == rows
    assert "no column 'body'; it has: text, n" in refused(path, field="body")
    assert "row 1: 'n' is int" in refused(path, field="n")
    pq.write_table(pa.table({"text": ["a", None]}), path)
    assert "row 2: no text" in refused(path)
    path.write_bytes(b"PAR1" + bytes(50))
    assert "cannot be read as Parquet" in refused(path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"x")
    monkeypatch.setattr("clearhead.data.readers.find_spec", lambda name: None)
    assert "pip install 'clearhead[parquet]'" in refused(path)


def test_folders_are_read_in_order_and_links_do_not_loop(tmp_path):
    root = tmp_path / "corpus"
    (root / "b").mkdir(parents=True)
    (root / "b" / "2.txt").write_text("second")
    (root / "a.md").write_text("first")
    (root / "c.txt").write_text("third")
    (root / "picture.png").write_bytes(b"x")
    (root / "empty.txt").touch()
    (root / "b" / "loop").symlink_to(root)
    assert texts(root) == ["first", "second", "third"]
    found = find_sources([root])
    assert found.ignored == 1
    names = ["corpus/a.md", "corpus/b/2.txt", "corpus/c.txt", "corpus/empty.txt"]
    assert [file.name for file in found.files] == names
    (tmp_path / "none").mkdir()
    assert "no text in this folder" in refused(tmp_path / "none")


def test_encodings_and_byte_order_marks(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfhello")
    assert texts(path) == ["hello"]
    path.write_bytes("höllo".encode("latin-1"))
    assert texts(path, encoding="latin-1") == ["höllo"]
    path.write_bytes("höllo".encode("utf-16"))
    assert texts(path, encoding="utf-16") == ["höllo"]
    assert "looks binary" in refused(path)
    assert "unknown text encoding 'utf9'" in refused(path, encoding="utf9")
    assert "unknown text encoding 'hex'" in refused(path, encoding="hex")


@pytest.mark.parametrize("before", [5, (1 << 20) - 1, (1 << 20) + 7])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_bad_utf8_is_named_by_its_absolute_offset(tmp_path, before, start):
    path = tmp_path / "a.txt"
    path.write_bytes(start + b"a" * before + b"\xc3(" + b"b" * 10)
    assert f"byte offset {len(start) + before} " in refused(path)
    path.write_bytes(start + b"a" * before + b"\xe2\x82")
    assert f"byte offset {len(start) + before} " in refused(path)


def test_sources_that_cannot_be(tmp_path):
    assert "check the path" in refused(tmp_path / "missing.txt")
    (tmp_path / "empty.txt").touch()
    assert "is empty" in refused(tmp_path / "empty.txt")
    (tmp_path / "a.pdf").write_bytes(b"x")
    assert "unknown kind" in refused(tmp_path / "a.pdf")
    (tmp_path / "binary.txt").write_bytes(b"ELF\0\1\2")
    assert "looks binary (a zero byte at offset 3)" in refused(tmp_path / "binary.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    assert "not a regular file" in refused(tmp_path / "pipe.txt")
    assert "no source" in refused()


def test_pydocs_is_english_in_a_fixed_order(tmp_path, monkeypatch):
    library = tmp_path / "lib"
    for name, content in {
        "pydoc_data/topics.py": "topics = {'b': 'Bee', 'a': 'Ay', 'c': 'Bee'}",
        "z.py": "'''Zed.'''\nclass A:\n    '''A\n      class.'''\n    def f(self):\n        'Eff.'",
        "pkg/__init__.py": "if True:\n    def g():\n        'Gee \\d.'",
        "broken.py": "def (",
        "bare.py": "x = 1",
        "test/test_z.py": "'''Not this.'''",
        "site-packages/other.py": "'''Nor this.'''",
    }.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(content)
    monkeypatch.setattr("clearhead.data.pydocs._library", lambda: library)
    assert texts("pydocs") == texts("pydocs")
    assert sorted(texts("pydocs")) == [
        "Ay",
        "Bee",
        "function pkg.g()\nGee \\d.\n",
        "module z\nZed.\n\nclass z.A\nA\nclass.\n\nfunction z.A.f()\nEff.\n",
    ]
    done = [done for _, done in pydocs_documents()]
    assert done == sorted(done)
    (library / "pydoc_data" / "topics.py").unlink()
    assert "pydocs: this Python has no" in refused("pydocs")


def test_this_python_has_pydocs():
    files = pydocs_files()
    assert len(files) > 300
    documents = [text for text, _ in pydocs_documents()]
    kinds = [text.startswith("module ") for text in documents]
    last = kinds[-len(kinds) // 5 :]
    assert 0.5 < (sum(last) / len(last)) / (sum(kinds) / len(kinds)) < 1.5  # held out, as trained
    assert sum("statement" in text for text in documents) > 20
