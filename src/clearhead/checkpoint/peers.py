"""Logits of the same tokens from different implementations, ours and those that are installed."""

import json
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
from clearhead.tokenizer import Tokenizer

LAST = slice(-64, None)
"""The positions of each sequence whose logits are compared: the last ones."""
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
    """Computes them in float32, those of the positions `at` of each sequence."""
    at: slice
    """The positions that it tells."""
    normalised: bool = False
    """Whether it tells logarithms of probabilities, which are logits up to a constant."""
    rounding: str = "f32"
    """The type that it rounds intermediate results to: f32, f16 or bf16."""


def ourselves(source: Source, what: str, at: slice = LAST) -> Peer:
    """Return our model, on a source's tensors as they lie in its files."""

    @torch.no_grad()
    def logits(batches: Batches) -> Logits:
        model = build(source, dtype=torch.float32, contiguous=False)
        return [model.head(model.hidden(tokens)[:, at]) for tokens in batches]

    return Peer(f"clearhead on {what}", False, logits, at)


def transformers(folder: Path) -> Peer | None:
    """Return transformers on a Hugging Face folder's model.safetensors, if it is installed.

    The tensors go by the file's own names into a model that transformers builds from config.json;
    nothing of ours touches them, and nothing is held twice.
    """
    if find_spec("transformers") is None or not (folder / WEIGHTS).is_file():
        return None

    @torch.no_grad()
    def logits(batches: Batches) -> Logits:
        from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

        config = GPT2Config.from_json_file(str(folder / CONFIG))
        is_classifier = GPT2ForSequenceClassification.__name__ in (config.architectures or ())
        with torch.device("meta"):
            model = (GPT2ForSequenceClassification if is_classifier else GPT2LMHeadModel)(config)
        with TensorFile(folder / WEIGHTS) as file:
            state = {name: file.read(name).float() for name in file.header}
            if config.tie_word_embeddings and not is_classifier:
                state["lm_head.weight"] = state["transformer.wte.weight"]
            model.load_state_dict(state, assign=True)
            model.train(False)
            if is_classifier:  # which tells the last position's labels alone, of itself
                score = model.get_submodule("score")
                hidden = [model.base_model(tokens, use_cache=False)[0] for tokens in batches]
                return [score(one[:, LAST]) for one in hidden]
            return [
                model(input_ids=tokens, use_cache=False, logits_to_keep=-LAST.start).logits
                for tokens in batches
            ]

    return Peer(f"transformers {_version('transformers')}", True, logits, LAST)


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
            torch.from_numpy(session.run(["logits"], {"input_ids": tokens.numpy()})[0])[:, LAST]
            for tokens in batches
        ]

    return Peer(f"onnxruntime {_version('onnxruntime')}", True, logits, LAST)


def llama_cpp(path: Path, tokenizer: Tokenizer, context_length: int) -> Peer | None:
    """Return llama.cpp on a GGUF file, if its Python package xllamacpp is installed.

    It tells the probabilities of the token that it writes next, once it has written whole
    characters, so that it is made to write an "a". It refuses a prompt that fills the context, and
    looks GELU up in a table of half precision.
    """
    if find_spec("xllamacpp") is None:
        return None
    at = slice(-2, -1)

    def logits(batches: Batches) -> Logits:
        import xllamacpp as llama

        settings = llama.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = context_length, 1, 0
        settings.cpuparams.n_threads = torch.get_num_threads()
        settings.cache_type_k = settings.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        settings.warmup, settings.verbosity = False, -1
        server = llama.Server(settings)
        request = {
            "n_predict": 1,
            "n_probs": tokenizer.vocab_size,
            "logit_bias": [[int(tokenizer.encode("a")[0]), 1000.0]],
            "ignore_eos": True,
            "cache_prompt": False,
        }

        def next_of(prompt: list[int]) -> Float[Tensor, " V"]:
            answer = server.handle_completions({**request, "prompt": prompt})
            answer = answer if isinstance(answer, dict) else json.loads(answer)
            if "error" in answer:
                raise ClearheadError(f"llama.cpp cannot run {path}: {answer['error']['message']}")
            found = torch.full((tokenizer.vocab_size,), -torch.inf)
            for one in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
                found[one["id"]] = one["logprob"]
            return found

        return [
            torch.stack([next_of(row[:-1].tolist()) for row in tokens])[:, None]
            for tokens in batches
        ]

    name = f"llama.cpp (xllamacpp {_version('xllamacpp')})"
    return Peer(name, True, logits, at, normalised=True, rounding="f16")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
