"""Save in forked processes that die at every other line of the code, and at random moments.

Usage: killed_while_saving.py CHECKPOINT OUT. Each process saves into a run folder of its own in
OUT. Prints how many died at a line, and how many by a signal.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import torch

from clearhead.checkpoint import checkpoint_path, load, prune, save

SIGNALS = 10
TRACED = ("folder.py", "checksums.py", "files.py", "runs.py")


def in_child(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Do the work in a fork; return its exit status, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(line: int) -> None:
    """Let this process die, as by kill -9, before the given line of the package's code."""
    lines = count()

    def trace(frame: object, event: str, _: object) -> object:
        if Path(frame.f_code.co_filename).name not in TRACED:  # type: ignore[attr-defined]
            return None
        if event == "line" and next(lines) == line:
            os._exit(9)
        return trace

    sys.settrace(trace)


def main(checkpoint: Path, out: Path) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda _: None  # for speed: a kill, unlike a power cut, loses nothing unflushed
    model, tokenizer = load(checkpoint)

    def save_and_prune(run: Path, first: int) -> None:
        for step in (first, first + 1):
            save(checkpoint_path(run, step), model, tokenizer)
            prune(run, keep=1, best_step=None)

    def dying(run: Path, line: int) -> None:
        die_at(line)
        save_and_prune(run, 1)

    line = 0
    while in_child(partial(dying, out / f"line-{line}", line)) == 9:
        line += 2
    killed = random.Random(0)
    for number in range(SIGNALS):
        run = out / f"signal-{number}"

        def forever(run: Path = run) -> None:
            for step in count(1, 2):
                save_and_prune(run, step)

        in_child(forever, kill_after=killed.uniform(0.01, 0.15))
    print(json.dumps({"lines": line // 2, "signals": SIGNALS}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
