import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from clearhead import checkpoint
from clearhead.errors import ClearheadError
from clearhead.train import Evaluated, Evaluation, OptimizerConfig, Saved, Started, Stepped, loop


def weights(run):
    return (checkpoint.resolve(run) / "model.safetensors").read_bytes()


class Kill(BaseException):
    pass


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("dies_after", [1, 4, 6, 8, 11])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, start, curve, kind, dies_after):
    options = {"optimizer": OptimizerConfig(kind=kind)}
    start(tmp_path / "whole", **options).train()

    def die(event):
        if isinstance(event, Stepped) and event.step == dies_after:
            raise Kill

    run = tmp_path / "killed"
    with pytest.raises(Kill):
        start(run, observers=[die], **options).train()
    torch.rand(99)
    newest = checkpoint.list_checkpoints(run)[-1:]
    result = start(run, newest[0] if newest else None, **options).train()
    assert result.finished
    assert curve(run) == curve(tmp_path / "whole")
    assert weights(run) == weights(tmp_path / "whole")
    best = json.loads((run / "best.json").read_text())
    assert best == json.loads((tmp_path / "whole" / "best.json").read_text())


def test_it_learns_and_says_so_in_order(tmp_path, start, curve):
    events = []
    result = start(tmp_path, observers=[events.append], steps=40, evaluate_every=10).train()
    losses = [event.loss for event in events if isinstance(event, Stepped)]
    assert losses[-1] < 0.8 * losses[0]
    kinds = [type(event) for event in events if not isinstance(event, Stepped)]
    assert kinds == [Started, *[Saved, Evaluated] * 4]
    assert result.evaluation.loss == events[-1].evaluation.loss
    assert [line["step"] for line in curve(tmp_path) if "val_loss" in line] == [10, 20, 30, 40]


def test_newest_and_best_checkpoints_are_kept(tmp_path, start, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.2, 2.1])
    trainer = start(tmp_path, evaluate_every=2, keep_checkpoints=2)
    monkeypatch.setattr(trainer.objective, "evaluate", lambda *_: Evaluation(next(losses), 1))
    result = trainer.train()
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == [
        checkpoint.checkpoint_path(tmp_path, step).name for step in (4, 10, 12)
    ]
    assert result.best_step == 4
    assert checkpoint.resolve(tmp_path, "best") == checkpoint.checkpoint_path(tmp_path, 4)


def test_patience_ends_a_run_that_no_longer_improves(tmp_path, start, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 1.5])
    trainer = start(tmp_path, evaluate_every=2, patience=2)
    monkeypatch.setattr(trainer.objective, "evaluate", lambda *_: Evaluation(next(losses), 1))
    result = trainer.train()
    assert (result.step, result.best_step, result.finished) == (8, 4, True)
    assert checkpoint.resolve(tmp_path, "best") == checkpoint.checkpoint_path(tmp_path, 4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_and_the_run_goes_on(tmp_path, start, curve, number):
    start(tmp_path / "whole").train()

    def press(event):
        if isinstance(event, Stepped) and event.step == 6:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    run = tmp_path / "stopped"
    result = start(run, observers=[press]).train()
    assert signal.getsignal(number) is before
    assert (result.step, result.finished) == (6, False)
    assert start(run, result.checkpoint).train().finished
    assert curve(run) == curve(tmp_path / "whole")
    assert weights(run) == weights(tmp_path / "whole")


def test_out_of_memory_saves_what_was_and_the_run_goes_on(tmp_path, start, curve, monkeypatch):
    start(tmp_path / "whole").train()
    real = loop.compute_gradient

    def fail(model, rows, **options):
        gradient = real(model, rows, **options)
        if trainer.state.step == 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 12 bytes")
        return gradient

    run = tmp_path / "full"
    trainer = start(run)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_gradient", fail)
        with pytest.raises(ClearheadError, match=r"out of memory at step 5.*--micro-batch-size"):
            trainer.train()
    assert start(run, checkpoint.resolve(run)).train().finished
    assert weights(run) == weights(tmp_path / "whole")


def test_other_errors_are_not_hidden(tmp_path, start, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("something else")

    monkeypatch.setattr(loop, "compute_gradient", fail)
    with pytest.raises(RuntimeError, match="something else"):
        start(tmp_path).train()


def test_nan_stops_and_names_step_layer_and_last_good_checkpoint(tmp_path, start):
    def poison(event):
        if isinstance(event, Stepped) and event.step == 6:
            with torch.no_grad():
                trainer.model.blocks[1].mlp.down.weight[0, 0] = float("nan")

    trainer = start(tmp_path, observers=[poison])
    with pytest.raises(ClearheadError, match=r"step 6.*blocks\.1\.mlp\.down.*step-0*4"):
        trainer.train()
    assert checkpoint.list_checkpoints(tmp_path)[-1].name.endswith("4")


def test_minutes_become_a_number_of_steps(tmp_path, start):
    events = []
    result = start(
        tmp_path, observers=[events.append], steps=None, minutes=0.03, evaluate_every=None
    ).train()
    planned = [event.steps for event in events if isinstance(event, Stepped)]
    assert planned[0] is None
    assert planned[-1] == result.step
    assert result.finished


def test_a_slow_start_does_not_cut_the_run_short(tmp_path, start):
    trainer = start(tmp_path, steps=None, minutes=1.0)
    trainer._recent_seconds.extend([1.0] * 20)
    trainer.state = replace(trainer.state, step=20, seconds=20.0)
    trainer._plan()
    first = trainer.state.steps
    trainer._recent_seconds.extend([0.1] * 20)
    assert trainer._may_plan()
    trainer._plan()
    assert trainer.state.steps > 5 * first
    trainer.state = replace(trainer.state, step=trainer.state.steps - 1)
    assert not trainer._may_plan()  # the rate is falling: the plan stands
