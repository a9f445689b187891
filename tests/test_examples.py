"""Each example runs as a script of its own, and does what it says."""

import subprocess
import sys
from pathlib import Path

import pytest

from clearhead import checkpoint

EXAMPLES = Path(__file__).parent.parent / "examples"
TEXT = "".join(f"The {n} boats of the harbour came home late.\n" for n in range(2000))


def run(name, *arguments):
    command = [sys.executable, EXAMPLES / name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_first_steps():
    told = run("first_steps.py")
    assert "ids (1, 28)" in told
    assert told.splitlines()[-1] == "'To be, or not to be, that '"


@pytest.mark.slow
def test_a_trained_model_writes_and_is_the_same_in_transformers(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    told = run("train_and_generate.py", tmp_path / "text.txt", tmp_path / "run", "20")
    assert "step 20: " in told
    assert "\nThe " in told
    newest = checkpoint.list_checkpoints(tmp_path / "run")[-1]
    told = run("with_transformers.py", newest)
    assert told.startswith("ids equal\nlargest difference of logits ")


def test_every_example_is_run_here():
    tested = Path(__file__).read_text()
    assert all(path.name in tested for path in EXAMPLES.glob("*.py"))
