"""A checkpoint is a Hugging Face folder; what only we need lies in its subfolder clearhead/."""

from clearhead.checkpoint.checksums import verify
from clearhead.checkpoint.folder import (
    load,
    load_document,
    load_model,
    load_tensors,
    replace_document,
    save,
)
from clearhead.checkpoint.info import CheckpointInfo, describe
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
    "Best",
    "CheckpointInfo",
    "checkpoint_path",
    "describe",
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
    "step_of",
    "verify",
]
