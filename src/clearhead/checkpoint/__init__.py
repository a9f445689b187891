"""A checkpoint is a Hugging Face folder; what only we need lies in its subfolder clearhead/."""

from clearhead.checkpoint.checksums import verify
from clearhead.checkpoint.folder import (
    check_tokenizer,
    load,
    load_document,
    load_model,
    load_tensors,
    replace_document,
    save,
    save_folder,
)
from clearhead.checkpoint.formats.huggingface import is_adapter
from clearhead.checkpoint.info import AdapterInfo, CheckpointInfo, describe
from clearhead.checkpoint.runs import (
    Best,
    checkpoint_path,
    list_checkpoints,
    mark_best,
    prune,
    read_best,
    remove_leftovers,
    resolve,
    step_of,
)

__all__ = [
    "AdapterInfo",
    "Best",
    "CheckpointInfo",
    "check_tokenizer",
    "checkpoint_path",
    "describe",
    "is_adapter",
    "list_checkpoints",
    "load",
    "load_document",
    "load_model",
    "load_tensors",
    "mark_best",
    "prune",
    "read_best",
    "remove_leftovers",
    "replace_document",
    "resolve",
    "save",
    "save_folder",
    "step_of",
    "verify",
]
