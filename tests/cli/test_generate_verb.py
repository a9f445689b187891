"""`clearhead generate`."""

import json

import pytest

from clearhead.cli import show


def test_the_text_and_nothing_else_on_standard_output(call, run):
    command = ("generate", run, "--prompt", "the ", "--tokens", "9", "--seed", "3")
    status, out, err = call(*command, "--temperature", "0")
    assert status == 0
    assert "tokens/s; seed 3; ended by" in err
    _, report, _ = call(*command, "--temperature", "0", "--json")
    assert out == json.loads(report)["samples"][0]["text"] + "\n"


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
        (["--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_mistakes(refused, run, arguments, told):
    assert told in refused("generate", run, *arguments)
