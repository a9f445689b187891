"""A checkpoint is saved wholly or not at all, and damage is found and named."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clearhead.checkpoint import (
    list_checkpoints,
    load,
    load_document,
    load_model,
    load_tensors,
    save,
    verify,
)
from clearhead.errors import ClearheadError
from clearhead.model import GPT
from clearhead.tokenizer import Tokenizer, build_tokenizer

FILES = [
    "clearhead/checksums.json",
    "clearhead/optimiser.safetensors",
    "clearhead/trainer.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]
SEALED = [name for name in FILES if name != "clearhead/checksums.json"]


def test_the_folder_holds_these_files(saved: Path, tokenizer: Tokenizer) -> None:
    found = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert found >= set(FILES)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    sums = json.loads((saved / "clearhead/checksums.json").read_text())["files"]
    assert found - sums.keys() == {"clearhead/checksums.json"}
    model, again = load(saved)
    assert isinstance(model, GPT)
    assert again.to_json() == tokenizer.to_json()


def test_what_the_trainer_adds_comes_back(saved: Path) -> None:
    tensors = load_tensors(saved, "optimiser")
    assert torch.equal(tensors["momentum"], torch.arange(6.0).view(2, 3))
    assert torch.equal(tensors["step"], torch.tensor(7))
    assert load_document(saved, "trainer") == {"step": 7, "loss": 2.5}


def test_every_kind_of_tensor_comes_back(
    tmp_path: Path, make_model: Callable[..., GPT], tokenizer: Tokenizer
) -> None:
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    tensors = {
        "random": torch.get_rng_state(),
        "empty": torch.zeros(0, 3),
        "transposed": base.T,
        "slice": base[1:3],
        "parameter": torch.nn.Parameter(base.clone()),
        "half": base.bfloat16(),
        "mask": base > 0,
        "double": torch.tensor(1 / 3, dtype=torch.float64),
    }
    save(tmp_path / "x", make_model(), tokenizer, tensors={"state": tensors})
    again = load_tensors(tmp_path / "x", "state")
    shutil.rmtree(tmp_path / "x")  # what was loaded outlives the file
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor)
        assert again[name].dtype == tensor.dtype
        assert again[name].data_ptr() % 64 == 0  # its own memory: in the file it would be at 8


def test_a_name_that_was_not_saved_is_told(saved: Path) -> None:
    with pytest.raises(ClearheadError, match=r"nothing\.safetensors is not part of the checkpoint"):
        load_tensors(saved, "nothing")


def test_it_is_never_written_over(
    saved: Path, make_model: Callable[..., GPT], tokenizer: Tokenizer
) -> None:
    with pytest.raises(ClearheadError, match="exists already"):
        save(saved, make_model(), tokenizer)


def test_another_models_tokenizer_is_refused(
    folder: Path, make_model: Callable[..., GPT], tmp_path: Path
) -> None:
    other = build_tokenizer("char", lambda: iter(["abc"]))
    message = f"vocabulary of 257, its tokenizer \\(char\\) one of {other.vocab_size}"
    with pytest.raises(ClearheadError, match=message):
        save(tmp_path / "x", make_model(), other)
    assert not (tmp_path / "x").exists()
    save(tmp_path / "y", make_model(vocab_size=other.vocab_size), other)
    for path in (tmp_path / "y").glob("tokenizer*"):
        shutil.copy(path, folder / path.name)
    with pytest.raises(ClearheadError, match=message):
        load(folder, verify=False)
    with pytest.raises(ClearheadError, match=r"tokenizer\S*\.json is damaged"):
        load(folder)


@pytest.mark.parametrize("name", SEALED)
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(ClearheadError, match=f"{name} is damaged: its checksum differs"):
        verify(folder)
    path.write_bytes(content[:-1])
    with pytest.raises(ClearheadError, match=f"{name} is damaged: it has .* bytes of "):
        load(folder)
    path.unlink()
    with pytest.raises(ClearheadError, match=f"{name} is missing"):
        load(folder)


def test_what_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(ClearheadError, match=r"config\.json is missing"):
        load(tmp_path)
    with pytest.raises(ClearheadError, match=r"config\.json is missing"):
        load_model(tmp_path / "nothing")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 10**5, b'{"n_layer": ' + b"1" * 5000 + b"}", b"NaN"],
)
def test_a_broken_config_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ClearheadError, match=r"config\.json is damaged") as caught:
        load_model(folder, verify=False)
    assert len(str(caught.value).splitlines()) == 1


def test_a_huge_config_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(2**40)  # a hole: it takes no room on the disk
    with pytest.raises(ClearheadError, match="no JSON of a checkpoint is so large"):
        load_model(folder, verify=False)


@pytest.mark.parametrize(
    "sums",
    [
        {},
        {"files": []},
        {"files": {"config.json": 3}},
        {"files": {"config.json": {"bytes": "1\n2", "sha256": ""}}},
        {"files": {"../../x": {"bytes": 1, "sha256": ""}}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}},
        {"files": {"a\0b": {"bytes": 1, "sha256": ""}}},
        {"files": {"\ud800": {"bytes": 1, "sha256": ""}}},
        {"files": {"config.json": {"bytes": 1, "sha256": ""}}},
    ],
)
def test_odd_checksums_are_one_line(folder: Path, sums: object) -> None:
    (folder / "clearhead/checksums.json").write_text(json.dumps(sums))
    with pytest.raises(ClearheadError) as caught:
        verify(folder)
    assert len(str(caught.value).splitlines()) == 1


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_gives_one_line(folder: Path, data: st.DataObject) -> None:
    """Bytes are changed, cut off or added in one file; with and without checksums to find it."""
    name = data.draw(st.sampled_from(FILES))
    path = folder / name
    content = path.read_bytes()
    changed = bytearray(content)
    within = min(len(changed), 3000)  # headers are where the structure is
    for place in data.draw(st.lists(st.integers(0, within - 1), min_size=1, max_size=4)):
        changed[place] = data.draw(st.integers(0, 255))
    changed = changed[: data.draw(st.just(len(changed)) | st.integers(0, len(changed)))]
    changed += data.draw(st.binary(max_size=3))
    path.write_bytes(changed)
    try:
        for read in (
            lambda: load(folder),
            lambda: load_model(folder, verify=False),
            lambda: load_tensors(folder, "optimiser"),
            lambda: load_document(folder, "trainer"),
            lambda: verify(folder),
        ):
            try:
                read()
            except ClearheadError as error:
                assert len(str(error).splitlines()) == 1  # noqa: PT017 - it need not raise
        if changed != content and name in SEALED:
            with pytest.raises(ClearheadError, match=f"{name} is damaged"):
                verify(folder)
    finally:
        path.write_bytes(content)


@contextmanager
def small_files_only() -> Iterator[None]:
    """Let the system refuse files above 20 kB, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


