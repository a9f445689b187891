import json

import pytest

from clearhead import checkpoint
from clearhead.cli.watch import Watch
from clearhead.train import Stepped

ROWS = [
    {"instruction": f"Say {n}.", "output": f"{n}!", "chosen": f"{n}!", "rejected": f"No {n}."}
    for n in range(20)
]
SMALL = [
    "--device",
    "cpu",
    "--dtype",
    "float32",
    "--batch-size",
    "4",
    "--steps",
    "4",
    "--evaluate-every",
    "2",
]


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "text.txt").write_text("A text of some length, again and again. " * 200)
    return tmp_path / "rows.jsonl"


@pytest.fixture
def base(call, rows, tmp_path):
    status, _, err = call(
        *("train", "--data", tmp_path / "text.txt", "--tokenizer", "bytes"),
        *("--out", tmp_path / "base", "--steps", "2", "--batch-size", "2", "--device", "cpu"),
        *("--model.d-model", "16", "--model.n-heads", "2", "--model.n-layers", "1"),
        *("--model.context-length", "96", "--json"),
    )
    assert status == 0, err
    return tmp_path / "base"


@pytest.mark.parametrize("verb", ["instruct", "prefer"])
def test_it_says_what_was_gained_and_what_it_cost(call, base, rows, tmp_path, verb):
    out = tmp_path / "tuned"
    given = ["finetune", verb, base, "--data", rows, "--out", out, *SMALL]
    given += ["--plain-text", tmp_path / "text.txt"]
    status, shown, err = call(*given)
    assert status == 0, err
    assert "held out" in shown
    assert "plain text" in shown
    assert "validation loss" in err
    status, shown, _ = call("info", out, "--json")
    assert status == 0
    assert [stage["kind"] for stage in json.loads(shown)["stages"]] == ["pretrain", verb]
    status, shown, _ = call("info", out)
    assert f"2 {verb}: rows.jsonl (20 rows), 4 steps, from {tmp_path / 'base'}" in shown
    status, _, err = call(*given)
    assert status == 2
    assert "holds another run" in err


def test_interrupted_it_tells_how_to_go_on_and_goes_on(call, base, rows, tmp_path, monkeypatch):
    import os
    import signal

    real, out = Watch.__call__, tmp_path / "a run"

    def press(self, event):
        real(self, event)
        if isinstance(event, Stepped) and event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "__call__", press)
        status, _, err = call("finetune", "instruct", base, "--data", rows, "--out", out, *SMALL)
    assert status == 130
    assert f"clearhead finetune instruct --out '{out}' --resume" in err
    status, shown, err = call("finetune", "instruct", "--out", out, "--resume", "--json")
    assert status == 0, err
    report = json.loads(shown)
    assert (report["step"], report["finished"]) == (4, True)
    assert report["after"]["val_loss"] < report["before"]["val_loss"] + 1


def test_a_batch_is_shown_and_nothing_is_trained(call, base, rows, tmp_path):
    out = tmp_path / "tuned"
    given = ["finetune", "instruct", base, "--data", rows, "--out", out, "--show-batch", *SMALL]
    status, shown, err = call(*given)
    assert status == 0, err
    assert "### Instruction:" in shown
    assert "is learnt:" in shown
    assert not out.exists()


def test_a_model_that_learnt_to_answer_is_asked(call, base, rows, tmp_path):
    out = tmp_path / "tuned"
    call("finetune", "instruct", base, "--data", rows, "--out", out, *SMALL)
    status, shown, err = call("generate", out, "--ask", "Say 3.", "--tokens", "4", "--json")
    assert status == 0, err
    assert json.loads(shown)["prompt"].endswith("### Response:\n")
    status, _, err = call("generate", base, "--ask", "Say 3.")
    assert status == 2
    assert "no chat template" in err
    status, _, err = call("generate", out, "--ask", " ")
    assert status == 2
    assert "question is empty" in err
    status, _, err = call("generate", out, "--ask", "a", "--prompt", "b")
    assert status == 2
    assert "--prompt or --ask" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "which model to start from is not said"),
        (["nowhere", "--data", "rows.jsonl"], "nowhere does not exist"),
        (["base", "--data", "no.json"], "no.json cannot be read"),
        (["base", "--data", "text.txt"], "examples are read from"),
        (["base", "--dat", "no.json"], "has no option"),
    ],
)
def test_mistakes_are_one_line(call, base, rows, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = call("finetune", "instruct", *given, "--out", "out", *SMALL)
    assert (status, out) == (2, "")
    (line,) = err.strip().splitlines()
    assert message in line
    assert checkpoint.list_checkpoints(tmp_path / "out") == []
