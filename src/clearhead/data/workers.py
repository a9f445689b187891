"""Encoding on all cores: worker processes that turn batches of pieces into token ids.

The workers are plain Python processes that speak pickles over their pipes. Unlike those of
`multiprocessing` they never import the caller's main script (which may hold torch, or call
`prepare` without a guard), and they end by themselves when the parent is gone, however it went:
their input ends.
"""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np

from clearhead.data.pieces import Piece
from clearhead.errors import ClearheadError
from clearhead.tokenizer import Tokenizer

_BOOT = (
    "import sys, pickle; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from clearhead.data.workers import work; work()"
)


@dataclass(frozen=True)
class Batch:
    """Some pieces in a row, the unit of work and of resuming."""

    pieces: list[Piece]
    position: int
    """Bytes of the sources that were read when it was made."""


@dataclass(frozen=True)
class Encoded:
    """The tokens of a batch."""

    ids: bytes
    """The token ids, little-endian, in the dtype asked for."""
    ends: np.ndarray
    """uint64: for each document that ends here, the position behind its end-of-text token."""
    text_bytes: int
    """UTF-8 bytes of the pieces."""


@dataclass(frozen=True)
class Encoder:
    """Encodes batches; what a worker is sent when it starts."""

    tokenizer: Tokenizer
    dtype: str

    def __call__(self, pieces: list[Piece]) -> Encoded:
        """Encode pieces, with the end-of-text token behind each document's last."""
        end_of_text = np.array([self.tokenizer.end_of_text], dtype=np.uint32)
        parts: list[np.ndarray] = []
        ends: list[int] = []
        tokens = text_bytes = 0
        for text, last in pieces:
            ids = self.tokenizer.encode_ordinary(text)
            text_bytes += len(text) if text.isascii() else len(text.encode())
            tokens += len(ids)
            parts.append(ids)
            if last:
                parts.append(end_of_text)
                tokens += 1
                ends.append(tokens)
        ids = np.concatenate(parts)
        dtype = np.dtype(self.dtype).newbyteorder("<")
        return Encoded(ids.astype(dtype).tobytes(), np.array(ends, np.uint64), text_bytes)


def encode_all(
    batches: Iterable[Batch], encoder: Encoder, processes: int
) -> Iterator[tuple[Batch, Encoded]]:
    """Encode batches on `processes` processes, in order, few of them in memory at a time.

    With one process the work is done in this one.

    Raises:
        ClearheadError: A worker died.
    """
    if processes == 1:
        for batch in batches:
            yield batch, encoder(batch.pieces)
        return
    with _workers(encoder, processes) as idle, ThreadPoolExecutor(processes) as threads:

        def encode(pieces: list[Piece]) -> Encoded:
            worker = idle.get()
            try:
                return worker.encode(pieces)
            finally:
                idle.put(worker)

        waiting: deque[tuple[Batch, Future[Encoded]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, threads.submit(encode, batch.pieces)))
                if len(waiting) > processes + 2:
                    head, future = waiting.popleft()
                    yield head, future.result()
            while waiting:
                head, future = waiting.popleft()
                yield head, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def work() -> None:
    """Serve as a worker process: an encoder comes first, then batches until the input ends."""
    inbox, outbox = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print must not break the protocol
    encoder: Encoder = pickle.load(inbox)
    while True:
        try:
            pieces = pickle.load(inbox)
        except EOFError:
            return
        answer: Encoded | Exception
        try:
            answer = encoder(pieces)
        except Exception as error:
            answer = error
        pickle.dump(answer, outbox, protocol=pickle.HIGHEST_PROTOCOL)
        outbox.flush()


class _Worker:
    def __init__(self, encoder: Encoder) -> None:
        # A session of its own, so that Ctrl-C reaches the parent alone, which then ends it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._greeting: list[Any] = [sys.path, encoder]

    def encode(self, pieces: list[Piece]) -> Encoded:
        inbox, outbox = self._process.stdin, self._process.stdout
        assert inbox is not None
        assert outbox is not None
        try:
            for message in [*self._greeting, pieces]:
                pickle.dump(message, inbox, protocol=pickle.HIGHEST_PROTOCOL)
            self._greeting = []
            inbox.flush()
            answer: Encoded | Exception = pickle.load(outbox)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise ClearheadError(
                "a worker process died (out of memory?); run the same command again to go on, "
                "with fewer --processes"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def _workers(encoder: Encoder, count: int) -> Iterator[SimpleQueue[_Worker]]:
    workers: list[_Worker] = []
    idle: SimpleQueue[_Worker] = SimpleQueue()
    try:
        for _ in range(count):
            workers.append(_Worker(encoder))
            idle.put(workers[-1])
        yield idle
    finally:
        for worker in workers:
            worker.close()
