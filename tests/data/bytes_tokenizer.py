"""The smallest tokenizers there can be; in a module of their own, so that workers unpickle them."""

import numpy as np

from clearhead.tokenizer import Tokenizer


class FakeTokenizer(Tokenizer):
    vocab = 257

    def __init__(self):
        pieces = [bytes([i % 256]) for i in range(self.vocab)]
        super().__init__(type(self).__name__, pieces, self.vocab - 1, "{}")

    def encode_ordinary(self, text):
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)


class BytesTokenizer(FakeTokenizer):
    pass


class WideTokenizer(FakeTokenizer):
    vocab = 1 << 17


class BrokenTokenizer(FakeTokenizer):
    def encode_ordinary(self, text):
        raise ValueError("broken on purpose")
