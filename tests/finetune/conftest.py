"""A tiny model, and texts whose labels can be told by their words."""

import random

import pytest
import torch

from clearhead.model import GPT, GPTConfig
from clearhead.recipes.classify import ClassifyOptions, build_classification, read_labelled
from clearhead.tokenizer import build_tokenizer
from clearhead.train import OptimizerConfig, ScheduleConfig, TrainConfig, Trainer

SHAPE = GPTConfig(vocab_size=257, context_length=24, d_model=16, n_heads=2, n_layers=2, dropout=0.1)


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """Write 120 rows, label TAB text, without a header; every sixth is spam, ten are repeated."""
    draw = random.Random(0)
    words = {"ham": ["home", "soon", "lunch", "ok"], "spam": ["WIN", "CASH", "PRIZE", "CALL"]}
    rows = []
    for number in range(110):
        label = "spam" if number % 6 == 0 else "ham"
        text = " ".join(draw.choice(words[label]) for _ in range(draw.randint(1, 6)))
        rows.append(f"{label}\t{text} {number}\n")
    path = tmp_path_factory.mktemp("table") / "sms.tsv"
    path.write_text("".join(rows + rows[:10]))
    return path


@pytest.fixture
def tokenizer():
    return build_tokenizer("bytes")


def language_model():
    torch.manual_seed(3)
    return GPT(SHAPE)


@pytest.fixture(name="language_model")
def one_language_model():
    return language_model()


@pytest.fixture
def build(table, tokenizer):
    """Make a classifier and its objective."""

    def build(model=None, batch_size=8, seed=0, **options):
        options = ClassifyOptions(**{"text": "2", "label": "1", **options})
        found = read_labelled(table, tokenizer, options)
        model = model or language_model()
        return build_classification(
            model, tokenizer, found.rows, options, batch_size=batch_size, seed=seed
        )

    return build


@pytest.fixture
def train(build, tokenizer):
    """Make a trainer of a classifier."""

    def train(run, resume_from=None, save=None, **options):
        from clearhead import checkpoint

        run.mkdir(exist_ok=True)
        config = TrainConfig(
            **{"steps": 12, "evaluate_every": 4, "batch_size": 8, **options},
            device="cpu",
            dtype="float32",
            optimizer=OptimizerConfig(learning_rate=1e-2),
            schedule=ScheduleConfig(warmup_steps=2),
        )
        torch.manual_seed(7)
        model = checkpoint.load_model(resume_from) if resume_from else None
        model, objective = build(model)
        return Trainer(
            run,
            model,
            tokenizer,
            objective,
            config,
            documents={},
            resume_from=resume_from,
            save=save or checkpoint.save,
        )

    return train
