"""ONNX: the model as a graph of operations, for any runtime that knows them. Written only."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.export import Dim

from clearhead.checkpoint.formats.source import Source, build
from clearhead.errors import ClearheadError


def write_onnx(source: Source, folder: Path, dtype: str) -> list[str]:
    """Write model.onnx: input_ids [batch, sequence] to logits [batch, sequence, V].

    Batch and length are free, the length up to the context. It has no cache of keys and values.

    Args:
        source: The model.
        folder: An empty folder.
        dtype: f32, the only one.

    Raises:
        ClearheadError: The packages for it are missing.
    """
    if find_spec("onnxscript") is None or find_spec("onnxruntime") is None:
        raise ClearheadError("ONNX needs some packages: pip install 'clearhead[onnx]'")
    assert dtype == "f32"
    model = build(source, dtype=torch.float32)
    length = source.config.context_length
    tokens = torch.zeros(2, min(7, length), dtype=torch.int64)
    shapes = {"token_ids": {0: Dim("batch"), 1: Dim("sequence", max=length)}}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (tokens,),
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(folder / "model.onnx")
    return ["the graph has no cache: each step computes the whole text anew"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says of its own inside, and of packages that are not needed, away."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(before)
