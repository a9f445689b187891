"""`clearhead merge`, and what the other verbs make of an adapter."""

import json
import shutil
import warnings

import pytest
import torch

from clearhead import checkpoint
from clearhead.finetune import load_adapter, lora_parameters, save_adapter
from clearhead.recipes import merge as recipe

SMALL = ["--device", "cpu", "--dtype", "float32", "--batch-size", "4", "--steps", "4"]
TOKENS = torch.arange(30)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from clearhead.cli.main import main

    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text("A text of some length, again and again. " * 200)
    made = ["train", "--data", str(folder / "text.txt"), "--tokenizer", "bytes", "--steps", "2"]
    made += ["--out", str(folder / "run"), "--batch-size", "2", "--device", "cpu"]
    made += ["--model.d-model", "16", "--model.n-heads", "2", "--model.n-layers", "1"]
    assert main([*made, "--model.context-length", "96", "--json"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def tuned(base):
    """The run of an adapter; leave it as it is."""
    from clearhead.cli.main import main

    rows = base.with_name("rows.jsonl")
    rows.write_text("".join(f'{{"instruction": "Say {n}.", "output": "{n}!"}}\n' for n in range(9)))
    made = ["finetune", "instruct", str(base), "--data", str(rows), "--lora", "4", *SMALL]
    made += ["--lora-targets", "qkv", "up", "--optimizer.learning-rate", "0.05"]
    made += ["--plain-text", str(base.parent / "text.txt"), "--out", str(base.with_name("tuned"))]
    assert main(made) == 0
    return base.with_name("tuned")


def test_a_whole_checkpoint_is_made_and_proved(call, tuned, tmp_path):
    out = tmp_path / "merged"
    status, shown, err = call("merge", tuned, "--out", out, "--json")
    assert (status, err) == (0, "")
    report = json.loads(shown)
    assert report["path"] == str(out)
    assert report["adapter"] == str(checkpoint.resolve(tuned))
    assert 0 < report["agreement"]["max_abs_logit_difference"] < 1e-4
    live, _ = load_adapter(checkpoint.resolve(tuned))
    merged, tokenizer = checkpoint.load(out)
    assert (merged(TOKENS) - live(TOKENS)).abs().max() < 1e-5
    assert tokenizer.chat_template
    stages = json.loads(call("info", out, "--json")[1])["stages"]
    assert [stage["kind"] for stage in stages] == ["pretrain", "instruct"]
    assert call("generate", out, "--ask", "Say 3.", "--tokens", "3")[0] == 0


@pytest.mark.filterwarnings("ignore")
def test_transformers_computes_the_same_from_the_merged(call, tuned, tmp_path):
    from transformers import AutoModelForCausalLM

    call("merge", tuned, "--out", tmp_path / "merged")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    live, _ = load_adapter(checkpoint.resolve(tuned))
    torch.testing.assert_close(theirs(TOKENS).logits, live(TOKENS), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_pefts_own_adapter_is_merged(call, base, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(checkpoint.resolve(base))
        settings = peft.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM")
        live = peft.get_peft_model(model, settings).eval()
    live.save_pretrained(tmp_path / "theirs")
    status, _, err = call("merge", tmp_path / "theirs", "--out", tmp_path / "merged")
    assert status == 0, err
    found = checkpoint.load(tmp_path / "merged")[0](TOKENS)
    torch.testing.assert_close(found, live(TOKENS).logits, atol=1e-5, rtol=1e-5)


def test_a_classifiers_adapter_is_merged(call, base, tmp_path):
    rows = tmp_path / "rows.tsv"
    rows.write_text("label\ttext\n" + "".join(f"{'ab'[n % 2]}\tno {n}\n" for n in range(40)))
    made = ["finetune", "classify", base, "--data", rows, "--lora", "2", *SMALL]
    made += ["--plain-text", base.parent / "text.txt", "--out", tmp_path / "labels"]
    assert call(*made)[0] == 0
    live = call("classify", tmp_path / "labels", "--text", "no 3", "--json")
    assert live[0] == 0
    status, _, err = call("merge", tmp_path / "labels", "--out", tmp_path / "merged", "--json")
    assert (status, err) == (0, "")
    merged = call("classify", tmp_path / "merged", "--text", "no 3", "--json")
    live, merged = (json.loads(one[1]) for one in (live, merged))
    assert live["label"] == merged["label"]
    assert live["probabilities"] == pytest.approx(merged["probabilities"], abs=1e-5)
    assert "labels  " in call("info", tmp_path / "labels")[1]


def test_it_tells_in_words(call, tuned, tmp_path):
    status, shown, _ = call("merge", tuned, "--out", tmp_path / "merged", "--which", "best")
    assert status == 0
    assert "largest difference of a logit" in shown
    assert str(tmp_path / "merged") in shown


def test_a_base_that_moved_is_given(call, refused, base, tuned, tmp_path):
    shutil.copytree(base, tmp_path / "moved")
    shutil.copytree(checkpoint.resolve(tuned), tmp_path / "adapter")
    shutil.rmtree(tmp_path / "adapter" / "clearhead")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace(str(base), str(tmp_path / "gone")))
    given = ["merge", tmp_path / "adapter", "--out", tmp_path / "merged"]
    assert "--base DIR" in refused(*given)
    assert not (tmp_path / "merged").exists()
    status, _, err = call(*given, "--base", tmp_path / "moved")
    assert status == 0, err


def test_info_tells_of_the_adapter(call, base, tuned):
    report = json.loads(call("info", tuned, "--json")[1])
    assert report["adapter"] == {
        "base": str(checkpoint.resolve(base)),
        "rank": 4,
        "alpha": 8.0,
        "targets": ["qkv", "up"],
        "dropout": 0.0,
        "with_head": False,
        "parameters": 4 * (16 + 48) + 4 * (16 + 64),
    }
    status, shown, _ = call("info", tuned)
    assert status == 0
    assert f"rank 4 on qkv, up; 576 weights beside those of {checkpoint.resolve(base)}" in shown
    assert json.loads(call("info", base, "--json")[1])["adapter"] is None


def test_the_other_verbs_run_the_live_adapter(call, tuned, tmp_path):
    assert call("generate", tuned, "--ask", "Say 3.", "--tokens", "3")[0] == 0
    status, _, err = call("lens", "mixing", tuned, "--json")
    assert status == 0, err
    status, _, err = call("lens", "heads", tuned, "--text", "A text", "--json")
    assert status == 0, err


def test_mistakes_are_one_line(refused, call, base, tuned, tmp_path, monkeypatch):
    assert "is a whole model already" in refused("merge", base, "--out", tmp_path / "merged")
    assert "exists already" in refused("merge", tuned, "--out", tmp_path)
    assert "does not exist" in refused("merge", tmp_path / "no", "--out", tmp_path / "merged")
    assert "clearhead merge" in refused("export", tuned, tmp_path / "x", "--to", "gguf")
    assert "clearhead merge" in refused("import", checkpoint.resolve(tuned), tmp_path / "x")
    monkeypatch.setattr(recipe, "merge_lora", lambda model: learn_more(model))
    told = refused("merge", tuned, "--out", tmp_path / "merged")
    assert "that rounding explains" in told
    assert not (tmp_path / "merged").exists()


def learn_more(model):
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.add_(0.1)


def test_values_that_are_none_are_refused(refused, tuned, tmp_path):
    model, tokenizer = load_adapter(checkpoint.resolve(tuned))
    with torch.no_grad():
        next(iter(lora_parameters(model).values())).fill_(float("nan"))
    base = checkpoint.describe(tuned).adapter.base
    save_adapter(tmp_path / "adapter", model, tokenizer, base=base)
    assert "infinite or not a number" in refused(
        "merge", tmp_path / "adapter", "--out", tmp_path / "merged"
    )
