import json
import os
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch

from clearhead import checkpoint
from clearhead.evaluate import TASKS, choices
from clearhead.model import GPT, GPTConfig
from clearhead.recipes import evaluate as recipe
from clearhead.tokenizer import build_tokenizer

SHAPE = GPTConfig(vocab_size=257, context_length=48, d_model=16, n_heads=2, n_layers=1)
ROWS = [
    {"query": f"Question: {n}?", "choices": [f"yes {n}", "no", "perhaps"], "gold": n % 3}
    for n in range(30)
]


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "model", GPT(SHAPE), build_tokenizer("bytes"))
    torch.manual_seed(1)
    checkpoint.save(tmp_path / "other", GPT(SHAPE), build_tokenizer("bytes"))
    return tmp_path / "model"


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "arc_easy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "data" / "lambada_test.jsonl").write_text('{"text": "Near the sea"}\n' * 4)
    return path


def test_a_benchmark_is_measured_and_kept(call, model, rows):
    status, out, err = call("eval", model, "--task", "arc_easy", "--data", rows, "--json")
    assert status == 0, err
    (result,) = json.loads(out)["results"]
    assert (result["task"], result["n"]) == ("arc_easy", 30)
    for figure in result["figures"].values():
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert len(result["data"]["sha256"]) == len(result["checkpoint"]["sha256"]) == 64
    kept = json.loads((model / "evaluations" / "arc_easy.json").read_text())
    assert kept["figures"] == result["figures"]
    status, out, _ = call("eval", model, "--task", "arc_easy", "--data", rows, "--limit", "5")
    assert status == 0
    assert "arc_easy, n = 5" in out
    assert "95 % interval" in out


def test_batches_change_no_figure(call, model, rows, tmp_path):
    found = []
    for tokens in ("60", "4096"):
        given = ["eval", model, "--task", "arc_easy", "--data", rows, "--batch-tokens", tokens]
        _, out, _ = call(*given, "--out", tmp_path / tokens, "--json")
        found.append(json.loads(out)["results"][0]["figures"])
    assert found[0] == found[1]


def test_an_interrupted_evaluation_goes_on(call, model, rows, monkeypatch):
    monkeypatch.setattr(recipe, "_AT_ONCE", 4)
    given = ["eval", model, "--task", "arc_easy", "--data", rows]
    real, asked = choices._score, []

    def dies(*arguments):
        asked.append(arguments)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(choices, "_score", dies)
        status, _, _ = call(*given)
    assert status == 130
    answers = model / "evaluations" / "arc_easy.answers.jsonl"
    assert len(answers.read_text().splitlines()) == 1 + 12
    with answers.open("a") as file:
        file.write('{"question": 12, "sco')  # what a crash leaves
    asked.clear()
    monkeypatch.setattr(choices, "_score", lambda *args: asked.append(args) or real(*args))
    status, out, err = call(*given, "--resume", "--json")
    assert status == 0, err
    assert len(asked) == 5  # 18 questions are left, four at once
    _, whole, _ = call(*given, "--json")
    first, second = (json.loads(one)["results"][0]["figures"] for one in (out, whole))
    assert first == second


def test_answers_of_another_model_are_not_gone_on_with(call, model, rows, tmp_path):
    given = ["--task", "arc_easy", "--data", rows, "--out", tmp_path / "kept"]
    assert call("eval", model, *given)[0] == 0
    status, _, err = call("eval", tmp_path / "other", *given, "--resume")
    assert status == 2
    assert "is of another model or other data" in err


def test_all_that_a_folder_holds(call, model, rows, tmp_path):
    status, out, err = call(
        *("eval", model, "--task", "all", "--data", rows.parent),
        *("--plot", tmp_path / "figures.png"),
    )
    assert status == 0, err
    assert "lambada, n = 4" in out
    assert "0.3256 (GPT-2 124M)" in out
    assert "no data there for hellaswag" in err
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")


def test_perplexity_of_a_text(call, model, tmp_path):
    (tmp_path / "text.txt").write_text("Some words in a row, again and again. " * 20)
    given = ["eval", model, "--task", "perplexity", "--data", tmp_path / "text.txt", "--json"]
    status, out, err = call(*given)
    assert status == 0, err
    (result,) = json.loads(out)["results"]
    figures = result["figures"]
    assert figures["per_token"]["value"] == pytest.approx(257, rel=0.5)
    assert figures["bits_per_byte"]["value"] == pytest.approx(8, rel=0.2)
    assert result["n"] == 20 * 38 - 1
    status, out, _ = call(*given, "--limit", "100", "--stride", "48")
    assert json.loads(out)["results"][0]["n"] == 100


