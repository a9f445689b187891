import errno
import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bytes_tokenizer import BrokenTokenizer, BytesTokenizer, WideTokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clearhead.data import TokenDataset, describe, is_prepared, prepare
from clearhead.errors import ClearheadError
from clearhead.tokenizer import END_OF_TEXT

TEXT = END_OF_TEXT.join(f"Document {n}: " + "wörd " * (n * 37 % 500) for n in range(60))
MODULE = sys.modules["clearhead.data.prepare"]  # the package has the function under this name
TOKENIZER = BytesTokenizer()
fresh = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    # One generator for the parent alone: workers never cut text, so they need no patch.
    monkeypatch.setattr("clearhead.data.sources.split_documents", _split_small)
    monkeypatch.setattr(MODULE, "PIECE_CHARS", 2000)
    monkeypatch.setattr(MODULE, "SAVE_TOKENS", 5000)


def _split_small(blocks):
    from clearhead.data.pieces import split_documents

    return split_documents(blocks, 700)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def expected(text=TEXT):
    ids = []
    for document in text.split(END_OF_TEXT):
        ids += [*document.encode(), TOKENIZER.end_of_text]
    return ids


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def refused(*arguments, **options):
    with pytest.raises(ClearheadError) as caught:
        prepare(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tokens_documents_and_manifest(corpus, tmp_path):
    calls = []
    manifest = prepare(
        [corpus],
        tmp_path / "out",
        TOKENIZER,
        processes=1,
        shard_tokens=10_000,
        progress=lambda done, total: calls.append((done, total)),
    )
    dataset = TokenDataset.open(tmp_path / "out")
    assert dataset.read(0, len(dataset)).tolist() == expected()
    ends = np.flatnonzero(np.array(expected()) == 256) + 1
    assert dataset.document_starts.tolist() == [0, *ends[:-1]]
    assert manifest == dataset.manifest == describe(tmp_path / "out")
    assert manifest.dtype == "uint16"
    assert manifest.documents == 60
    assert manifest.text_bytes == len(TEXT.replace(END_OF_TEXT, "").encode())
    assert manifest.sources[0].name == "corpus.txt"
    assert manifest.sources[0].bytes == corpus.stat().st_size
    assert all(shard.tokens == 10_000 for shard in manifest.shards[:-1])
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert calls[-1] == (corpus.stat().st_size,) * 2
    assert calls == sorted(calls)
    names = set(content(tmp_path / "out"))
    assert "tokenizer.json" in names
    assert "progress.json" not in names


@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_changes_no_byte(corpus, tmp_path, processes):
    for out, count in [("one", 1), ("more", processes)]:
        prepare([corpus], tmp_path / out, TOKENIZER, processes=count, shard_tokens=7001)
    assert content(tmp_path / "one") == content(tmp_path / "more")


@fresh
@given(shard_tokens=st.integers(500, 90_000))
def test_the_size_of_shards_changes_no_token(corpus, tmp_path_factory, shard_tokens):
    out = tmp_path_factory.mktemp("shards")
    prepare([corpus], out, TOKENIZER, processes=1, shard_tokens=shard_tokens)
    dataset = TokenDataset.open(out)
    assert dataset.read(0, len(dataset)).tolist() == expected()


def test_a_large_vocabulary_takes_four_bytes(corpus, tmp_path):
    manifest = prepare([corpus], tmp_path / "out", WideTokenizer(), processes=1)
    assert manifest.dtype == "uint32"
    dataset = TokenDataset.open(tmp_path / "out")
    assert dataset.read(len(dataset) - 1, 1).tolist() == [(1 << 17) - 1]


class StoppedError(Exception):
    pass


@fresh
@given(stops=st.lists(st.integers(0, 45), min_size=1, max_size=3))
def test_stopped_anywhere_it_goes_on_to_the_same_result(corpus, tmp_path_factory, stops):
    base = tmp_path_factory.mktemp("resume")
    whole = base / "whole"
    prepare([corpus], whole, TOKENIZER, processes=1, shard_tokens=6000)
    for stop in stops:
        calls = []

        def count(done, total, stop=stop, calls=calls):
            calls.append(done)
            if len(calls) > stop:
                raise StoppedError

        with pytest.raises(StoppedError):
            prepare(
                [corpus], base / "out", TOKENIZER, processes=1, shard_tokens=6000, progress=count
            )
        assert not is_prepared(base / "out")
    prepare([corpus], base / "out", TOKENIZER, processes=1, shard_tokens=6000)
    assert content(base / "out") == content(whole)


def test_going_on_does_not_encode_again(corpus, tmp_path, monkeypatch):
    def stop(done, total):
        if done * 1.0 > 0.8 * total and (tmp_path / "out" / "tokens-00003.bin").exists():
            raise StoppedError

    with pytest.raises(StoppedError):
        prepare(
            [corpus], tmp_path / "out", TOKENIZER, processes=1, shard_tokens=6000, progress=stop
        )
    encoded = []
    original = BytesTokenizer.encode_ordinary
    monkeypatch.setattr(
        BytesTokenizer, "encode_ordinary", lambda s, t: encoded.append(t) or original(s, t)
    )
    prepare([corpus], tmp_path / "out", TOKENIZER, processes=1, shard_tokens=6000)
    assert 0 < sum(map(len, encoded)) < len(TEXT) / 2


def test_other_arguments_are_refused_and_the_same_return_at_once(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    made = prepare([corpus], out, TOKENIZER, processes=1)
    before = content(out)
    assert "another tokenizer (BytesTokenizer, now WideTokenizer)" in refused(
        [corpus], out, WideTokenizer()
    )
    assert "another shard_tokens" in refused([corpus], out, TOKENIZER, shard_tokens=5)
    monkeypatch.setattr(BytesTokenizer, "encode_ordinary", None)
    assert prepare([corpus], out, TOKENIZER, processes=1) == made
    corpus.write_text(TEXT.replace("1", "2"))
    assert "other sources (corpus.txt changed)" in refused([corpus], out, TOKENIZER)
    assert content(out) == before


def test_another_half_done_corpus_is_refused(corpus, tmp_path):
    def stop(done, total):
        if done > total / 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        prepare([corpus], tmp_path / "out", TOKENIZER, processes=1, progress=stop)
    assert "another shard_tokens" in refused(
        [corpus], tmp_path / "out", TOKENIZER, processes=1, shard_tokens=9
    )


def test_a_folder_with_other_things_is_refused(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.md").write_text("mine")
    assert "holds other files" in refused([corpus], tmp_path / "out", TOKENIZER)
    assert "is a file" in refused([corpus], corpus, TOKENIZER)


def test_a_bad_source_does_not_block_the_folder(tmp_path):
    bad, good = tmp_path / "bad.txt", tmp_path / "good.txt"
    bad.write_bytes(b"\xff")
    good.write_text("good")
    assert "byte offset 0" in refused([bad], tmp_path / "out", TOKENIZER)
    prepare([good], tmp_path / "out", TOKENIZER)
    bad.write_bytes(b" \n ")
    assert "only white space" in refused([bad], tmp_path / "blank", TOKENIZER)


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "cannot be written")]
)
def test_a_full_disk_loses_nothing(corpus, tmp_path, monkeypatch, code, message):
    from clearhead.data.writer import Writer

    original = Writer._append

    def limited(self, path, chunk):
        if path.name == "tokens-00002.bin":
            original(self, path, chunk[: len(chunk) // 2])
            raise OSError(code, os.strerror(code))
        original(self, path, chunk)

    options = {"processes": 1, "shard_tokens": 6000}
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_append", limited)
        assert message in refused([corpus], tmp_path / "out", TOKENIZER, **options)
    prepare([corpus], tmp_path / "out", TOKENIZER, **options)
    prepare([corpus], tmp_path / "whole", TOKENIZER, **options)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_the_tokenizer_comes_through(corpus, tmp_path, processes):
    with pytest.raises(ValueError, match="broken on purpose"):
        prepare([corpus], tmp_path / "out", BrokenTokenizer(), processes=processes)


def run(code, *arguments):
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env={**os.environ, "PYTHONPATH": paths}
    )


KILLED = """
import sys
from pathlib import Path
from bytes_tokenizer import BytesTokenizer
import clearhead.data.prepare
from clearhead.data import prepare
sys.modules["clearhead.data.prepare"].SAVE_TOKENS = 1_000_000
prepare([sys.argv[1]], Path(sys.argv[2]), BytesTokenizer(), processes=2, shard_tokens=3_000_000)
"""


def test_kill_9_leaves_no_worker_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.undo()
    corpus = tmp_path / "large.txt"
    corpus.write_text(TEXT * 400, encoding="utf-8")
    for out, kills in [("whole", 0), ("killed", 2)]:
        for _ in range(kills):
            process = run(KILLED, corpus, tmp_path / out)
            known = len(list((tmp_path / out).glob("tokens-*.bin")))
            while process.poll() is None:
                workers = _children(process.pid)
                if len(list((tmp_path / out).glob("tokens-*.bin"))) > known:
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.002)
            process.wait()
            deadline = time.monotonic() + 10
            while any(Path(f"/proc/{worker}").exists() for worker in workers):
                assert time.monotonic() < deadline, "a worker outlived its parent"
                time.sleep(0.02)
        if kills:
            assert '"batches": 0' not in (tmp_path / out / "progress.json").read_text()
        process = run(KILLED, corpus, tmp_path / out)
        assert process.wait() == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def _children(pid):
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


