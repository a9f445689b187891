"""`clearhead train`: what it makes, tells and leaves."""

import io
import json
import os
import signal
import sys

import pytest
from rich.console import Console

from clearhead import checkpoint
from clearhead.cli import show, train
from clearhead.cli.watch import Watch
from clearhead.model import preset
from clearhead.recipes.pretrain import recipe
from clearhead.train import Evaluated, Evaluation, Started, Stepped


def stored(run):
    import tomllib

    return tomllib.loads((run / "config.toml").read_text())


def test_it_tells_and_leaves_what_it_made(call, tiny, tmp_path):
    run = tmp_path / "run"
    status, out, err = call("train", *tiny, "--out", run)
    assert status == 0
    for path in (run / "checkpoints/step-00000012", run / "loss.png", run / "metrics.jsonl"):
        assert path.exists()
        assert str(path) in out
    assert "bits a byte" in out
    assert "tokens to train on" in err
    assert "tokenizer bytes; float32 on cpu" in err
    assert [line.split(":")[0] for line in err.splitlines() if "validation loss" in line] == [
        "step 4",
        "step 8",
        "step 12",
    ]
    assert "step 12/12, loss " in err
    assert "\x1b" not in err


def test_json_is_one_object_and_the_same_seed_gives_the_same_run(call, tiny, tmp_path, run):
    status, out, _ = call("train", *tiny, "--out", tmp_path / "run", "--json")
    report = json.loads(out)
    assert status == 0
    assert out.count("\n") == 1
    assert report["step"] == 12
    assert report["finished"]
    assert report["checkpoint"].endswith("step-00000012")
    assert report["parameters"] == checkpoint.describe(run).n_parameters
    assert 0 < report["bits_per_byte"] < 9
    assert report["val_loss"] == json.loads((run / "best.json").read_text())["val_loss"]
    _, again, _ = call("train", "--out", run, "--resume", "--json")
    assert json.loads(again)["sample"] == report["sample"]


def test_options_go_over_the_file_and_the_file_over_the_preset(tmp_path, tiny):
    file = tmp_path / "some.toml"
    file.write_text('steps = 7\nseed = 5\n[optimizer]\nkind = "adamw"\n')
    defaults = train._defaults(["--config", str(file), "--seed", "6"], "clearhead train")
    assert (defaults.steps, defaults.minutes, defaults.seed) == (7, None, 5)
    assert (defaults.optimizer.kind, defaults.model) == ("adamw", preset("nano"))
    parsed = train.parse(
        train.Arguments,
        ["--seed", "6", "--optimizer.kind", "muon"],
        "clearhead train",
        train.Arguments(settings=defaults),
    )
    assert (parsed.settings.seed, parsed.settings.steps) == (6, 7)
    assert parsed.settings.optimizer.kind == "muon"


def test_a_preset_is_the_start(call):
    defaults = train._defaults(["--preset=gpt2-124m"], "clearhead train")
    assert defaults.model.d_model == 768
    assert train._defaults([], "clearhead train").model == preset("nano")


@pytest.mark.parametrize(
    ("arguments", "steps", "minutes"),
    [(["--steps", "9"], 9, None), (["--minutes", "3"], None, 3.0), ([], 50, None)],
)
def test_steps_drop_minutes_and_minutes_drop_steps(tmp_path, arguments, steps, minutes):
    file = tmp_path / "some.toml"
    file.write_text("steps = 50\n")
    settings = train._defaults(["--config", str(file), *arguments], "clearhead train")
    parsed = train.parse(
        train.Arguments, arguments, "clearhead train", train.Arguments(settings=settings)
    )
    assert (parsed.settings.steps, parsed.settings.minutes) == (steps, minutes)


