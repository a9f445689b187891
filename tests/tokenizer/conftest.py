import pytest

from clearhead.tokenizer import build_tokenizer

CORPUS = [
    "The quick brown fox, it's said, jumps over 12 lazy dogs.\n\n\tWhy? Nobody knows…\n",
    "naïve façade — 日本語のテキスト 🙂🙂 and some\r\nwindows lines   with   blanks",
]


@pytest.fixture(scope="session")
def corpus():
    return CORPUS


@pytest.fixture(scope="session", params=["gpt2", "bytes", "bpe:400", "char"])
def tokenizer(request):
    return build_tokenizer(request.param, lambda: iter(CORPUS * 5))


@pytest.fixture(scope="session")
def gpt2():
    return build_tokenizer("gpt2")
