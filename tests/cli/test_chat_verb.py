"""`clearhead chat`: through a pipe, by commands, and on a terminal."""

import builtins
import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from json import loads

import pytest
import torch

from clearhead import checkpoint
from clearhead.cli import show
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import CHAT_TEMPLATE, build_tokenizer

COMMAND = """\
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # what is typed here, Ctrl-C too, is for this process
from clearhead.cli.main import main
sys.exit(main())
"""


def save(folder, context_length=512, template=CHAT_TEMPLATE):
    torch.manual_seed(2)
    config = GPTConfig(257, context_length=context_length, d_model=16, n_heads=2, n_layers=1)
    model, tokenizer = GPT(config), build_tokenizer("bytes")
    with torch.no_grad():
        model.head.weight.mul_(20)
    tokenizer.chat_template = template
    checkpoint.save(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="module")
def assistant(tmp_path_factory):
    return save(tmp_path_factory.mktemp("assistant") / "model")


@pytest.fixture
def talk(call, assistant, monkeypatch):
    """Chat through a pipe; returns the exit status, the answers' objects and standard error."""

    def talk(said, *arguments):
        data = said if isinstance(said, bytes) else said.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        options = ("--json", "--tokens", "8", "--seed", "5", "--device", "cpu")
        status, out, err = call("chat", assistant, *options, *arguments)
        return status, [loads(line) for line in out.splitlines()], err

    return talk


def test_each_line_of_a_pipe_is_a_question(talk):
    status, answers, err = talk("What?\n\n  \nWhy so? \nlast line without an end")
    assert status == 0
    assert [one["question"] for one in answers] == ["What?", "Why so?", "last line without an end"]
    assert [one["seed"] for one in answers] == [5, 6, 7]
    assert all(one["tokens"] <= 8 and one["left_out_exchanges"] == 0 for one in answers)
    assert answers[0]["prompt_tokens"] < answers[1]["prompt_tokens"]
    assert "> " not in err
    assert "/help" not in err
    assert err.count(" tokens/s, the first after ") == 3


def test_answers_alone_are_on_standard_output(call, talk, assistant, monkeypatch):
    answers = talk("What?\nWhy?\n")[1]
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\nWhy?\n"))
    status, out, err = call("chat", assistant, "--tokens", "8", "--seed", "5", "--device", "cpu")
    assert status == 0
    assert out == "".join(f"{one['text']}\n" for one in answers)
    assert err.count("; seed ") == 2


def test_it_says_once_which_model_it_is_and_what_computes_it(talk, assistant, monkeypatch):
    err = talk("What?\nWhy?\n")[2]
    assert err.count(f"{assistant}: 15,616 parameters (F32)") == 1
    from clearhead.native import decode

    monkeypatch.setattr(decode, "_obstacle", lambda model: "no reason")
    err = talk("What?\nWhy?\n")[2]
    assert err.count("torch computes, not the native kernels: no reason") == 1


def test_several_lines_of_one_question(talk):
    said = 'one\\\ntwo\\\nthree\n"""\nfour\\\n/five\n"""\n"""six"""\n /help me\nseven\\\n'
    questions = [one["question"] for one in talk(said)[1]]
    assert questions == ["one\ntwo\nthree", "four\\\n/five", "six", "/help me", "seven"]
    assert talk('"""open\nto the end')[1][0]["question"] == "open\nto the end"


