"""`clearhead generate`."""

import io
import json
import math
import sys

import pytest

from clearhead.cli import show
from clearhead.cli.main import main
from clearhead.native import decode


def test_the_text_and_nothing_else_on_standard_output(call, run):
    command = ("generate", run, "--prompt", "the ", "--tokens", "9", "--seed", "3")
    status, out, err = call(*command, "--temperature", "0")
    assert status == 0
    assert "tokens/s; seed 3; ended by" in err
    _, report, _ = call(*command, "--temperature", "0", "--json")
    assert out == json.loads(report)["samples"][0]["text"] + "\n"


def test_interrupted_the_text_so_far_ends_its_line(call, run, monkeypatch):
    shown = []

    def text(piece):
        shown.append(piece)
        print(end=piece)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(show, "text", text)
    command = ("generate", run, "--prompt", "the ", "--tokens", "9", "--temperature", "0")
    assert call(*command) == (130, "".join(shown) + "\n", "error: interrupted\n")


def test_json(call, run):
    status, out, _ = call(
        *("generate", run, "--prompt", "the ", "--tokens", "9", "--seed", "3", "--samples", "2"),
        *("--top-k", "20", "--top-p", "0.9", "--min-p", "0.01", "--repetition-penalty", "1.1"),
        *("--typical-p", "0.9", "--presence-penalty", "0.2", "--frequency-penalty", "-0.2"),
        *("--min-tokens", "2", "--logit-bias", "0=-100", "5=1.5"),
        *("--json", "--best", "--device", "cpu"),
    )
    report = json.loads(out)
    assert status == 0
    assert out.count("\n") == 1
    assert [sample["seed"] for sample in report["samples"]] == [3, 4]
    for sample in report["samples"]:
        assert {"text", "tokens", "finish_reason", "seed", "tokens_per_second"} <= sample.keys()
        assert sample["tokens"] <= 9


def test_samples_stand_one_below_the_other(call, run):
    command = ("generate", run, "--tokens", "5", "--samples", "2", "--seed", "1")
    status, out, err = call(*command)
    _, report, _ = call(*command, "--json")
    first, second = (sample["text"] for sample in json.loads(report)["samples"])
    assert status == 0
    head, one, two = out.split("\u2500 ", 2)[0], *out.split(", seed ")[1:]
    assert "1 of 2" in out
    assert first in one
    assert second in two
    assert head.strip("\u2500\n ") == ""
    assert "seed 1 to 2" in err


def test_the_minimum_length_and_the_bias_steer_the_text(call, run):
    command = ("generate", run, "--prompt", "the", "--tokens", "6", "--temperature", "0", "--json")
    ended = json.loads(call(*command, "--logit-bias", "256=100")[1])["samples"][0]
    assert (ended["tokens"], ended["finish_reason"]) == (1, "stop")
    longer = json.loads(call(*command, "--logit-bias", "256=100", "--min-tokens", "4")[1])
    assert longer["samples"][0]["tokens"] == 5


def test_a_stop_ends_the_text(call, run):
    command = ("generate", run, "--prompt", "the", "--seed", "1", "--tokens", "20", "--json")
    whole = json.loads(call(*command)[1])["samples"][0]["text"]
    stop = whole[5:7]
    sample = json.loads(call(*command, "--stop", "never this", stop)[1])["samples"][0]
    assert sample["stop"] == stop
    assert sample["text"] == whole[: whole.index(stop)]


def test_a_long_prompt_is_cut_on_request_and_that_is_told(call, run):
    prompt = "the lazy dog " * 20
    status, _, err = call("generate", run, "--prompt", prompt, "--truncate", "left")
    assert status == 0
    assert "the prompt's first " in err


