"""Logits of the same tokens from different implementations, ours and those that are installed."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.checkpoint.formats.huggingface import CONFIG, WEIGHTS
from clearhead.checkpoint.formats.source import Source, build
from clearhead.checkpoint.tensors import TensorFile
from clearhead.errors import ClearheadError

LAST = 64
"""Positions at the end of each sequence whose logits are compared."""
Logits = list[Float[Tensor, "_ _ V"]]
Batches = list[Int[Tensor, "_ _"]]


@dataclass(frozen=True)
class Peer:
    """Something that computes logits."""

    name: str
    """What it is, with its version."""
    independent: bool
    """Whether it is not our implementation."""
    logits: Callable[[Batches], Logits]
    """Computes them in float32, those of the last `LAST` positions of each sequence."""


def ourselves(source: Source, what: str) -> Peer:
    """Return our model, on a source's tensors as they lie in its files."""

    @torch.no_grad()
    def logits(batches: Batches) -> Logits:
        model = build(source, dtype=torch.float32, contiguous=False)
        return [model.head(model.hidden(tokens)[:, -LAST:]) for tokens in batches]

    return Peer(f"clearhead on {what}", False, logits)


def transformers(folder: Path) -> Peer | None:
    """Return transformers on a Hugging Face folder's model.safetensors, if it is installed.

    The tensors go by the file's own names into a model that transformers builds from config.json;
    nothing of ours touches them, and nothing is held twice.
    """
    if find_spec("transformers") is None or not (folder / WEIGHTS).is_file():
        return None

    @torch.no_grad()
    def logits(batches: Batches) -> Logits:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config.from_json_file(str(folder / CONFIG))
        with torch.device("meta"):
            model = GPT2LMHeadModel(config)
        with TensorFile(folder / WEIGHTS) as file:
            state = {name: file.read(name).float() for name in file.header}
            if config.tie_word_embeddings:
                state["lm_head.weight"] = state["transformer.wte.weight"]
            model.load_state_dict(state, assign=True)
            model.train(False)
            return [
                model(input_ids=tokens, use_cache=False, logits_to_keep=LAST).logits
                for tokens in batches
            ]

    return Peer(f"transformers {_version('transformers')}", True, logits)


def onnxruntime(path: Path) -> Peer:
    """Return ONNX's own runtime on a graph.

    Raises:
        ClearheadError: It is not installed.
    """
    if find_spec("onnxruntime") is None:
        raise ClearheadError(
            "an ONNX file is verified with onnxruntime; pip install 'clearhead[onnx]'"
        )

    def logits(batches: Batches) -> Logits:
        import onnxruntime as runtime

        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [
            torch.from_numpy(session.run(["logits"], {"input_ids": tokens.numpy()})[0])[:, -LAST:]
            for tokens in batches
        ]

    return Peer(f"onnxruntime {_version('onnxruntime')}", True, logits)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
