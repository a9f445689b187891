"""Spam or not: a fine-tuned GPT beside TF-IDF with a logistic regression, on the same split.

    python benchmarks/classify.py sms.tsv runs/start

The table has no header: label, tab, text. For each seed the texts are divided anew; both learn from
the training part, both choose on the validation part (the GPT its best checkpoint, the regression
its features and how strongly it is held back), and both are measured on the test part. The
regression is told as scikit-learn makes it by default, too.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import clearhead
from clearhead import checkpoint
from clearhead.finetune import LabelledText, Metrics, Parts, Predictions, measure
from clearhead.recipes.classify import (
    Balance,
    ClassifyOptions,
    build_classification,
    classify,
    read_labelled,
)
from clearhead.train import (
    Evaluated,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    Trainer,
    keep_freed_memory,
)
from common import write_result

STRENGTHS = (1.0, 10.0, 100.0)
WORDS = {"lowercase": True}
FEATURES: dict[str, dict[str, Any]] = {
    "words": WORDS,
    "words and pairs": {**WORDS, "ngram_range": (1, 2), "sublinear_tf": True},
    "2 to 5 characters": {"analyzer": "char_wb", "ngram_range": (2, 5), "sublinear_tf": True},
}


def words(texts: Sequence[LabelledText]) -> list[str]:
    return [one.text for one in texts]


def told(texts: Sequence[LabelledText]) -> list[str]:
    return [one.label for one in texts]


class Regression:
    """TF-IDF and a logistic regression, learnt from the training part."""

    def __init__(self, parts: Parts, features: dict[str, Any], strength: float) -> None:
        self.vectors = TfidfVectorizer(**features)
        self.model = LogisticRegression(C=strength, max_iter=2000)
        self.model.fit(self.vectors.fit_transform(words(parts.train)), told(parts.train))

    def predict(self, texts: Sequence[LabelledText]) -> Predictions:
        """Say what it thinks of texts."""
        """Say what it thinks of texts."""
        found = self.model.predict_log_proba(self.vectors.transform(words(texts)))
        return Predictions(tuple(self.model.classes_), found, 0)


def regressions(parts: Parts) -> dict[str, tuple[str, Predictions]]:
    """Return what the default and the best on validation say of the test part, with their names."""
    made = {
        (name, strength): Regression(parts, features, strength)
        for name, features in FEATURES.items()
        for strength in STRENGTHS
    }
    validated = {
        key: measure(one.predict(parts.validation), told(parts.validation))
        for key, one in made.items()
    }
    best = max(validated, key=lambda key: (validated[key].macro_f1, -validated[key].loss))
    return {
        "regression by default": ("words, C 1", made["words", 1.0].predict(parts.test)),
        "regression chosen": (f"{best[0]}, C {best[1]:g}", made[best].predict(parts.test)),
    }


def fine_tune(
    start: Path, data: Path, seed: int, epochs: float, rates: OptimizerConfig, balance: Balance
) -> tuple[Parts, Predictions, dict[str, Any]]:
    """Return the division, what the model says of the test part, and how it was trained."""
    torch.manual_seed(seed)
    model, tokenizer = clearhead.load(start, which="best")
    options = ClassifyOptions(text="2", label="1", balance=balance)
    texts = read_labelled(data, tokenizer, options).rows
    model, objective = build_classification(
        model, tokenizer, texts, options, batch_size=32, seed=seed
    )
    print(objective)
    steps = round(epochs * objective.steps_per_epoch)
    config = TrainConfig(
        steps=steps,
        batch_size=32,
        evaluate_every=max(1, objective.steps_per_epoch // 2),
        seed=seed,
        dtype="float32",
        optimizer=rates,
        schedule=ScheduleConfig(kind="cosine", warmup_steps=20),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        trainer = Trainer(run, model, tokenizer, objective, config, documents={}, observers=[watch])
        began = time.perf_counter()
        result = trainer.train()
        seconds = time.perf_counter() - began
        model, _ = checkpoint.load(checkpoint.resolve(run, "best"))
    found = classify(model, tokenizer, words(objective.parts.test))
    told_of = {"seconds": seconds, "steps": steps, "best_step": result.best_step}
    return objective.parts, found, told_of


def watch(event: object) -> None:
    if isinstance(event, Evaluated):
        print(f"step {event.step}: {event.evaluation}", flush=True)


def summary(metrics: Metrics) -> dict[str, Any]:
    spam = next(one for one in metrics.classes if one.label == "spam")
    kept = ("n", "accuracy", "interval", "loss", "macro_f1", "confusion")
    return {
        **{name: getattr(metrics, name) for name in kept},
        "spam": asdict(spam),
        "calibration_error": metrics.calibration.error,
    }


def compare(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train and measure on one division."""
    rates = OptimizerConfig(
        kind="adamw", learning_rate=given.learning_rate, beta2=0.999, weight_decay=0.01
    )
    parts, gpt, how = fine_tune(given.start, given.data, seed, given.epochs, rates, given.balance)
    right = told(parts.test)
    found = {"gpt": (f"{given.epochs:g} epochs", gpt), **regressions(parts)}
    result: dict[str, Any] = {"seed": seed, "how": how, "texts": len(parts.train)}
    for name, (recipe, predictions) in found.items():
        result[name] = {"recipe": recipe, **summary(measure(predictions, right))}
        of = result[name]
        print(
            f"seed {seed}, {name} ({recipe}): {of['accuracy']:.2%} right, F1 of spam "
            f"{of['spam']['f1']:.4f}, macro {of['macro_f1']:.4f}"
        )
    hits = {
        name: np.array([one.labels[at] for at in one.best]) == right
        for name, (_, one) in found.items()
    }
    theirs = hits["regression chosen"]
    result["only_gpt_right"] = int((hits["gpt"] & ~theirs).sum())
    result["only_regression_right"] = int((theirs & ~hits["gpt"]).sum())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="label TAB text, no header")
    parser.add_argument("start", type=Path, help="a run or a checkpoint of a language model")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--balance", default="none", choices=["none", "weights", "sample"])
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    given = parser.parse_args()
    keep_freed_memory()
    runs = [compare(seed, given) for seed in given.seeds]
    start = checkpoint.describe(given.start)
    means = {
        name: {
            "accuracy": float(np.mean([run[name]["accuracy"] for run in runs])),
            "spam_f1": float(np.mean([run[name]["spam"]["f1"] for run in runs])),
            "macro_f1": float(np.mean([run[name]["macro_f1"] for run in runs])),
        }
        for name in ("gpt", "regression by default", "regression chosen")
    }
    for name, mean in means.items():
        print(f"mean of {len(runs)}, {name}: {mean}")
    options = {name: getattr(given, name) for name in ("epochs", "learning_rate", "balance")}
    model = {"parameters": start.n_parameters, "step": start.step, "tokenizer": start.tokenizer}
    result = {"data": given.data.name, "start": model, "options": options, "means": means}
    write_result("classify", {**result, "runs": runs}, given.out)


if __name__ == "__main__":
    main()
