"""Every mistake in the input is told in one line, with exit status 2, and nothing is lost."""

import json
import shutil

import pytest

from clearhead import checkpoint


def source(name, content):
    def write(folder):
        path = folder / name
        path.write_bytes(content)
        return path

    return write


SOURCES = {
    "missing": (lambda folder: folder / "none.txt", "none.txt: No such file"),
    "empty": (source("a.txt", b""), "a.txt: the file is empty"),
    "blank": (source("a.txt", b" \n\t\n"), "no text, only white space"),
    "binary": (source("a.txt", b"\x7fELF\x00\x00\x01"), "binary"),
    "unknown kind": (source("a.pdf", b"x"), "unknown kind of source"),
    "not UTF-8": (source("a.txt", b"abc\xe9def"), "not utf-8 at byte offset 3"),
    "broken line": (source("a.jsonl", b'{"text": "a"}\n{"text": \n'), "line 2"),
    "no text field": (source("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n'), "line 2"),
    "damaged gz": (source("a.txt.gz", b"\x1f\x8bnonsense"), "a.txt.gz"),
    "damaged parquet": (source("a.parquet", b"PAR1nonsense"), "a.parquet"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_cannot_be_read(refused, tmp_path, name):
    make, told = SOURCES[name]
    command = ("data", "prepare", make(tmp_path), "--out", tmp_path / "d", "--tokenizer", "bytes")
    assert told in refused(*command)


@pytest.mark.parametrize("name", SOURCES)
def test_training_on_it(refused, tiny, tmp_path, name):
    make, told = SOURCES[name]
    at = tiny.index("--data") + 1
    command = [*tiny[:at], make(tmp_path), *tiny[at + 1 :], "--out", tmp_path / "run"]
    assert told in refused("train", *command)


def test_another_encoding_mends_text_that_is_not_utf8(call, tmp_path):
    path = source("a.txt", b"abc\xe9def")(tmp_path)
    command = ("data", "prepare", path, "--out", tmp_path / "d", "--tokenizer", "bytes")
    assert call(*command)[0] == 2
    assert call(*command, "--encoding", "latin-1")[0] == 0


def test_no_source(refused, tmp_path):
    assert "no source" in refused("data", "prepare", "--out", tmp_path, "--tokenizer", "bytes")


def test_a_corpus_shorter_than_one_context(refused, tiny, tmp_path):
    path = source("a.txt", b"twenty letters, more")(tmp_path)
    at = tiny.index("--data") + 1
    command = [*tiny[:at], path, *tiny[at + 1 :], "--out", tmp_path / "run"]
    assert "one context needs 33" in refused("train", *command)


def test_a_damaged_shard(refused, call, corpus, tiny, tmp_path):
    folder = tmp_path / "d"
    call("data", "prepare", corpus, "--out", folder, "--tokenizer", "bytes")
    shard = folder / "tokens-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    at = tiny.index("--data") + 1
    command = [*tiny[:at], folder, *tiny[at + 1 :], "--out", tmp_path / "run"]
    assert "tokens-00000.bin: damaged" in refused("train", *command)


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("generate", "model.safetensors"),
        ("generate", "tokenizer.json"),
        ("generate", "config.json"),
        ("train", "model.safetensors"),
        ("train", "clearhead/optimizer.safetensors"),
        ("train", "clearhead/trainer.json"),
    ],
)
def test_a_damaged_checkpoint(refused, run, tmp_path, verb, name):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = checkpoint.resolve(copy) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    command = ["generate", copy] if verb == "generate" else ["train", "--out", copy, "--resume"]
    assert f"{path} is damaged" in refused(*command)


def test_a_checkpoint_with_another_tokenizer(refused, call, corpus, run, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(checkpoint.resolve(run), folder)
    shutil.rmtree(folder / "clearhead")
    command = ("tokenizer", "train", corpus, "--vocab-size", "270", "--out", tmp_path / "t")
    assert call(*command)[0] == 0
    shutil.copy(tmp_path / "t/tokenizer.json", folder)
    told = refused("generate", folder)
    assert "vocabulary of 257" in told
    assert "(bpe:270) one of 270" in told


@pytest.mark.parametrize("verb", ["generate", "info", "data info"])
def test_a_folder_that_is_no_such_thing(refused, tmp_path, verb):
    assert str(tmp_path) in refused(*verb.split(), tmp_path)
    assert str(tmp_path / "none") in refused(*verb.split(), tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[model]\nn_head = 4\n", "'model.n_head'; did you mean 'n_heads'?"),
        ("stepz = 4\n", "'stepz'; did you mean 'steps'?"),
        ('seed = "one"\n', "seed is 'one'; it must be a whole number"),
        ("steps = \n", "not valid TOML"),
        ("steps = 1\nminutes = 2.0\n", "give steps or minutes, not both"),
        ("[model]\nd_model = 256\nn_heads = 3\n", "n_heads=3 does not divide d_model=256"),
    ],
)
def test_a_mistake_in_the_config_file(refused, tmp_path, content, told):
    path = tmp_path / "some.toml"
    path.write_text(content)
    line = refused("train", "--config", path, "--out", tmp_path / "run")
    assert told in line
    assert str(path) in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config", "none.toml"], "none.toml cannot be read"),
        (["--preset", "nanno"], "no preset is called 'nanno'; did you mean 'nano'?"),
        (["--steps", "1", "--minutes", "1"], "give --steps or --minutes, not both"),
        (
            ["--model.d-model", "256", "--model.n-heads", "3"],
            "n_heads=3 does not divide d_model=256; the nearest that do: 2 or 4",
        ),
        (["--steps", "0"], "steps is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--data"], "data is empty"),
        (["--tokenizer", "gpt3"], "there is no tokenizer 'gpt3'; did you mean 'gpt2'?"),
        (["--tokenizer", "bpe:12"], "bpe:12 is too small"),
        (["--tokenizer", "bpe:many"], "write bpe:4096, say"),
        (["--device", "abacus", "--tokenizer", "bytes"], "device is 'abacus'"),
    ],
)
def test_a_mistake_in_the_options_of_train(refused, corpus, tmp_path, arguments, told):
    data = [] if "--data" in arguments else ["--data", corpus]
    assert told in refused("train", *data, "--out", tmp_path / "run", *arguments)


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_out_that_holds_another_run_stays_as_it_is(refused, tiny, run):
    before = content_of(run)
    assert "holds another run; go on with it by --resume" in refused("train", *tiny, "--out", run)
    assert "was begun with other settings: seed was 0, not 1" in refused(
        "train", "--out", run, "--resume", "--seed", "1"
    )
    assert content_of(run) == before


def test_out_that_holds_other_files_stays_as_it_is(refused, tiny, corpus, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    assert "choose another --out" in refused("train", *tiny, "--out", tmp_path)
    command = ("data", "prepare", corpus, "--out", tmp_path, "--tokenizer", "bytes")
    assert "choose another --out" in refused(*command)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_mistake_leaves_standard_output_empty_with_json_too(refused, tmp_path):
    told = refused("info", tmp_path / "none", "--json")
    with pytest.raises(json.JSONDecodeError):
        json.loads(told)