@pytest.fixture
def typed(monkeypatch):
    """Put bytes on standard input."""

    def typed(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return typed


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_prompt_comes_from_standard_input(call, run, typed, end):
    typed(f"the é\nfox{end}".encode())
    command = ("generate", run, "--tokens", "5", "--seed", "1", "--json")
    report = json.loads(call(*command, "--prompt", "-")[1])
    assert report["prompt"] == "the é\nfox"
    given = json.loads(call(*command, "--prompt", "the é\nfox")[1])
    assert report["samples"][0]["text"] == given["samples"][0]["text"]


def test_standard_input_that_is_no_text_is_told(refused, run, typed):
    typed(b"caf\xe9")
    assert "standard input is not UTF-8 text, at byte 3" in refused(
        "generate", run, "--prompt", "-"
    )


def test_beams(call, run):
    command = ("generate", run, "--prompt", "the ", "--tokens", "9", "--beams", "3")
    status, out, err = call(*command, "--samples", "2", "--length-penalty", "0")
    assert status == 0
    assert out.count(", score -") == 2
    assert "seed" not in out + err
    assert "; 3 beams" in err
    report = json.loads(call(*command, "--samples", "2", "--length-penalty", "0", "--json")[1])
    assert report["samples"][0]["score"] > report["samples"][1]["score"]
    assert report["samples"][0]["text"] in out
    _, alone, err = call(*command, "--length-penalty", "0")
    assert alone == report["samples"][0]["text"] + "\n"
    assert "; 3 beams; ended by --tokens" in err


def test_the_best_of_several(call, run):
    command = ("generate", run, "--prompt", "the ", "--tokens", "9", "--seed", "5")
    every = json.loads(call(*command, "--samples", "6", "--logprobs", "0", "--json")[1])
    means = {
        one["seed"]: sum(token["logprob"] for token in one["logprobs"]) / one["tokens"]
        for one in every["samples"]
    }
    seeds = sorted(means, key=lambda seed: -means[seed])[:2]
    report = json.loads(call(*command, "--samples", "2", "--best-of", "6", "--json")[1])
    assert [one["seed"] for one in report["samples"]] == seeds
    assert report["samples"][0]["score"] == pytest.approx(means[seeds[0]])
    assert report["samples"][0]["logprobs"] is None
    status, out, err = call(*command, "--samples", "2", "--best-of", "6")
    assert status == 0
    assert f"1 of 2, seed {seeds[0]}, score {means[seeds[0]]:.4f}" in out
    assert f"; the best of 6; seed {seeds[0]}, {seeds[1]}" in err


def test_log_probabilities_are_listed(call, run):
    command = (
        "generate",
        run,
        "--prompt",
        "the ",
        "--tokens",
        "6",
        "--seed",
        "5",
        "--logprobs",
        "2",
    )
    sample = json.loads(call(*command, "--json")[1])["samples"][0]
    assert len(sample["logprobs"]) == sample["tokens"]
    for token in sample["logprobs"]:
        assert token.keys() == {"token", "id", "logprob", "top"}
        assert len(token["top"]) == 2
        assert token["top"][0]["logprob"] >= max(token["logprob"], token["top"][1]["logprob"])
    status, out, _ = call(*command)
    assert status == 0
    assert out.startswith(sample["text"] + "\n")
    rows = out.removeprefix(sample["text"] + "\n").splitlines()[1:]
    for row, token in zip(rows, sample["logprobs"], strict=True):
        assert f"{token['logprob']:.4f}" in row
        assert repr(token["token"]) in row
        assert f"{token['top'][1]['token']!r} {math.exp(token['top'][1]['logprob']):.1%}" in row


def test_guesses_leave_the_text_as_it_is_and_are_counted(call, run):
    command = ("generate", run, "--prompt", "the the the ", "--tokens", "20", "--temperature", "0")
    plain = call(*command)[1]
    status, out, err = call(*command, "--prompt-lookup")
    assert status == 0
    assert out == plain
    assert " guessed tokens held; seed" in err
    status, out, err = call(*command, "--draft", run)
    assert status == 0
    assert out == plain
    held, _, proposed = err.split("; ")[1].removesuffix(" guessed tokens held").partition(" of ")
    assert held == proposed != "0"
    report = json.loads(call(*command, "--draft", run, "--json")[1])["samples"][0]
    assert report["accepted_tokens"] == report["proposed_tokens"] == int(held)
    err = call(*command, "--prompt-lookup", "--samples", "2")[2]
    assert "; nothing was guessed, for several texts shared the batch; seed" in err


def test_a_draft_with_another_tokenizer_is_refused(refused, run, corpus, tiny, tmp_path):
    """Both know as many characters, and not the same."""
    runs = []
    for number, old in enumerate(("", "the")):
        text = corpus.read_text().replace(old or "the", "THE" if old else "the")
        path = tmp_path / f"{number}.txt"
        path.write_text(text.replace("t", "T") if old else text)
        options = [str(path) if one == str(corpus) else one for one in tiny]
        options[options.index("bytes")] = "char"
        runs.append(tmp_path / f"run-{number}")
        assert main(["train", *options, "--out", str(runs[-1])]) == 0
    told = refused("generate", runs[0], "--draft", runs[1])
    assert "the draft's tokenizer (char) has not the tokens of the model's (char)" in told
    assert "(char) has not the tokens of the model's (bytes)" in refused(
        "generate", run, "--draft", runs[0]
    )


def test_the_context_may_slide_or_be_refused(call, refused, run):
    command = ("generate", run, "--tokens", "60", "--logit-bias", "256=-100", "--json")
    stopped = json.loads(call(*command)[1])["samples"][0]
    assert (stopped["tokens"], stopped["finish_reason"]) == (32, "context")
    slid = json.loads(call(*command, "--when-full", "slide")[1])["samples"][0]
    assert (slid["tokens"], slid["finish_reason"]) == (60, "length")
    assert "with max_new_tokens=60 the text does not fit" in refused(
        *command, "--when-full", "error"
    )


def test_that_torch_computes_is_told_once(call, run, monkeypatch):
    monkeypatch.setattr(decode.native, "library", lambda: None)
    status, _, err = call("generate", run, "--tokens", "3", "--samples", "2", "--seed", "1")
    assert status == 0
    assert err.count("computed by torch: the native kernels were not built") == 1
    report = json.loads(call("generate", run, "--tokens", "3", "--json")[1])
    assert report["backend"] == "torch"
    assert "were not built" in report["why"]


def test_a_terminal_is_not_steered(capsys, monkeypatch):
    show.text("a\x1b[2Jb\n")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    show.text("a\x1b[2J\tb\x07\n")
    assert capsys.readouterr().out == "a\x1b[2Jb\na\\x1b[2J\tb\\x07\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prompt", "the lazy dog " * 20], "228 more than the model's context of 32; "),
        (["--prompt", "the lazy dog " * 20], "--truncate left"),
        (["--prompt", "a\udcffb"], "--prompt is not UTF-8 text, at character 1"),
        (["--stop", "\udcff"], "--stop is not UTF-8 text"),
        (["--stop", ""], "a stop string is empty"),
        (["--temperature", "-1"], "temperature is -1.0; it must be"),
        (["--tokens", "0"], "max_new_tokens is 0"),
        (["--tokens", "5", "--min-tokens", "6"], "min_new_tokens is 6; it must be"),
        (["--typical-p", "2"], "typical_p is 2.0; it must be"),
        (["--presence-penalty", "3"], "presence_penalty is 3.0; it must be"),
        (["--frequency-penalty", "3"], "frequency_penalty is 3.0; it must be"),
        (["--logit-bias", "the=1"], "--logit-bias is 'the=1'; write a token id"),
        (["--logit-bias", "5"], "--logit-bias is '5'; write a token id"),
        (["--logit-bias", "5=101"], "logit_bias[5] is 101.0; it must be"),
        (["--logit-bias", "99999=1"], "logit_bias has the token id 99999; it must be"),
        (["--samples", "0"], "samples is 0"),
        (["--best-of", "1", "--samples", "2"], "best_of is 1; it must be a whole number, at least"),
        (["--best-of", "2", "--temperature", "0"], "at temperature 0 all are the same"),
        (["--beams", "0"], "num_beams is 0; it must be a whole number, from 1 to 1000"),
        (["--beams", "2", "--temperature", "0.8"], "temperature is 0.8; beam search draws nothing"),
        (["--beams", "2", "--top-k", "5"], "top_k is 5; beam search draws nothing"),
        (["--beams", "2", "--best-of", "2"], "give num_beams or best_of, not both"),
        (["--beams", "2", "--prompt-lookup"], "give num_beams or prompt_lookup, not both"),
        (["--beams", "2", "--when-full", "slide"], "with beams it must be 'stop' or 'error'"),
        (["--beams", "2", "--samples", "3"], "beam search finds as many as num_beams, 2, at most"),
        (["--beams", "2", "--length-penalty", "50"], "length_penalty is 50.0; it must be a number"),
        (["--length-penalty", "2"], "give num_beams above 1"),
        (["--logprobs", "21"], "logprobs is 21; it must be a whole number, from 0 to 20"),
        (["--draft", "/none"], "/none"),
        (["--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_mistakes(refused, run, arguments, told):
    assert told in refused("generate", run, *arguments)
