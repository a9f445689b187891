"""What docs/how-to/classify.md says to do with a classifier works as written."""

import re
import shlex
from pathlib import Path

import pytest

from clearhead.cli.main import main
from clearhead.recipes.classify import save_texts

PAGE = (Path(__file__).parents[2] / "docs/how-to/classify.md").read_text()


@pytest.fixture
def finished(train, tmp_path, monkeypatch):
    """A run as the page leaves it."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    trainer = train(Path("runs/spam"))
    trainer.train()
    save_texts(Path("runs/spam/test.jsonl"), trainer.objective.parts.test)
    Path("new-texts.csv").write_text("body\nhome soon\n")


@pytest.mark.usefixtures("finished")
def test_its_commands_run(capsys):
    commands = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).splitlines()
    assert len(commands) == 3
    for command in commands:
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
