"""Finding, keeping and deleting the checkpoints of a run."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearhead.checkpoint import (
    Best,
    checkpoint_path,
    describe,
    list_checkpoints,
    load,
    mark_best,
    prune,
    read_best,
    remove_leftovers,
    resolve,
    step_of,
)
from clearhead.errors import ClearheadError


def make(run: Path, *steps: int) -> Path:
    for step in steps:
        folder = checkpoint_path(run, step)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    return run


def steps_of(run: Path) -> list[int | None]:
    return [step_of(path) for path in list_checkpoints(run)]


def test_checkpoints_are_listed_by_step_and_half_written_ones_are_not(tmp_path: Path) -> None:
    make(tmp_path, 90, 123456789, 100)
    folder = tmp_path / "checkpoints"
    for name in (".step-00000200.77.tmp", "step-200", "step-00000200x", "notes"):
        (folder / name).mkdir()
    (folder / "step-00000300").write_text("a file")
    assert steps_of(tmp_path) == [90, 100, 123456789]
    assert list_checkpoints(tmp_path / "nothing") == []


def test_a_path_means_a_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, 1, 2, 3)
    assert resolve(tmp_path) == checkpoint_path(tmp_path, 3)
    assert resolve(checkpoint_path(tmp_path, 2)) == checkpoint_path(tmp_path, 2)
    mark_best(tmp_path, 1, 2.5)
    assert read_best(tmp_path) == Best(1, 2.5)
    assert resolve(tmp_path, which="best") == checkpoint_path(tmp_path, 1)


def test_a_path_that_means_none_is_told_in_one_line(tmp_path: Path) -> None:
    def message(path: Path, which: str = "newest") -> str:
        with pytest.raises(ClearheadError) as caught:
            resolve(path, which)  # type: ignore[arg-type]
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    assert "does not exist; give the folder of a run or" in message(tmp_path / "nothing")
    assert "holds nothing" in message(tmp_path)
    for name in ("a.txt", "b.txt", "c.txt", "d\n.txt", "e.txt"):
        (tmp_path / name).write_text("")
    assert "is a file; give the folder" in message(tmp_path / "a.txt")
    text = message(tmp_path)
    assert "neither a checkpoint (config.json) nor a run (checkpoints/)" in text
    assert text.endswith(r"it holds 'a.txt', 'b.txt', 'c.txt', 'd\n.txt', …")
    (tmp_path / "checkpoints").mkdir()
    assert "is a run that has saved no checkpoint yet; train it further" in message(tmp_path)
    make(tmp_path, 1)
    assert "has not been evaluated yet" in message(tmp_path, "best")
    mark_best(tmp_path, 5, 2.0)
    assert "best.json names step-00000005, which is gone" in message(tmp_path, "best")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"step": "1", "val_loss": 2}', '{"step": -1, "val_loss": 2.0}']
)
def test_a_damaged_best_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(ClearheadError, match=r"best\.json is damaged"):
        read_best(tmp_path)


@given(
    steps=st.lists(st.integers(0, 10**9), min_size=1, max_size=6, unique=True),
    keep=st.integers(0, 7),
    data=st.data(),
)
def test_pruning_keeps_the_newest_and_the_best(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep: int, data: st.DataObject
) -> None:
    run = make(tmp_path_factory.mktemp("run"), *steps)
    best = data.draw(st.none() | st.sampled_from(steps))
    prune(run, keep, best)
    newest = sorted(steps)[-max(keep, 1) :]
    assert steps_of(run) == sorted({*newest, *([] if best is None else [best])})
    assert len(list((run / "checkpoints").iterdir())) == len(list_checkpoints(run))


def test_a_deletion_that_was_cut_short_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, 1, 2)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    prune(tmp_path, keep=1, best_step=None)
    monkeypatch.undo()
    assert steps_of(tmp_path) == [2]
    (tmp_path / ".best.json.77.tmp").write_text("{")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == [
        "checkpoints",
        "step-00000002",
        "config.json",
    ]
    remove_leftovers(tmp_path / "nothing")


def test_a_checkpoint_is_described(saved: Path) -> None:
    run = saved.parent.parent
    info = describe(run)
    model, tokenizer = load(saved)
    assert info == describe(saved)
    assert info.path == saved
    assert info.config == model.config
    assert info.n_parameters == model.n_parameters()
    assert info.dtype == "F32"
    assert info.tokenizer == tokenizer.name
    assert info.step == 7
    assert info.files["model.safetensors"] == (saved / "model.safetensors").stat().st_size
    assert "clearhead/checksums.json" in info.files
    assert info.documents == {"trainer": {"step": 7, "loss": 2.5}}


def test_a_damaged_checkpoint_is_not_described(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(ClearheadError, match=r"missing transformer\.h\.2\.ln_1\.weight"):
        describe(folder)
