"""A complete GPT that one can train, use and see through."""

from importlib import import_module
from typing import TYPE_CHECKING

from clearhead.errors import ClearheadError

if TYPE_CHECKING:
    from clearhead.checkpoint import CheckpointInfo
    from clearhead.checkpoint import describe as describe_checkpoint
    from clearhead.checkpoint import save as save
    from clearhead.checkpoint.download import Downloaded, download
    from clearhead.data import Manifest, TokenDataset, iter_documents, prepare
    from clearhead.data import describe as describe_data
    from clearhead.engine import Engine, SamplingConfig, generate_ids
    from clearhead.finetune import Metrics, Predictions
    from clearhead.model import GPT, GPTConfig, KVCache, preset
    from clearhead.recipes.bench import GenerationBench, bench_generate
    from clearhead.recipes.chat import Answer, Conversation
    from clearhead.recipes.classify import classify, evaluate_classifier
    from clearhead.recipes.completion import Completion
    from clearhead.recipes.convert import (
        Conversion,
        export_checkpoint,
        import_checkpoint,
        verify_checkpoint,
    )
    from clearhead.recipes.evaluate import TaskResult, compare_models, evaluate_model
    from clearhead.recipes.finetune import fine_tune
    from clearhead.recipes.finetune_config import ClassifyConfig, InstructConfig, PreferConfig
    from clearhead.recipes.generate import generate
    from clearhead.recipes.ledger import Stage, read_ledger
    from clearhead.recipes.load import load
    from clearhead.recipes.merge import Merge, merge_checkpoint
    from clearhead.recipes.pretrain import PretrainConfig, load_config, pretrain, recipe
    from clearhead.recipes.quantize import Quantized, quantize_checkpoint
    from clearhead.recipes.tokenize import bytes_per_token, train_tokenizer
    from clearhead.tokenizer import (
        Tokenizer,
        build_tokenizer,
        load_tokenizer,
        save_tokenizer,
        show_tokens,
        text_to_token_ids,
        token_ids_to_text,
    )
    from clearhead.train import TrainingResult

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "Answer",
    "CheckpointInfo",
    "ClassifyConfig",
    "ClearheadError",
    "Completion",
    "Conversation",
    "Conversion",
    "Downloaded",
    "Engine",
    "GPTConfig",
    "GenerationBench",
    "InstructConfig",
    "KVCache",
    "Manifest",
    "Merge",
    "Metrics",
    "Predictions",
    "PreferConfig",
    "PretrainConfig",
    "Quantized",
    "SamplingConfig",
    "Stage",
    "TaskResult",
    "TokenDataset",
    "Tokenizer",
    "TrainingResult",
    "bench_generate",
    "build_tokenizer",
    "bytes_per_token",
    "classify",
    "compare_models",
    "describe_checkpoint",
    "describe_data",
    "download",
    "evaluate_classifier",
    "evaluate_model",
    "export_checkpoint",
    "fine_tune",
    "generate",
    "generate_ids",
    "import_checkpoint",
    "iter_documents",
    "load",
    "load_config",
    "load_tokenizer",
    "merge_checkpoint",
    "prepare",
    "preset",
    "pretrain",
    "quantize_checkpoint",
    "read_ledger",
    "recipe",
    "save",
    "save_tokenizer",
    "show_tokens",
    "text_to_token_ids",
    "token_ids_to_text",
    "train_tokenizer",
    "verify_checkpoint",
]

# Where each name lives; most need torch, which takes seconds to import, so they wait for their use.
_HOMES = {
    "GPT": "model.GPT",
    "CheckpointInfo": "checkpoint.CheckpointInfo",
    "Completion": "recipes.completion.Completion",
    "Answer": "recipes.chat.Answer",
    "Conversation": "recipes.chat.Conversation",
    "Conversion": "recipes.convert.Conversion",
    "Downloaded": "checkpoint.download.Downloaded",
    "Engine": "engine.Engine",
    "GPTConfig": "model.GPTConfig",
    "GenerationBench": "recipes.bench.GenerationBench",
    "KVCache": "model.KVCache",
    "Manifest": "data.Manifest",
    "Metrics": "finetune.Metrics",
    "Predictions": "finetune.Predictions",
    "Merge": "recipes.merge.Merge",
    "PretrainConfig": "recipes.pretrain.PretrainConfig",
    "SamplingConfig": "engine.SamplingConfig",
    "TokenDataset": "data.TokenDataset",
    "Tokenizer": "tokenizer.Tokenizer",
    "TrainingResult": "train.TrainingResult",
    "bench_generate": "recipes.bench.bench_generate",
    "build_tokenizer": "tokenizer.build_tokenizer",
    "bytes_per_token": "recipes.tokenize.bytes_per_token",
    "classify": "recipes.classify.classify",
    "describe_checkpoint": "checkpoint.describe",
    "describe_data": "data.describe",
    "download": "checkpoint.download.download",
    "evaluate_classifier": "recipes.classify.evaluate_classifier",
    "export_checkpoint": "recipes.convert.export_checkpoint",
    "generate": "recipes.generate.generate",
    "generate_ids": "engine.generate_ids",
    "import_checkpoint": "recipes.convert.import_checkpoint",
    "iter_documents": "data.iter_documents",
    "load": "recipes.load.load",
    "load_config": "recipes.pretrain.load_config",
    "load_tokenizer": "tokenizer.load_tokenizer",
    "merge_checkpoint": "recipes.merge.merge_checkpoint",
    "prepare": "data.prepare",
    "preset": "model.preset",
    "pretrain": "recipes.pretrain.pretrain",
    "Quantized": "recipes.quantize.Quantized",
    "quantize_checkpoint": "recipes.quantize.quantize_checkpoint",
    "recipe": "recipes.pretrain.recipe",
    "save": "checkpoint.save",
    "save_tokenizer": "tokenizer.save_tokenizer",
    "show_tokens": "tokenizer.show_tokens",
    "text_to_token_ids": "tokenizer.text_to_token_ids",
    "token_ids_to_text": "tokenizer.token_ids_to_text",
    "train_tokenizer": "recipes.tokenize.train_tokenizer",
    "verify_checkpoint": "recipes.convert.verify_checkpoint",
    "ClassifyConfig": "recipes.finetune_config.ClassifyConfig",
    "InstructConfig": "recipes.finetune_config.InstructConfig",
    "PreferConfig": "recipes.finetune_config.PreferConfig",
    "Stage": "recipes.ledger.Stage",
    "fine_tune": "recipes.finetune.fine_tune",
    "read_ledger": "recipes.ledger.read_ledger",
    "TaskResult": "recipes.evaluate.TaskResult",
    "compare_models": "recipes.evaluate.compare_models",
    "evaluate_model": "recipes.evaluate.evaluate_model",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'clearhead' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(import_module(f"clearhead.{module}"), attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
