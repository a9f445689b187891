"""`clearhead VERB …`: finds the verb, and tells every mistake in one line."""

import errno
import gc
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from clearhead import __version__
from clearhead.cli import show
from clearhead.errors import ClearheadError, nearest

MISTAKE = 2
INTERRUPTED = 130
_PIPE_CLOSED = 1
_SPINS = "1000"  # a thread that waits gives its core up soon, so that a busy machine stays usable
_MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Verb:
    """One thing that the command does."""

    module: str
    """Where its function is, below `clearhead.cli`; imported only when the verb is used."""
    function: str
    """Takes the remaining arguments and the verb's full name; returns the exit status."""
    usage: str
    """What it is given, for the list of verbs."""
    purpose: str
    """What it does, for the list of verbs."""


VERBS = {
    "train": Verb(
        "train",
        "train",
        "[--data SOURCE ...] [--out DIR] [--preset NAME]",
        "train a GPT from scratch, or go on with a run",
    ),
    "generate": Verb(
        "generate", "generate", "DIR --prompt TEXT", "continue a text with a trained model"
    ),
    "chat": Verb(
        "chat", "chat", "DIR [--system TEXT]", "talk with a model that was taught to answer"
    ),
    "finetune classify": Verb(
        "finetune",
        "classify",
        "DIR --data FILE --out DIR",
        "teach a model to tell texts apart",
    ),
    "finetune instruct": Verb(
        "finetune",
        "instruct",
        "DIR --data FILE --out DIR",
        "teach a model to answer, from instructions or chats",
    ),
    "finetune prefer": Verb(
        "finetune",
        "prefer",
        "DIR --data FILE --out DIR",
        "teach a model which of two answers is better",
    ),
    "classify": Verb(
        "classify",
        "classify",
        "DIR --text TEXT | --data FILE",
        "tell what a text is, or how well a classifier does",
    ),
    "merge": Verb(
        "merge", "merge", "DIR --out DIR", "make one checkpoint of an adapter and its model"
    ),
    "eval": Verb(
        "evaluate",
        "eval_",
        "DIR --task NAME [--data PATH]",
        "measure a model on a benchmark or text",
    ),
    "compare": Verb(
        "evaluate",
        "compare",
        "DIR DIR --task NAME [--data PATH]",
        "test whether two models differ on the same questions",
    ),
    "data prepare": Verb(
        "data",
        "prepare",
        "SOURCE ... --out DIR --tokenizer NAME",
        "turn text into shards of tokens",
    ),
    "data info": Verb("data", "info", "DIR", "tell what a prepared folder holds"),
    "tokenizer train": Verb(
        "tokenizer",
        "train",
        "SOURCE ... --vocab-size N --out DIR",
        "learn a byte-level BPE from text",
    ),
    "tokenizer show": Verb(
        "tokenizer", "show", "TEXT --tokenizer NAME", "tell how a text is cut into tokens"
    ),
    "info": Verb("info", "info", "DIR", "tell what a checkpoint or a run holds"),
    "download": Verb(
        "download", "download", "NAME [--from SOURCE] [--out DIR]", "fetch a published model"
    ),
    "import": Verb(
        "convert", "import_", "SOURCE OUT", "make a checkpoint from another tool's, certified"
    ),
    "export": Verb(
        "convert", "export", "DIR OUT --to FORMAT", "write one for another tool, certified"
    ),
    "verify": Verb(
        "convert", "verify", "DIR [--against DIR]", "compare a checkpoint with another once more"
    ),
    "quantize": Verb(
        "quantize", "quantize", "DIR OUT --bits 8|4", "make a smaller, faster checkpoint, certified"
    ),
    "bench generate": Verb(
        "bench", "generate", "DIR | --preset NAME", "measure how fast a model writes, and the limit"
    ),
    "lens demo": Verb(
        "lens.demo", "demo", "[DIR]", "show what the output projection does, on small numbers"
    ),
    "lens heads": Verb(
        "lens.heads", "heads", "DIR --text T", "tell what each head adds, and from which tokens"
    ),
    "lens mixing": Verb(
        "lens.mixing", "mixing", "DIR", "tell which heads each output projection mixes"
    ),
    "lens circuits": Verb(
        "lens.circuits", "circuits", "DIR", "tell which heads feed which, copy, or look back"
    ),
    "lens logits": Verb(
        "lens.logits",
        "logits",
        "DIR --text T [--target W] [--versus W]",
        "tell what each depth predicts, and which parts make a logit",
    ),
    "lens ablate": Verb(
        "lens.ablate", "ablate", "DIR --data SOURCE", "tell what is lost without heads"
    ),
    "lens trust": Verb(
        "lens.trust", "trust", "DIR --data SOURCE", "tell how much each head counts, in four ways"
    ),
    "lens history": Verb(
        "lens.history", "history", "RUN", "show how heads came to look back over a run"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: What follows the word `clearhead`; the process's own arguments by default.

    Returns:
        The exit status: 0, 2 for a mistake that a person can mend, 130 if interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not know every character
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        print(end="", flush=True)  # what cannot be written is told below, not after the end
    except ClearheadError as error:
        show.error(str(error))
        return MISTAKE
    except KeyboardInterrupt:
        show.error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        show.error(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
        return MISTAKE
    return status


def _dispatch(arguments: list[str]) -> int:
    """Call the verb that the arguments begin with."""
    if not arguments or arguments[0] in ("-h", "--help"):
        _help("")
        return 0
    if arguments[0] == "--version":
        print(f"clearhead {__version__}")
        return 0
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in VERBS:
            return _run(VERBS[name], arguments[words:], f"clearhead {name}")
    group = arguments[0]
    inside = [name.split()[1] for name in VERBS if name.startswith(f"{group} ")]
    if not inside:
        first = {name.split()[0] for name in VERBS}
        kind = "option" if group.startswith("-") else "verb"
        raise ClearheadError(f"clearhead has no {kind} {group!r}; {nearest(group, first)}")
    if len(arguments) == 1 or arguments[1] in ("-h", "--help"):
        _help(f"{group} ")
        return 0
    raise ClearheadError(
        f"clearhead {group} has no verb {arguments[1]!r}; {nearest(arguments[1], inside)}"
    )


def _run(verb: Verb, arguments: list[str], prog: str) -> int:
    try:
        return _function(verb)(arguments, prog)
    except SystemExit as end:  # how tyro ends after --help, and after a mistake it has told
        return end.code if isinstance(end.code, int) else 0


def _function(verb: Verb) -> Callable[[list[str], str], int]:
    """Import a verb's function.

    No garbage is looked for meanwhile, nor later among what was imported: torch makes so many
    objects that it would take a fifth of the time to the first token.
    """
    gc.disable()
    try:
        function: Callable[[list[str], str], int] = getattr(
            import_module(f"clearhead.cli.{verb.module}"), verb.function
        )
        return function
    finally:
        gc.freeze()
        gc.enable()


def _help(prefix: str) -> None:
    """List the verbs whose names begin with `prefix`."""
    rows = [(name, verb) for name, verb in VERBS.items() if name.startswith(prefix)]
    show.verbs(
        f"clearhead {prefix}VERB ... | clearhead {prefix}VERB --help",
        "A complete GPT that one can train, use and see through.",
        [(f"clearhead {name}", verb.usage, verb.purpose) for name, verb in rows],
    )


if __name__ == "__main__":
    sys.exit(main())
