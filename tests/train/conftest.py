import json

import numpy as np
import pytest

from clearhead.data import Batches, TokenDataset, TokenSpan, prepare
from clearhead.model import GPT, GPTConfig
from clearhead.tokenizer import build_tokenizer
from clearhead.train import NextToken, OptimizerConfig, ScheduleConfig, TrainConfig, Trainer

SHAPE = GPTConfig(vocab_size=257, context_length=16, d_model=16, n_heads=2, n_layers=2, dropout=0.1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    words = np.random.default_rng(0).choice(["alpha ", "beta ", "gamma ", "delta\n"], 2000)
    (folder / "text.txt").write_text("".join(words))
    prepare([folder / "text.txt"], folder / "data", build_tokenizer("bytes"), processes=1)
    return TokenDataset.open(folder / "data")


@pytest.fixture
def start(dataset):
    """Make the trainer of a tiny run; call it again with `resume_from` for the next life."""
    import torch

    from clearhead import checkpoint

    def build(run, resume_from=None, observers=(), **options):
        run.mkdir(exist_ok=True)
        options = {"steps": 12, "batch_size": 4, "evaluate_every": 4, **options}
        config = TrainConfig(
            device="cpu",
            dtype="float32",
            evaluation_tokens=500,
            schedule=ScheduleConfig(warmup_steps=2),
            optimizer=options.pop("optimizer", OptimizerConfig()),
            **options,
        )
        torch.manual_seed(7)
        model = checkpoint.load_model(resume_from) if resume_from else GPT(SHAPE)
        return Trainer(
            run,
            model,
            build_tokenizer("bytes"),
            NextToken(
                Batches(TokenSpan(dataset, 0, 9000, "token"), config.batch_size, 16, config.seed),
                TokenSpan(dataset, 9000, len(dataset), "token"),
                build_tokenizer("bytes"),
                config,
            ),
            config,
            documents={"run": {"made by": "a test"}},
            observers=observers,
            resume_from=resume_from,
        )

    return build


@pytest.fixture
def curve():
    """Return what a run's record says apart from how long things took."""

    def read(run):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        timings = {"seconds", "tokens_per_second"}
        return [{k: v for k, v in json.loads(x).items() if k not in timings} for x in lines]

    return read
