"""`clearhead info`."""

import json
import shutil

from clearhead import checkpoint


def test_a_run(call, run):
    status, out, err = call("info", run)
    assert (status, err) == (0, "")
    for told in ("all hold", "d_model=16", "step-00000012", "best so far", "last evaluation"):
        assert told in out
    report = json.loads(call("info", run, "--json")[1])
    assert report["step"] == 12
    assert report["checksums"] == "hold"
    assert report["config"]["n_heads"] == 2
    assert report["best"] == json.loads((run / "best.json").read_text())
    assert len(report["run"]["checkpoints"]) == len(checkpoint.list_checkpoints(run))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert report["run"]["last_evaluation"] == records[-1]
    files = report["files"].items()
    newest = checkpoint.resolve(run)
    assert all((newest / name).stat().st_size == size for name, size in files)


def test_a_checkpoint(call, run):
    status, out, _ = call("info", checkpoint.resolve(run), "--json")
    report = json.loads(out)
    assert status == 0
    assert report["run"] is None
    assert report["best"]["step"] == 8
    model, _ = checkpoint.load(checkpoint.resolve(run))
    assert report["parameters"] == model.n_parameters()


def test_a_folder_that_is_not_of_our_making(call, run, tmp_path):
    folder = tmp_path / "theirs"
    shutil.copytree(checkpoint.resolve(run), folder)
    shutil.rmtree(folder / "clearhead")
    status, out, _ = call("info", folder)
    assert status == 0
    assert "none; not saved by clearhead" in out
    assert call("generate", folder, "--tokens", "3")[0] == 0


def test_a_damaged_checkpoint_is_shown_and_told(call, run, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint.resolve(run), folder)
    path = folder / "clearhead/optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    status, out, err = call("info", folder)
    assert status == 2
    assert "a file is damaged" in out
    assert err == f"error: {path} is damaged: its checksum differs; take another checkpoint\n"
    status, out, err = call("info", folder, "--json")
    assert status == 2
    assert json.loads(out)["checksums"] in err
