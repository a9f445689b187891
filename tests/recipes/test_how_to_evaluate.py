"""What docs/how-to/evaluate.md says works as written."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from clearhead import checkpoint
from clearhead.cli.main import main
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import build_tokenizer

PAGE = (Path(__file__).parents[2] / "docs/how-to/evaluate.md").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    shape = GPTConfig(vocab_size=257, context_length=64, d_model=16, n_heads=2, n_layers=1)
    checkpoint.save(Path("runs/demo"), GPT(shape), build_tokenizer("bytes"))
    Path("my-texts").mkdir()
    Path("my-texts/one.txt").write_text("Some words in a row. " * 20)
    Path("eval").mkdir()
    row = {"query": "Question: Why?", "choices": ["So.", "No.", "Go."], "gold": 1}
    Path("eval/arc_easy.jsonl").write_text(f"{json.dumps(row)}\n" * 7)


@pytest.mark.usefixtures("folder")
def test_its_commands_and_its_python_run(capsys):
    commands = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).splitlines()
    assert len(commands) == 4
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr())
    assert Path("figures.png").exists()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "evaluate.md", "exec"), {})
    assert capsys.readouterr().out.endswith(" 5\n")
