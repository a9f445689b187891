"""`clearhead classify`, and what the other verbs say of a classifier."""

import json

import pytest
import torch

from clearhead import checkpoint
from clearhead.model import GPT, GPTConfig
from clearhead.recipes.classify import ClassifyOptions, build_classification, read_labelled
from clearhead.tokenizer import build_tokenizer
from clearhead.train import OptimizerConfig, ScheduleConfig, TrainConfig, Trainer

ROWS = [("spam", f"WIN CASH {n}") if n % 4 == 0 else ("ham", f"home soon {n}") for n in range(60)]


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("sms") / "sms.tsv"
    path.write_text("".join(f"{label}\t{text}\n" for label, text in ROWS))
    return path


@pytest.fixture(scope="session")
def spam(tmp_path_factory, table):
    """Return the folder of a finished run of a classifier."""
    run = tmp_path_factory.mktemp("runs") / "spam"
    run.mkdir()
    torch.manual_seed(0)
    shape = GPTConfig(
        vocab_size=257, context_length=24, d_model=16, n_heads=2, n_layers=2, dropout=0.0
    )
    tokenizer, options = build_tokenizer("bytes"), ClassifyOptions(text="2", label="1")
    texts = read_labelled(table, tokenizer, options).rows
    model, objective = build_classification(
        GPT(shape), tokenizer, texts, options, batch_size=8, seed=0
    )
    config = TrainConfig(
        steps=30,
        batch_size=8,
        evaluate_every=10,
        device="cpu",
        dtype="float32",
        optimizer=OptimizerConfig(learning_rate=1e-2),
        schedule=ScheduleConfig(warmup_steps=3),
    )
    Trainer(run, model, tokenizer, objective, config, documents={}).train()
    return run


def test_a_text(call, spam):
    status, out, err = call("classify", spam, "--text", "WIN CASH now", "--best")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "spam"
    assert "%" in out
    report = json.loads(call("classify", spam, "--text", "home soon", "--json")[1])
    assert report["label"] == "ham"
    assert report["probability"] == max(report["probabilities"].values())
    assert sum(report["probabilities"].values()) == pytest.approx(1)
    assert not report["cut"]


def test_a_long_text_is_judged_by_its_beginning(call, spam):
    words = "home soon, home soon, ho" + "me soon" * 20
    status, out, err = call("classify", spam, "--text", words)
    assert status == 0
    assert "1 longer than the context, judged by the beginning" in err
    assert out == call("classify", spam, "--text", words[:24])[1]


def test_a_file_without_labels_is_a_line_a_row(call, spam, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "WIN\\n\\tCASH"}\n{"text": ""}\n{"text": "home soon"}\n')
    status, out, err = call("classify", spam, "--data", path, "--skip-bad")
    assert status == 0
    labels, probabilities, texts = zip(
        *(line.split("\t") for line in out.splitlines()), strict=True
    )
    assert (labels, texts) == (("spam", "ham"), ("WIN CASH", "home soon"))
    assert all(0.5 < float(p) <= 1 for p in probabilities)
    assert err == "skipped line 2: 'text' is empty\n"
    report = json.loads(call("classify", spam, "--data", path, "--skip-bad", "--json")[1])
    assert [one["label"] for one in report["texts"]] == ["spam", "ham"]
    assert report["labels"] == ["ham", "spam"]
    assert (report["n_skipped"], report["skipped"]) == (1, ["line 2: 'text' is empty"])


def test_a_file_with_labels_gives_figures_and_a_picture(call, spam, table, tmp_path):
    command = ("classify", spam, "--data", table, "--text-column", "2", "--label-column", "1")
    picture = tmp_path / "spam.png"
    status, out, err = call(*command, "--plot", picture)
    assert (status, err) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG")
    for told in ("accuracy", "95 % interval", "F1", "calibration error", "given spam", "precision"):
        assert told in out
    report = json.loads(call(*command, "--json", "--plot", tmp_path / "spam.svg")[1])
    assert report["n"] == 60
    assert sum(map(sum, report["confusion"])) == 60
    assert report["accuracy"] > 0.9
    assert report["interval"][0] <= report["accuracy"] <= report["interval"][1]
    assert report["plot"] == str(tmp_path / "spam.svg")