MEASURED = """
import os, sys, threading, time
from pathlib import Path
from bytes_tokenizer import BytesTokenizer
from clearhead.data import prepare
peak = 0
def rss(pid):
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        own = next(l for l in Path(f"/proc/{pid}/status").open() if l.startswith("VmRSS"))
        return int(own.split()[1]) + sum(map(rss, children))
    except (OSError, StopIteration):
        return 0
def watch():
    global peak
    while True:
        peak = max(peak, rss(os.getpid()))
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
prepare([sys.argv[1]], Path(sys.argv[2]), BytesTokenizer(), processes=2)
assert "torch" not in sys.modules
Path(sys.argv[3]).write_text(str(peak))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tmp_path, monkeypatch):
    monkeypatch.undo()
    corpus = tmp_path / "large.txt.gz"
    block = ("All work and no play makes Jack a dull boy. " * 25_000).encode()
    with gzip.open(corpus, "wb", compresslevel=1) as file:
        for _ in range(220):
            file.write(block)  # one document of 240 MB
    assert run(MEASURED, corpus, tmp_path / "out", tmp_path / "peak").wait() == 0
    assert describe(tmp_path / "out").text_bytes == 220 * len(block)
    assert int((tmp_path / "peak").read_text()) < 350_000  # kB, three Pythons with numpy included
