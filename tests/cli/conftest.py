"""A corpus, a tiny run made by the command itself, and a way to call the command."""

import random

import pytest
import torch

from clearhead.cli.main import main


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Tensors this small are slower on two threads, far more so where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    choose = random.Random(0).choice
    texts = [" ".join(choose(words) for _ in range(60)) + ".\n" for _ in range(40)]
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("<|endoftext|>".join(texts))
    return path


@pytest.fixture(scope="session")
def tiny(corpus):
    """Options of a run that takes a second."""
    shape = {"d-model": 16, "n-heads": 2, "n-layers": 2, "context-length": 32}
    options = [f"--model.{name}={value}" for name, value in shape.items()]
    return [
        *("--data", str(corpus), "--tokenizer", "bytes", "--steps", "12", "--batch-size", "4"),
        *("--evaluate-every", "4", "--device", "cpu", "--dtype", "float32"),
        *("--schedule.warmup-steps", "2", *options),
    ]


@pytest.fixture(scope="session")
def run(tmp_path_factory, tiny):
    """Return the folder of a finished run; leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", *tiny, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def call(capsys):
    """Call the command; returns the exit status, standard output and standard error."""

    def call(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def refused(call):
    """Call the command with a mistake in it; returns the one line that tells it."""

    def refused(*arguments):
        status, out, err = call(*arguments)
        told = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (status, out, len(told)) == (2, "", 1), (status, out, err)
        assert "Traceback" not in err
        return told[0]

    return refused
