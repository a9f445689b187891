"""`clearhead import`, `export` and `verify`: what they print, and their mistakes."""

import json
import shutil

import pytest

from clearhead import checkpoint


@pytest.fixture
def run(call, tiny, tmp_path):
    """A trained run."""
    assert call("train", *tiny, "--out", tmp_path / "run")[0] == 0
    return tmp_path / "run"


def test_import_prints_the_certificate_and_verify_repeats_it(call, run, tmp_path):
    newest = checkpoint.list_checkpoints(run)[-1]
    status, out, err = call("import", newest, tmp_path / "ours")
    assert (status, err.count("…")) == (0, 3)
    assert "independent implementation          yes" in out
    assert "largest difference of a weight      0" in out
    assert "same likeliest token                100.0000%" in out
    status, out, _ = call("verify", tmp_path / "ours", "--against", newest)
    assert status == 0
    assert "they agree" in out


def test_as_json_standard_output_holds_one_object(call, run, tmp_path):
    newest = checkpoint.list_checkpoints(run)[-1]
    status, out, _ = call("import", newest, tmp_path / "ours", "--dtype", "bf16", "--json")
    told = json.loads(out)
    assert (status, told["stored"], told["exact"]) == (0, "bf16", False)
    assert told["path"] == str(tmp_path / "ours")
    status, out, _ = call("verify", tmp_path / "ours", "--json")
    assert json.loads(out)["agreement"]["independent"] is True


def test_mistakes_are_told_in_one_line(refused, run, tmp_path):
    assert "none does not exist" in refused("import", tmp_path / "none", tmp_path / "ours")
    newest = checkpoint.list_checkpoints(run)[-1]
    assert "exists already" in refused("import", newest, run)
    line = refused("export", run, tmp_path / "out", "--to", "ggml")
    assert "no format 'ggml' to export to; " in line
    line = refused("export", run, tmp_path / "out", "--to", "llmc", "--dtype", "q8_0")
    assert "llmc stores f32, bf16, not 'q8_0'" in line
    assert "does not exist" in refused("verify", tmp_path / "none")
    assert not (tmp_path / "out").exists()


def test_a_published_name_is_fetched_first(call, run, tmp_path, monkeypatch):
    newest = checkpoint.list_checkpoints(run)[-1]

    def fetch(name, *, progress):
        shutil.copytree(newest, name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clearhead.cli.convert.download", fetch)
    status, out, _ = call("import", "gpt2", "ours", "--json")
    assert (status, json.loads(out)["source"]) == (0, "gpt2")
    assert call("import", "gpt2", "again")[0] == 0  # what is there is not fetched again
