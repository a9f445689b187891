"""`clearhead lens …`: each verb's tables, JSON, pictures, proofs and mistakes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from clearhead import checkpoint
from clearhead.cli.main import main
from clearhead.recipes.lens import attention_weights

TEXT = ("--text", "the quick brown fox")


@pytest.fixture(scope="session")
def weights_alone(run, tmp_path_factory):
    """A file with the attention tensors of the run's model and nothing else, as some publish it."""
    tensors = load_file(checkpoint.resolve(run) / "model.safetensors")
    some = {
        name.removeprefix("transformer."): tensor
        for name, tensor in tensors.items()
        if ".attn." in name or ".ln_1." in name
    }
    path = tmp_path_factory.mktemp("alone") / "attention.safetensors"
    save_file(some, path)
    return path


@pytest.fixture(scope="session")
def measured(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "measured"
    assert main(["train", *tiny, "--out", str(folder), "--measure-every", "4"]) == 0
    return folder


def document(call, *arguments):
    status, out, _ = call("lens", *arguments, "--json")
    assert status == 0
    assert out.count("\n") == 1
    return json.loads(out)


def test_heads(call, run, tmp_path):
    picture = tmp_path / "heads.png"
    status, out, _ = call("lens", "heads", run, *TEXT, "--plot", picture)
    assert status == 0
    assert "share" in out
    assert "part of the output; columns: head" in out
    assert "sum of parts − whole: " in out
    assert out.rstrip().endswith("(fp32)")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_heads_as_json(call, run):
    report = document(call, "heads", run, *TEXT)
    assert report["token"] is None
    assert len(report["tokens"]) == len(TEXT[1])
    assert [one["layer"] for one in report["layers"]] == [0, 1]
    for layer in report["layers"]:
        assert layer["residual"] < 1e-5
        assert sum(head["share"] for head in layer["heads"]) == pytest.approx(1, abs=1e-4)
        for head in layer["heads"]:
            assert {"head", "share", "strength", "gain", "sources"} <= head.keys()
    last = document(call, "heads", run, *TEXT, "--token", "-1", "--layers", "1")
    assert last["token"] == len(TEXT[1]) - 1
    (layer,) = last["layers"]
    assert layer["layer"] == 1
    assert layer["heads"][0]["sources"][0]["strength"] > 0


def test_mixing_of_a_run_and_of_a_lone_file(call, run, weights_alone, tmp_path):
    picture = tmp_path / "mixing.svg"
    status, out, _ = call("lens", "mixing", run, "--modes", "2", "--plot", picture)
    assert status == 0
    assert "strongest mixing modes" in out
    assert "U S Vᵀ − W_O: " in out
    assert b"<svg" in picture.read_bytes()
    whole = document(call, "mixing", run)
    alone = document(call, "mixing", weights_alone, "--n-heads", "2")
    for group, name in (("mixing", "singular"), ("mixing", "gain"), ("overlap", "overlap")):
        one, other = (torch.tensor(each[group][name]["values"]) for each in (whole, alone))
        torch.testing.assert_close(one, other)
    assert whole["overlap"]["chance"] == 0.5


def test_circuits_of_a_run_and_of_a_lone_file(call, run, weights_alone, tmp_path):
    picture = tmp_path / "circuits.png"
    status, out, _ = call("lens", "circuits", run, "--top", "3", "--plot", picture)
    assert status == 0
    for word in ("induction (15 tokens twice)", "previous token", "copying", "above chance"):
        assert word in out
    assert picture.exists()
    whole = document(call, "circuits", run)
    alone = document(call, "circuits", weights_alone, "--n-heads", "2")
    one, other = (
        {
            (pair["kind"], pair["writer"], pair["reader"]): pair["score"]
            for pair in each["composition"]
        }
        for each in (whole, alone)
    )
    assert one == pytest.approx(other)
    assert (alone["copying"], alone["attention_scores"]) == (None, None)
    first = whole["composition"][0]
    assert first.keys() == {"kind", "writer", "reader", "score", "baseline"}
    assert {one["kind"] for one in whole["composition"]} == {"Q", "K", "V"}
    assert {one["reader"] for one in whole["composition"]} == {"1.0", "1.1"}
    assert len(whole["proofs"]) == 3
    _, out, _ = call("lens", "circuits", run, "--reader", "1.1", "--kind", "V")
    assert out.count("1.1") >= 2
    assert " 1.0 " not in out.split("above chance")[1]


def test_circuits_of_a_lone_file_draws_the_compositions(call, weights_alone, tmp_path):
    picture = tmp_path / "c.png"
    status, out, _ = call("lens", "circuits", weights_alone, "--n-heads", "2", "--plot", picture)
    assert status == 0
    assert picture.exists()
    assert "induction" not in out


def test_logits(call, run, tmp_path):
    arguments = ("logits", run, *TEXT, "--target", "e", "--versus", " ")
    status, out, _ = call("lens", *arguments, "--plot", tmp_path / "l.svg")
    assert status == 0
    for word in ("logit lens", "embeddings", "block 1", "rank of 'e'", "sum of parts − logit"):
        assert word in out
    report = document(call, *arguments)
    assert (report["target"], report["versus"], report["position"]) == ("e", " ", 18)
    assert [one["after"] for one in report["lens"]] == ["embeddings", "block 0", "block 1"]
    parts = {name: report["attribution"][name]["values"] for name in ("heads", "mlps")}
    added = sum(map(sum, parts["heads"])) + sum(parts["mlps"]) + report["constant"]
    for name in ("embedding", "attention_bias"):
        added += sum(report["attribution"][name]["values"])
    assert added == pytest.approx(report["logit"], abs=1e-4)


def test_the_likeliest_token_is_the_default_target(call, run):
    report = document(call, "logits", run, *TEXT)
    assert report["target"] == report["lens"][-1]["top"][0]["token"]
    assert report["versus"] is None


def test_demo(call, run):
    status, out, _ = call("lens", "demo", run)
    assert status == 0
    for word in (
        "4 heads of 8 channels",
        "columns 0–7 hold h1 − h3: 2.0 − 4.0 = -2.0",
        "W_O = identity",
        "in layer 1 of a trained model",
        "what changes when the layer is edited",
        "cosine of the two",
    ):
        assert word in out
    assert out.count("sum of parts − whole") == 2
    report = document(call, "demo", run, "--layer", "0")
    assert report["trained"]["layer"] == 0
    assert report["example"]["output"]["values"][0] == -2.0
    assert report["trained"]["edits"][0]["edit"] == "none"


@pytest.mark.slow
def test_demo_without_a_model_trains_one(call):
    status, out, err = call("lens", "demo", "--json")
    assert status == 0
    assert "training a small model" in err
    assert json.loads(out)["trained"]["layer"] == 3


DATA = ("--texts", "3", "--length", "20")


def test_ablate(call, run, corpus, tmp_path):
    picture = tmp_path / "ablation.png"
    arguments = ("ablate", run, "--data", corpus, *DATA)
    status, out, _ = call("lens", *arguments, "--plot", picture)
    assert status == 0
    for word in ("what is lost most", "gradient importance", "bootstrap over segments"):
        assert word in out
    assert "restarted run − whole run" in out
    assert picture.exists()
    report = document(call, *arguments)
    assert [one["heads"] for one in report["sets"]] == [["0.0"], ["0.1"], ["1.0"], ["1.1"]]
    for one in report["sets"]:
        assert one["low"] <= one["delta"] <= one["high"]
        assert one["importance"] >= abs(one["signed_importance"])


def test_ablate_sets_and_pairs(call, run, corpus):
    arguments = ("ablate", run, "--data", corpus, *DATA, "--heads", "0.0", "1.1", "0.0+1.1")
    status, out, _ = call("lens", *arguments, "--pairs")
    assert status == 0
    assert "beyond the sum of each" in out
    report = document(call, *arguments, "--pairs")
    one, other, both = (each["delta"] for each in report["sets"])
    (pair,) = report["pairs"]
    assert pair["heads"] == ["0.0", "1.1"]
    assert pair["both"] == pytest.approx(both)
    assert pair["interaction"] == pytest.approx(both - one - other)
    assert report["sets"][2]["importance"] is None


def test_an_interrupted_ablation_goes_on(call, run, corpus, tmp_path):
    file = tmp_path / "rows.jsonl"
    arguments = ("ablate", run, "--data", corpus, *DATA)
    whole = document(call, *arguments)
    assert document(call, *arguments, "--out", file) == whole
    lines = file.read_bytes().split(b"\n")
    assert len(lines) == 5
    file.write_bytes(b"\n".join(lines[:2]) + b"\n" + lines[2][:9])  # killed while writing
    assert document(call, *arguments, "--out", file) == whole
    assert file.read_bytes().split(b"\n") == lines
    status, _, err = call("lens", *arguments, "--out", file, "--how", "zero")
    assert status == 2
    assert "holds another ablation" in err
    file.write_text("no JSON\n")
    status, _, err = call("lens", *arguments, "--out", file)
    assert status == 2
    assert "is damaged" in err


def test_trust(call, run, corpus, tmp_path):
    arguments = ("trust", run, "--data", corpus, *DATA)
    status, out, _ = call("lens", *arguments, "--plot", tmp_path / "trust.svg")
    assert status == 0
    for word in ("share", "attribution", "importance", "ablation", "reading", "percent: "):
        assert word in out
    report = document(call, *arguments)
    ablated = document(call, "ablate", run, "--data", corpus, *DATA)
    assert len(report["heads"]) == 4
    for one, other in zip(report["heads"], ablated["sets"], strict=True):
        assert one["ablation"] == other["delta"]
        assert one["interval"] == [other["low"], other["high"]]
        assert one["importance"] == pytest.approx(other["importance"])
        spread = max(one["ranks"].values()) - min(one["ranks"].values())
        assert one["disagree"] == (spread > 0.5)
        assert bool(one["reading"]) == one["disagree"]
    for layer in (0, 1):
        shares = [one["share"] for one in report["heads"] if one["layer"] == layer]
        assert sum(shares) == pytest.approx(1, abs=1e-4)


def test_texts_from_a_prepared_folder_are_those_of_the_corpus(call, run, corpus):
    report = document(call, "ablate", run, "--data", corpus, *DATA)
    prepared = document(call, "ablate", run, "--data", run / "data", *DATA)
    assert prepared["loss"] == report["loss"]


def test_history(call, measured, run, tmp_path):
    picture = tmp_path / "births.png"
    status, out, _ = call("lens", "history", measured, "--plot", picture)
    assert status == 0
    assert picture.exists()
    assert "induction: attention by step" in out
    report = document(call, "history", measured, "--score", "previous", "--heads", "2")
    assert report["steps"] == [0, 4, 8, 12]
    assert [len(one) for one in report["heads"].values()] == [4, 4]
    # Measuring changes nothing about the training.
    first, second = (checkpoint.load_model(checkpoint.resolve(one)) for one in (run, measured))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_history_after_a_run_went_on(call, measured, tiny, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(measured, again)
    newest = checkpoint.list_checkpoints(again)[-1]
    shutil.rmtree(newest)
    options = ["--out", str(again), "--measure-every", "4", "--resume"]
    assert main(["train", *tiny, *options]) == 0
    assert document(call, "history", again) == document(call, "history", measured)


def test_attention_weights_of_a_lone_file_are_the_models(run, weights_alone):
    whole = attention_weights(run)
    alone = attention_weights(weights_alone, n_heads=2)
    assert alone.embedding is None
    for one, other in zip(whole.layers, alone.layers, strict=True):
        for name in ("query", "key", "value", "value_bias", "out", "out_bias", "norm"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["heads", "RUN", "--text", ""], "the text is empty"),
        (["heads", "RUN", *TEXT, "--token", "40"], "there is no token 40; the text has 19, from 0"),
        (["heads", "RUN", *TEXT, "--layers", "5"], "there is no layer 5; the model has 2, from 0"),
        (["heads", "RUN", "--text", "x" * 40], "40 tokens are 8 more than the context of 32"),
        (["heads", "RUN", *TEXT, "--plot", "a.jpg"], "a.jpg is neither .png nor .svg"),
        (["heads", "RUN", *TEXT, "--plot", "no/such/a.png"], "cannot write no/such/a.png"),
        (["logits", "RUN", *TEXT, "--target", "ab"], "'ab' is 2 tokens: 'a', 'b'; which one"),
        (["logits", "RUN", *TEXT, "--target", "\udcff"], "--target is not UTF-8 text"),
        (["logits", "RUN", *TEXT, "--target", "a", "--versus", "a"], "versus"),
        (["mixing", "RUN", "--modes", "0"], "0 modes are asked for; give 1 to 16"),
        (["mixing", "RUN", "--layers", "-1"], "there is no layer -1"),
        (["circuits", "RUN", "--reader", "0.1"], "nothing feeds a head '0.1'; readers are 1.0"),
        (["circuits", "RUN", "--n-random", "1"], "at least 3"),
        (["history", "RUN"], "has no measurements of its heads; train it with --measure-every"),
        (["history", "RUN", "--score", "x"], "there is no score 'x'; valid: induction"),
        (["demo", "RUN", "--layer", "2"], "there is no layer 2; the model has 2"),
        (["demo", "RUN", "--text", "x"], "--text is one token"),
        (["mixing", "no/such"], "no/such"),
        (["ablate", "RUN", "--data", "no/such"], "no/such"),
        (["ablate", "RUN", "--data", "DATA", "--length", "33"], "context of 32"),
        (["ablate", "RUN", "--data", "DATA", "--length", "1"], "at least 2"),
        (["ablate", "RUN", "--data", "DATA", "--texts", "0"], "0 texts of"),
        (["ablate", "RUN", "--data", "DATA", "--heads", "5.0"], "there is no layer 5"),
        (["ablate", "RUN", "--data", "DATA", "--heads", "0.7"], "there is no head 7"),
        (["ablate", "RUN", "--data", "DATA", "--heads", "0.x"], "'0.x' names no heads"),
        (["ablate", "RUN", "--data", "DATA", "--pairs"], "at least two different heads"),
        (["ablate", "RUN", "--data", "DATA", "--texts", "1", "--how", "resample"], "two texts"),
        (["ablate", "RUN", "--data", "DATA", "--out", "no/such/f"], "cannot write no/such/f"),
    ],
)
def test_mistakes(call, run, corpus, arguments, told):
    given = {"RUN": str(run), "DATA": str(corpus)}
    status, out, err = call("lens", *[given.get(one, one) for one in arguments])
    assert (status, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1


def test_files_that_hold_no_attention(call, weights_alone, tmp_path):
    tensors = load_file(weights_alone)
    lacking = {name: one for name, one in tensors.items() if name != "h.1.ln_1.weight"}
    for told, content, n_heads in (
        ("holds no attention tensors", {"a": torch.zeros(2)}, 2),
        ("lacks h.1.ln_1.weight", lacking, 2),
        ("do not make 3 heads", tensors, 3),
    ):
        path = tmp_path / "some.safetensors"
        save_file(content, path)
        status, _, err = call("lens", "mixing", path, "--n-heads", n_heads)
        assert status == 2
        assert told in err
    path.write_bytes(b"nothing of the kind")
    status, _, err = call("lens", "mixing", path)
    assert status == 2
    assert "is damaged" in err
