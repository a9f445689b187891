"""ONNX: the graph computes what the model does, at any batch and length."""

import pytest
import torch

from clearhead.checkpoint.formats.source import ModelSource
from clearhead.model import GPT, GPTConfig

pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")


def test_the_logits_are_ours_at_any_batch_and_length(tmp_path):
    from clearhead.checkpoint.formats.onnx import write_onnx

    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=97, context_length=40, d_model=32, n_heads=4, n_layers=2))
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    write_onnx(ModelSource(model), tmp_path, "f32")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch, length in ((1, 1), (3, 5), (1, 40), (2, 40)):
        tokens = torch.randint(97, (batch, length))
        (logits,) = session.run(["logits"], {"input_ids": tokens.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(logits), model(tokens), atol=1e-4, rtol=1e-4
            )