FULL = "disk full while saving .*: the previous checkpoint, step-00000007, stays whole"


def check_nothing_is_left(folder: Path) -> None:
    assert list(folder.parent.iterdir()) == [folder]
    verify(folder)


def test_a_full_disk_leaves_the_previous_checkpoint(
    folder: Path, make_model: Callable[..., GPT], tokenizer: Tokenizer
) -> None:
    model = make_model()
    with small_files_only(), pytest.raises(ClearheadError, match=FULL):
        save(folder.with_name("step-00000008"), model, tokenizer)
    check_nothing_is_left(folder)


@pytest.mark.parametrize("call", range(12))
def test_a_disk_that_fills_up_at_any_flush_leaves_the_previous_checkpoint(
    folder: Path,
    make_model: Callable[..., GPT],
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    fsync, calls = os.fsync, iter(range(1000))

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ClearheadError, match=FULL) as caught:
        save(folder.with_name("step-00000008"), make_model(), tokenizer)
    assert len(str(caught.value).splitlines()) == 1
    check_nothing_is_left(folder)


def test_a_place_that_cannot_be_written_is_told(
    tmp_path: Path, make_model: Callable[..., GPT], tokenizer: Tokenizer
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClearheadError, match=r"cannot save .*file/checkpoint: .*; nothing is lost"):
        save(tmp_path / "file" / "checkpoint", make_model(), tokenizer)


def test_an_interruption_leaves_nothing(
    folder: Path,
    make_model: Callable[..., GPT],
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(folder.with_name("step-00000008"), make_model(), tokenizer)
    monkeypatch.undo()
    check_nothing_is_left(folder)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forks")
def test_a_process_killed_at_any_moment_leaves_whole_checkpoints(
    saved: Path, tmp_path: Path
) -> None:
    """See killed_while_saving.py; here we look at what it left."""
    script = Path(__file__).with_name("killed_while_saving.py")
    done = subprocess.run(
        [sys.executable, script, saved, tmp_path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    moments = json.loads(done.stdout)
    assert moments["lines"] > 50
    left = {run.name: list_checkpoints(run) for run in tmp_path.iterdir()}
    steps = [path.name for checkpoints in left.values() for path in checkpoints]
    assert {"step-00000001", "step-00000002"} <= set(steps)
    assert len(left) > moments["signals"]
    for checkpoints in left.values():
        for path in checkpoints:
            load(path)
            verify(path)
    # Once a run had a checkpoint, it never was without one.
    last_without = max(int(name[5:]) for name in left if name[:5] == "line-" and not left[name])
    first_with = min(int(name[5:]) for name in left if name[:5] == "line-" and left[name])
    assert last_without < first_with