def interrupt_at(monkeypatch, step, number=signal.SIGINT):
    real = Watch.__call__

    def call(self, event):
        real(self, event)
        if isinstance(event, Stepped) and event.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Watch, "__call__", call)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_saves_and_tells_how_to_go_on(call, tiny, tmp_path, monkeypatch, number):
    run = tmp_path / "a run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6, number)
        status, out, err = call("train", *tiny, "--out", run, "--json")
    assert status == 130
    report = json.loads(out)
    assert (report["step"], report["finished"], report["sample"]) == (6, False, None)
    assert f"stopped at step 6, saved in {run}/checkpoints/step-00000006" in err
    command = f"clearhead train --out '{run}' --resume"
    assert f"go on with: {command}" in err
    status, out, err = call("train", "--out", run, "--resume", "--json")
    assert status == 0
    assert json.loads(out)["step"] == 12
    assert "going on at step 6" in err


def test_interrupted_before_the_first_step_it_tells_how_to_go_on(call, tiny, tmp_path, monkeypatch):
    def interrupt(self, done, total):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_prepare", interrupt)
        status, out, err = call("train", *tiny, "--out", tmp_path / "run")
    assert (status, out) == (130, "")
    assert f"go on with: clearhead train --out {tmp_path / 'run'} --resume" in err
    assert call("train", "--out", tmp_path / "run", "--resume")[0] == 0


def test_the_command_that_goes_on_is_one_that_the_shell_finds(tmp_path, monkeypatch):
    parsed = train.Arguments(settings=recipe("nano"))
    monkeypatch.setattr(sys, "argv", [".venv/bin/clearhead", "train"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert train._go_on(parsed).startswith(".venv/bin/clearhead train --out ")
    (tmp_path / "clearhead").touch(mode=0o755)
    assert train._go_on(parsed).startswith("clearhead train --out ")


def test_resume_begins_a_run_that_is_not_there_and_moved_runs_go_on(call, tiny, tmp_path):
    run = tmp_path / "run"
    assert call("train", *tiny, "--out", run, "--resume")[0] == 0
    moved = run.rename(tmp_path / "moved")
    status, out, _ = call("train", "--out", moved, "--resume", "--json")
    assert status == 0
    assert json.loads(out)["run"] == str(moved)
    assert not run.exists()


@pytest.mark.filterwarnings("default")  # tensorboard's own imports
def test_tensorboard_gets_the_curves(call, tiny, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    assert call("train", *tiny, "--out", run, "--tensorboard")[0] == 0
    events = accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("loss/training")] == [*range(1, 13)]
    assert [point.step for point in events.Scalars("loss/held_out")] == [4, 8, 12]
    assert len(events.Scalars("bits_per_byte")) == 3


def test_without_tensorboard_it_tells_how_to_get_it(refused, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    told = refused("train", *tiny, "--out", tmp_path / "run", "--tensorboard")
    assert "pip install 'clearhead[tensorboard]'" in told
    assert not (tmp_path / "run").exists()


def test_on_a_terminal_there_is_a_bar():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with Watch(console) as watch:
        watch.on_prepare(5, 10)
        watch(Started(0, 10, 1234, 100, 10, "bytes", "cpu", "float32"))
        watch(Stepped(3, 10, 2.5, 1234.0, 65.0))
        watch(Evaluated(3, Evaluation(2.0, 10, bits_per_byte=1.5), True))
    shown = screen.getvalue()
    assert "preparing text" in shown
    assert "step 3/10, loss 2.500, 1,234 tokens/s, 1:05 left" in shown
    assert "validation loss 2.0000 nats a token, 1.5000 bits a byte (best so far)" in shown
    assert watch.n_parameters == 1234


def test_elsewhere_there_are_few_lines():
    screen = io.StringIO()
    with Watch(Console(file=screen)) as watch:
        for done in range(1001):
            watch.on_prepare(done, 1000)
        watch(Started(0, None, 1, 1, 1, "bytes", "cpu", "float32"))
        for step in range(1, 1001):
            watch(Stepped(step, None if step < 20 else 1000, 2.5, 1.0, None))
    lines = screen.getvalue().splitlines()
    assert len([line for line in lines if "preparing" in line]) == 10
    assert len([line for line in lines if line.startswith("step")]) == 12
    assert show.visible("\x1b[2J") == "\\x1b[2J"