def test_commands(talk, tmp_path):
    file = tmp_path / "talk.json"
    said = [
        "One?",
        "Two?",
        "/undo",
        "/retry",
        "/system Be kind.",
        "Three?",
        f"/save {file}",
        "/system",
        "/reset",
        "Four?",
        "/help",
        "/quit",
        "never asked",
    ]
    status, answers, err = talk("\n".join(said))
    assert status == 0
    questions = [one["question"] for one in answers]
    assert questions == ["One?", "Two?", "One?", "Three?", "Four?"]
    assert [one["seed"] for one in answers] == [5, 6, 7, 8, 9]
    saved = loads(file.read_text())["messages"]
    assert [one["content"] for one in saved] == [
        *("Be kind.", "One?", answers[2]["text"], "Three?", answers[3]["text"])
    ]
    assert answers[4]["prompt_tokens"] == answers[0]["prompt_tokens"] + 1
    for told in ("taken back: Two?", f"saved: {file}", "forgotten", "no system message"):
        assert told in err
    for command in ("/help", "/reset", "/undo", "/retry", "/system TEXT", "/save FILE", "/quit"):
        assert f"\n{command}" in err


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("/rest", "there is no command '/rest'; did you mean '/reset'?"),
        ("/etc/passwd", "there is no command '/etc/passwd'; valid: /help, "),
        ("/", "there is no command '/'; "),
        ("/undo", "nothing was asked yet"),
        ("/retry", "nothing was asked yet"),
        ("/reset all", "/reset takes nothing after it"),
        ("/save", "/save needs a file's name"),
        ("/save /none/talk.json", "/none/talk.json cannot be written: No such file"),
        ("/save ~nobody-of-this-name/talk.json", "no home folder of '~nobody-of-this-name"),
        ("x" * 600, "the question is too long: it takes 633 tokens, and there are 505"),
        ("/system " + "x" * 600, "the system message takes 635 tokens"),
        ("<|endoftext|>", "the question is empty or holds <|endoftext|>"),
        (b"caf\xe9", "the question is not UTF-8 text, at character 3"),
    ],
)
def test_a_mistake_is_one_line_and_the_talk_goes_on(talk, message, told):
    message = message if isinstance(message, bytes) else message.encode()
    status, answers, err = talk(message + b"\nStill there?\n")
    assert status == 2
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in err
    assert [one["question"] for one in answers] == ["Still there?"]
    assert answers == [{**answers[0], "seed": 5, "prompt_tokens": 45}]


def test_left_out_exchanges_are_told(talk):
    status, answers, err = talk("x" * 200 + "\n" + "y" * 200 + "\n" + "z" * 200 + "\n")
    assert status == 0
    assert [one["left_out_exchanges"] for one in answers] == [0, 0, 1]
    assert err.count("; the oldest exchange was left out to make room") == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--temperature", "-1"], "temperature is -1.0; it must be"),
        (["--tokens", "0"], "max_new_tokens is 0"),
        (["--stop", ""], "a list of strings, none empty"),
        (["--system", "x" * 600], "the system message takes "),
        (["--system", "\udcff"], "--system is not UTF-8 text"),
        (["--best"], "none of its checkpoints is best"),
        (["--tempereture", "1"], "did you mean '--temperature'?"),
    ],
)
def test_mistakes_in_the_options(refused, assistant, run, tmp_path, options, told, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("never read\n"))
    folder = assistant
    if options == ["--best"]:
        folder = tmp_path / "run"
        save(folder / "checkpoints/step-00000001")
    assert told in refused("chat", folder, "--device", "cpu", *options)


def test_a_model_that_was_not_taught_is_refused(refused, run):
    told = refused("chat", run)
    assert "this model has no chat template: it was not taught to answer" in told
    assert "clearhead finetune instruct" in told


class Keyboard(io.StringIO):
    """A person's: what is typed, and where Ctrl-C and Ctrl-D are pressed."""

    def __init__(self, *typed):
        super().__init__()
        self.typed, self.prompts = iter(typed), []

    def isatty(self):
        return True

    def input(self, prompt=""):
        self.prompts.append(prompt)
        line = next(self.typed)
        if isinstance(line, type):
            raise line
        return line


@pytest.fixture
def type_in(call, assistant, monkeypatch):
    """Chat as a person does, but for the terminal; returns status, output, error."""

    def type_in(*typed, json=True):
        keyboard = Keyboard(*typed)
        monkeypatch.setattr("sys.stdin", keyboard)
        monkeypatch.setattr(builtins, "input", keyboard.input)
        options = ["--tokens", "8", "--seed", "5", "--device", "cpu", *["--json"] * json]
        status, out, err = call("chat", assistant, *options)
        return status, [loads(line)["question"] for line in out.splitlines()], err

    return type_in


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt, "/quit"])
def test_the_end(type_in, end):
    status, questions, err = type_in("One?", "/nonsense", end, "never asked")
    assert (status, questions) == (0, ["One?"])
    assert "/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends" in err
    assert err.count("> ") == 3  # standard output is none: it takes no prompt
    assert err.count("error: ") == 1


