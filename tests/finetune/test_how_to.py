"""What docs/how-to/classify.md says to do with a classifier works as written."""

import re
import shlex
from pathlib import Path

import pytest

from clearhead.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs/how-to/classify.md").read_text()


COMMANDS = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).splitlines()
SMALL = "--steps 12 --evaluate-every 4 --batch-size 8 --device cpu --dtype float32"
TINY = (
    "train --data text.txt --tokenizer bytes --out runs/mine --steps 2 --batch-size 2 --device cpu "
    "--model.d-model 16 --model.n-heads 2 --model.n-layers 1 --model.context-length 64"
)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run as the page's first command leaves it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("A text of some length, again and again. " * 99)
    rows = [f"spam\tWin prize {n} now" if n % 3 else f"ham\tSee you at {n}" for n in range(60)]
    Path("sms.tsv").write_text("\n".join(rows))
    Path("new-texts.csv").write_text("body\nhome soon\n")
    assert main(shlex.split(TINY)) == 0
    assert main(shlex.split(f"{COMMANDS[0]} {SMALL}")[1:]) == 0


@pytest.mark.usefixtures("finished")
def test_its_commands_run(capsys):
    assert len(COMMANDS) == 4
    for command in COMMANDS[1:]:
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr())
    assert Path("spam.png").exists()


@pytest.mark.filterwarnings("default")  # transformers' own
@pytest.mark.usefixtures("finished")
def test_its_python_runs(capsys):
    ours, theirs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(ours, "classify.md", "exec"), {})
    pytest.importorskip("transformers")
    exec(compile(theirs, "classify.md", "exec"), {})
    assert "'spam'" in capsys.readouterr().out
