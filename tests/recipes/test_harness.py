"""lm-eval finds with our adapter what it finds with its own loader, on tasks of its own kind."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch

from clearhead import checkpoint
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import build_tokenizer

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")

SHAPE = GPTConfig(vocab_size=257, context_length=64, d_model=32, n_heads=4, n_layers=2)
PAIRS = [
    ("The cat sat", " on the mat"),
    ("The cat sat", " down"),
    ("", "All alone."),
    ("Blanks at the end  ", "x"),
    ("A long one. " * 9, " and its end"),
]
TASK = """\
task: local_choices
dataset_path: json
dataset_kwargs: {data_files: DATA}
test_split: train
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = GPT(SHAPE)
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    checkpoint.save(tmp_path / "model", model, build_tokenizer("bytes"))
    return tmp_path / "model"


@pytest.fixture
def both(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.models.huggingface import HFLM

        from clearhead.recipes.harness import ClearheadLM

        options = {"device": "cpu", "dtype": "float32", "batch_size": 1}
        yield ClearheadLM(path=str(folder), device="cpu"), HFLM(pretrained=str(folder), **options)


def asked(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


@pytest.mark.filterwarnings("ignore")
def test_log_likelihoods_are_those_of_its_own_loader(both):
    ours, theirs = both
    for mine, other in zip(
        ours.loglikelihood(asked("loglikelihood", PAIRS)),
        theirs.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True),
        strict=True,
    ):
        assert mine[0] == pytest.approx(other[0], abs=1e-4)
        assert mine[1] == other[1]
    texts = [("Short.",), ("A text that is longer than the context. " * 9,)]
    mine = ours.loglikelihood_rolling(asked("loglikelihood_rolling", texts))
    other = theirs.loglikelihood_rolling(asked("loglikelihood_rolling", texts), disable_tqdm=True)
    assert mine == pytest.approx(other, abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_generated_texts_are_those_of_its_own_loader(both):
    ours, theirs = both
    options = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    arguments = [("The cat", options), ("A dog sat down", options)]
    mine = ours.generate_until(asked("generate_until", arguments))
    other = theirs.generate_until(asked("generate_until", arguments), disable_tqdm=True)
    assert mine == other


@pytest.mark.slow
def test_its_command_runs_a_task_with_both_alike(folder, tmp_path):
    rows = [
        {"question": f"What is {n}?", "choices": ["one", "two more", f"{n}"], "gold": n % 3}
        for n in range(12)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(TASK.replace("DATA", str(data)))
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "cache"),
    }
    found = []
    for model, arguments in (
        ("clearhead", f"path={folder}"),
        ("hf", f"pretrained={folder},dtype=float32"),
    ):
        out = tmp_path / model
        command = [sys.executable, "-m", "clearhead.recipes.harness", "run", "--model", model]
        command += ["--model_args", arguments, "--tasks", "local_choices", "--device", "cpu"]
        command += ["--include_path", str(tmp_path / "tasks"), "--output_path", str(out)]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        (results,) = out.rglob("results_*.json")
        found.append(json.loads(results.read_text())["results"]["local_choices"])
    for metric in ("acc,none", "acc_norm,none"):
        assert found[0][metric] == found[1][metric]