def test_a_header_called_label_is_enough(call, spam, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nhome soon,ham\nWIN CASH,ham\n")
    report = json.loads(call("classify", spam, "--data", path, "--json")[1])
    assert report["accuracy"] == 0.5
    assert report["confusion"] == [[1, 1], [0, 0]]


def test_mistakes_are_told_in_one_line(refused, spam, run, table, tmp_path):
    data = tmp_path / "a.csv"
    data.write_text("text,label\nhome soon,ham\nWIN CASH,eggs\n")
    plain = tmp_path / "b.csv"
    plain.write_text("text\nhome soon\n")
    ragged = tmp_path / "c.jsonl"
    ragged.write_text('{"text": "a", "label": "ham"}\n{"text": "b"}\n')
    both = ("--text", "a", "--data", data)
    for arguments, told in {
        (spam,): "give --text TEXT or --data FILE",
        (spam, *both): "give --text or --data, not both",
        (spam, "--text", ""): "the text is empty",
        (spam, "--text", "a<|endoftext|>"): "the text holds <|endoftext|>",
        (spam, "--data", data): "labels unseen in training: eggs; the model tells ham, spam apart",
        (spam, "--data", tmp_path / "no.csv"): "no.csv cannot be read",
        (spam, "--data", table): "no column 'text' but 'spam', 'WIN CASH 0'",
        (spam, "--data", data, "--label-column", "lable"): "no column 'lable' but 'text', 'label'",
        (spam, "--data", ragged): "line 2: it has no 'label'",
        (spam, "--data", plain, "--plot", tmp_path / "a.png"): "--plot draws how well",
        (spam, "--text", "a", "--plot", tmp_path / "a.pdf"): "neither .png nor .svg",
        (run, "--text", "a"): "a language model and has no labels",
        (run, "--data", data): "a language model and has no labels",
    }.items():
        assert told in refused("classify", *arguments)


def test_verbs_for_language_models_refuse_a_classifier(refused, spam, corpus, tmp_path):
    for command in (
        ("generate", spam, "--prompt", "a"),
        ("lens", "logits", spam, "--text", "ab"),
        ("lens", "demo", spam, "--text", "ab"),
        ("lens", "ablate", spam, "--data", corpus, "--texts", "2"),
        ("lens", "trust", spam, "--data", corpus, "--texts", "2"),
        ("export", spam, tmp_path / "out", "--to", "gguf"),
    ):
        told = refused(*command)
        assert "tells ham, spam apart and writes no text; use clearhead classify" in told, command
    assert not (tmp_path / "out").exists()


def test_verbs_about_attention_take_a_classifier(call, spam):
    assert call("lens", "heads", spam, "--text", "ab")[0] == 0
    assert call("lens", "mixing", spam)[0] == 0
    status, out, _ = call("lens", "circuits", spam)
    assert status == 0
    assert "copying" not in out


@pytest.mark.filterwarnings("default")  # transformers' own
def test_import_and_verify_take_a_classifier(call, spam, tmp_path):
    pytest.importorskip("transformers")
    folder = checkpoint.resolve(spam)
    status, out, _ = call("verify", folder)
    assert status == 0
    assert "mean loss" not in out
    assert call("import", folder, tmp_path / "copy")[0] == 0
    status, out, _ = call("verify", tmp_path / "copy", "--against", folder, "--json")
    assert json.loads(out)["agreement"]["mean_loss_difference"] is None
    arguments = ("--text", "home soon", "--json")
    assert call("classify", folder, *arguments) == call("classify", tmp_path / "copy", *arguments)


def test_info_tells_the_labels(call, spam):
    status, out, _ = call("info", spam)
    assert status == 0
    assert "labels" in out
    assert "ham, spam" in out
    assert "nats a text" in out
    assert "% right" in out
    assert json.loads(call("info", spam, "--json")[1])["config"]["labels"] == ["ham", "spam"]
    assert call("info", checkpoint.resolve(spam))[0] == 0
