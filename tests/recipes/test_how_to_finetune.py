"""What docs/how-to/instruct.md, prefer.md and chat.md say works as written."""

import io
import json
import re
import shlex
from pathlib import Path

import pytest

from clearhead.cli.main import main

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
TINY = (
    "train --data text.txt --tokenizer bytes --out runs/demo --steps 2 --batch-size 2 --device cpu "
    "--model.d-model 16 --model.n-heads 2 --model.n-layers 1 --model.context-length 256"
)
SMALL = "--steps 122 --batch-size 2 --device cpu --dtype float32 --plain-text text.txt"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (HOW_TO / page).read_text(), re.DOTALL)


def commands(page):
    return [line for block in blocks(page, "bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a reader has: a text, rows of the pages' own kinds, a trained model."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("text.txt").write_text("A text of some length, again and again. " * 200)
        rows = [json.loads(block) for block in blocks("instruct.md", "json")]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 8))
        pairs = [json.loads(block) for block in blocks("prefer.md", "json")]
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs * 8))
        assert main(shlex.split(TINY)) == 0
        first = next(line for line in commands("instruct.md") if "assistant --epochs" in line)
        assert main(shlex.split(first.replace("--epochs 3", SMALL))[1:]) == 0
    return folder


def test_the_page_on_answers(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    found = [line for line in commands("instruct.md") if "assistant --epochs" not in line]
    assert len(found) == 4
    for command in found:
        extra = " --tokens 4" if command.startswith("clearhead generate") else ""
        assert main(shlex.split(command + extra)[1:]) == 0, (command, capsys.readouterr())


@pytest.mark.filterwarnings("default")  # transformers' own
def test_the_python_of_the_page_on_answers(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for code in blocks("instruct.md", "python"):
        exec(compile(code, "instruct.md", "exec"), {})
    assert "### Instruction:\nConvert 45 kilometers" in capsys.readouterr().out


def test_the_page_on_preferences(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (command,) = commands("prefer.md")
    small = command.replace("--epochs 1", SMALL.replace("122", "2"))
    assert main(shlex.split(small)[1:]) == 0, capsys.readouterr()


def test_the_page_on_talking(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\n/save said.jsonl\n"))
    (command,) = commands("chat.md")
    assert main(shlex.split(f"{command} --tokens 4")[1:]) == 0, capsys.readouterr()
    (code,) = blocks("chat.md", "python")
    exec(compile(code, "chat.md", "exec"), {})
    for name, n in (("said.jsonl", 2), ("talk.jsonl", 5)):
        assert len(json.loads(Path(name).read_text())["messages"]) == n