def test_two_models_are_compared_on_the_same_questions(call, model, rows, tmp_path):
    given = ["compare", model, tmp_path / "other", "--task", "arc_easy", "--data", rows]
    status, out, err = call(*given, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["metric"], found["n"]) == ("accuracy", 30)
    first, second = (found[one]["figures"]["accuracy"]["value"] for one in ("first", "second"))
    assert found["difference"]["value"] == pytest.approx(second - first)
    assert 0 < found["p_value"] <= 1
    status, out, _ = call("compare", model, model, "--task", "arc_easy", "--data", rows)
    assert status == 0
    assert "not sure that they differ, on 30 questions" in out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--task", "arc"], "there is no task 'arc'"),
        (["--task", "arc_easy", "--data", "data/arc_easy.jsonl", "--limit", "0"], "limit is 0"),
        (["--task", "perplexity", "--data", "a", "--batch-tokens", "0"], "batch_tokens is 0"),
        (["--task", "arc_easy", "--data", "no.jsonl"], "no.jsonl cannot be read"),
        (["--task", "piqa"], "no data for piqa: fetch it from yonatanbisk.com/piqa and put it at"),
        (["--task", "perplexity"], "perplexity is measured on data of your own"),
        (["--task", "all"], "--task all takes the data from a folder"),
        (["--task", "all", "--data", "empty"], "holds no file that is called after a task"),
        (
            ["--task", "arc_easy", "--data", "bad.jsonl"],
            "line 2: it has no list of texts under 'choices'; mend it",
        ),
        (
            ["--task", "arc_easy", "--data", "data/arc_easy.jsonl", "--plot", "a.gif"],
            "ends in .png",
        ),
    ],
)
def test_mistakes_are_one_line(call, model, rows, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text(json.dumps(ROWS[0]) + '\n{"a": 1}\n')
    status, out, err = call("eval", model, *given)
    assert (status, out) == (2, "")
    assert message in err.strip().splitlines()[-1]


@pytest.fixture
def classifier(tmp_path):
    shape = GPTConfig(**{**vars(SHAPE), "labels": ("ham", "spam"), "tied_head": False})
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "labels", GPT(shape), build_tokenizer("bytes"))
    return tmp_path / "labels"


def test_a_classifier_is_measured_on_labels_and_nothing_else(call, model, classifier, rows):
    texts = rows.with_name("texts.csv")
    texts.write_text("text,label\nSee you,ham\nWin now,spam\nAt home,ham\n")
    status, out, err = call("eval", classifier, "--task", "classification", "--data", texts)
    assert status == 0, err
    assert "classification, n = 3" in out
    status, _, err = call("eval", classifier, "--task", "arc_easy", "--data", rows)
    assert status == 2
    assert "is a classifier; arc_easy is not for it" in err
    status, _, err = call("eval", model, "--task", "classification", "--data", texts)
    assert status == 2
    assert "is a language model; classification is not for it" in err
    texts.write_text("text\nSee you\n")
    status, _, err = call("eval", classifier, "--task", "classification", "--data", texts)
    assert status == 2
    assert "has no column 'label'" in err


def test_what_two_models_write_is_read_side_by_side(call, model, tmp_path):
    (tmp_path / "prompts.txt").write_text("Near the\n\nA dog\n")
    given = ["compare", model, tmp_path / "other", "--task", "generation"]
    status, out, err = call(*given, "--data", tmp_path / "prompts.txt", "--json")
    assert status == 0, err
    samples = json.loads(out)["samples"]
    assert [one["prompt"] for one in samples] == ["Near the", "A dog"]
    assert all(len(one["texts"]) == 2 for one in samples)
    status, out, _ = call(*given, "--data", tmp_path / "prompts.txt", "--limit", "1")
    assert status == 0
    assert "Near the" in out
    assert "A dog" not in out
    status, _, err = call(*given)
    assert status == 2
    assert "generation needs prompts" in err
    (tmp_path / "prompts.txt").write_text("\n")
    status, _, err = call(*given, "--data", tmp_path / "prompts.txt")
    assert status == 2
    assert "has 0 prompts" in err


@pytest.fixture
def server(rows, monkeypatch, tmp_path):
    """A server that has the benchmark, which points to it, and an empty cache."""
    handler = partial(SimpleHTTPRequestHandler, directory=rows.parent)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        where = f"http://127.0.0.1:{server.server_port}/arc_easy.jsonl"
        monkeypatch.setitem(TASKS, "arc_easy", replace(TASKS["arc_easy"], where=where))
        yield server
        server.shutdown()
        thread.join()


def test_data_is_fetched_once_into_the_cache(call, model, server, rows, tmp_path):
    status, out, err = call("eval", model, "--task", "arc_easy")
    assert status == 0, err
    assert "arc_easy, n = 30" in out
    kept = tmp_path / "cache" / "clearhead" / "eval" / "arc_easy"
    assert (kept / "arc_easy.jsonl").read_bytes() == rows.read_bytes()
    assert "sha256" in (kept / "download.json").read_text()
    server.shutdown()
    assert call("eval", model, "--task", "arc_easy")[0] == 0


def test_data_that_cannot_be_fetched_is_told_in_one_line(call, model, server, rows):
    rows.unlink()
    status, out, err = call("eval", model, "--task", "arc_easy")
    assert (status, out) == (2, "")
    assert "arc_easy.jsonl" in err.strip().splitlines()[-1]
