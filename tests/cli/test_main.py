"""Finding the verb, help, exit statuses."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import clearhead
from clearhead.cli import main as module
from clearhead.cli.main import VERBS

COMMAND = "import sys; from clearhead.cli.main import main; sys.exit(main())"


def process(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_verb(call, arguments):
    status, out, err = call(*arguments)
    assert (status, err) == (0, "")
    for name, verb in VERBS.items():
        assert f"clearhead {name} {verb.usage}" in out
        assert verb.purpose in out


@pytest.mark.parametrize("arguments", [["data"], ["data", "--help"]])
def test_a_group_lists_its_verbs(call, arguments):
    status, out, _ = call(*arguments)
    assert status == 0
    assert "clearhead data prepare" in out
    assert "clearhead train" not in out


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_has_help(call, name):
    status, out, err = call(*name.split(), "--help")
    assert (status, err) == (0, "")
    assert f"usage: clearhead {name}" in out
    assert "--json" in out


def test_version(call):
    assert call("--version") == (0, f"clearhead {clearhead.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "has no verb 'trian'; did you mean 'train'?"),
        (["--halp"], "has no option '--halp'"),
        (["data", "prepair"], "clearhead data has no verb 'prepair'; did you mean 'prepare'?"),
        (
            ["train", "--stepz", "3"],
            "clearhead train has no option '--stepz'; did you mean '--steps",
        ),
        (["train", "--model.d_mode", "3"], "'--model.d_mode'; did you mean '--model.d-model'?"),
        (["train", "--optimizer.kid=adamw"], "did you mean '--optimizer.kind'?"),
        (["generate", "x", "--prompts", "y"], "did you mean '--prompt'?"),
        (["info", "a", "b"], "'b' is one argument too many"),
        (["info", "a", "--zzzzzzzz"], "clearhead info --help lists what there is"),
    ],
)
def test_a_misspelt_word_gets_the_nearest_valid_one(refused, arguments, told):
    assert told in refused(*arguments)


@pytest.mark.parametrize(
    "arguments", [["train", "--steps", "many"], ["data", "prepare", "x"], ["info"]]
)
def test_what_tyro_refuses_ends_with_status_2(call, arguments):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err
    assert "Traceback" not in err


def test_help_and_version_leave_torch_alone():
    code = (
        "import sys; from clearhead.cli.main import main; main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    for argument in ("--help", "--version"):
        assert subprocess.run([sys.executable, "-c", code, argument], check=False).returncode == 0


def test_in_a_process_of_its_own(run):
    done = process("info", run, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith('{"checkpoint"')
    assert process("nonsense").returncode == 2


def test_text_that_the_terminal_cannot_show_is_no_error(run, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = process("tokenizer", "show", "h\u00e9", "--tokenizer", "bytes")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["info", "--json"], ["info"], ["generate", "--tokens=3"]])
def test_a_reader_that_goes_away_is_no_error(run, arguments):
    verb, *options = arguments
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, verb, str(run), *options],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [["info", "--json"], ["info"], ["generate", "--tokens=3"]])
def test_output_that_cannot_be_written_is_told_in_one_line(run, arguments):
    verb, *options = arguments
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, verb, str(run), *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device\n"


def verb_that_raises(monkeypatch, error):
    def run(verb, arguments, prog):
        raise error

    monkeypatch.setattr(module, "_run", run)


def test_an_interrupt_is_one_line(call, monkeypatch):
    verb_that_raises(monkeypatch, KeyboardInterrupt())
    assert call("info", "x") == (130, "", "error: interrupted\n")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_or_a_closed_door_is_one_line(refused, monkeypatch, code):
    verb_that_raises(monkeypatch, OSError(code, "because", "some/file"))
    assert refused("info", "x") == "error: some/file: because"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), RuntimeError("a bug")])
def test_a_bug_is_not_hidden(call, monkeypatch, error):
    verb_that_raises(monkeypatch, error)
    with pytest.raises(type(error)):
        call("info", "x")


def test_a_message_is_one_line_and_cannot_steer_the_terminal(refused, monkeypatch):
    verb_that_raises(
        monkeypatch, clearhead.ClearheadError("a\nb\x1b[2J [bold]c[/bold] " + "d" * 200)
    )
    assert refused("info", "x") == "error: a b\\x1b[2J [bold]c[/bold] " + "d" * 200