def test_a_message_that_was_begun_can_be_dropped_or_ended(type_in):
    typed = ['"""one', KeyboardInterrupt, "two\\", EOFError, "three\\", KeyboardInterrupt, EOFError]
    status, questions, err = type_in(*typed)
    assert (status, questions) == (0, ["two"])
    assert err.count(". ") >= 3


def test_a_second_ctrl_c_breaks_off(type_in, monkeypatch):
    def press(_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    def type_and_press(*typed):
        with monkeypatch.context() as patch:
            patch.setattr(show, "text", press)
            return type_in(*typed, json=False)

    status, out, err = type_and_press("One?", "/undo", EOFError)
    assert (status, out) == (0, [])
    assert "broken off; the conversation is as it was" in err
    assert "error: nothing was asked yet" in err


class Terminal:
    """A process with a terminal of its own, as a person has one."""

    def __init__(self, *arguments, **environment):
        pty = pytest.importorskip("pty", reason="there are no pseudo-terminals here")
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment},
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text):
        os.write(self.ours, text.encode())

    def wait_for(self, text, seconds=90):
        """Read until the text comes; return what came before it. What was read is read."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.ours], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.ours, 65536).decode(errors="replace")
                except OSError as error:  # how a terminal ends on Linux
                    raise AssertionError(self.seen) from error
        before, _, self.seen = self.seen.partition(text)
        return before

    def ended_by(self, key):
        """Press a key until the process ends; return its status."""
        for _ in range(90):  # Python's readline may miss a Ctrl-C as it begins to wait
            self.type(key)
            try:
                return self.process.wait(1)
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError(self.seen)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


@pytest.fixture
def terminal():
    opened = []

    def terminal(*arguments, **environment):
        opened.append(Terminal(*arguments, **environment))
        return opened[-1]

    yield terminal
    for one in opened:
        one.close()


def test_ctrl_c_ends_an_answer_and_not_the_talk(terminal, tmp_path):
    folder, file = save(tmp_path / "endless", context_length=2**16), tmp_path / "talk.json"
    # An answer that goes on for minutes, however fast the machine is.
    one = terminal("chat", folder, "--tokens", 60000, "--min-tokens", 60000, "--device", "cpu")
    one.wait_for("> ")
    for question in ("Go on!", "And on!"):
        one.type(f"{question}\r")
        one.wait_for("\n")  # the echo of the question ends; what follows is the answer
        one.wait_for("\\x")  # a control character of it, written out
        one.type("\x03")
        answer = one.wait_for("\x1b[2m")  # the line after it is dim
        answer = answer.replace("\x1b[?2004l", "").replace("^C", "")  # those of line and terminal
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", answer)
        one.wait_for("; stopped; what is written stays (/undo takes it back)")
        one.wait_for("> ")
    one.type(f"/save {file}\r")
    one.wait_for("saved: ")
    saved = loads(file.read_text())["messages"]
    assert [message["content"] for message in saved[::2]] == ["Go on!", "And on!"]
    assert all(message["content"] for message in saved[1::2])
    one.wait_for("> ")
    assert one.ended_by("\x03") == 0


def test_a_pasted_text_is_one_question(terminal, assistant):
    one = terminal("chat", assistant, "--json", "--tokens", 4, "--device", "cpu")
    one.wait_for("> ")
    one.type("\x1b[200~line one\nline two\x1b[201~\r")
    assert '"question": "line one\\nline two"' in one.wait_for("tokens_per_second")
    one.wait_for("> ")
    assert one.ended_by("\x04") == 0


def test_without_line_editing_lines_that_come_at_once_are_one_question(
    terminal, assistant, tmp_path
):
    (tmp_path / "readline.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    options = ("--json", "--tokens", 4, "--device", "cpu")
    one = terminal("chat", assistant, *options, PYTHONPATH=path)
    one.wait_for("> ")
    one.type("line one\nline two\n")
    assert '"question": "line one\\nline two"' in one.wait_for("tokens_per_second")
    one.wait_for("> ")
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(30) == -signal.SIGTERM
