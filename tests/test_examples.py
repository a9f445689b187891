"""Each example runs as a script of its own, and does what it says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clearhead import checkpoint
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import build_tokenizer

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


@pytest.mark.slow
def test_a_model_is_taught(tmp_path):
    torch.manual_seed(0)
    shape = GPTConfig(vocab_size=257, context_length=96, d_model=16, n_heads=2, n_layers=1)
    checkpoint.save(tmp_path / "base", GPT(shape), build_tokenizer("bytes"))
    rows = [
        {
            "instruction": f"Say {n}.",
            "output": f"{n}!",
            "chosen": f"{n}!",
            "rejected": f"No {n}.",
            "text": f"Number {n}.",
            "label": "even" if n % 2 == 0 else "odd",
        }
        for n in range(40)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    base, data = tmp_path / "base", tmp_path / "rows.json"
    told = run("teach_answers.py", base, data, tmp_path / "answers", "4")
    assert "instruct learnt from rows.json\nloss on plain text: " in told
    told = run("teach_preferences.py", tmp_path / "answers", data, tmp_path / "preferring", "4")
    assert re.search(r"before: 0\.693\d nats a pair\nafter: .* right", told)
    told = run("teach_labels.py", base, data, tmp_path / "labels", "4")
    assert "of 8 right, 95 % interval" in told
    questions = tmp_path / "piqa.jsonl"
    row = {"goal": "Open the door", "sol1": "Turn the knob.", "sol2": "Sing.", "label": 0}
    questions.write_text(f"{json.dumps(row)}\n" * 5)
    told = run("evaluate.py", base, "piqa", questions, tmp_path / "answers")
    assert "piqa accuracy: " in told
    assert f"{tmp_path / 'answers'} differs by " in told


def test_every_example_is_run_here():
    tested = Path(__file__).read_text()
    assert all(path.name in tested for path in EXAMPLES.glob("*.py"))
