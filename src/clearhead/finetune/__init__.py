"""Fine-tuning: a data set, a loss and a transform each; the loop is train's."""

from clearhead.finetune.adapter import load_adapter, save_adapter
from clearhead.finetune.instruct import Answers, Example, encode_conversation, messages_of
from clearhead.finetune.lora import (
    LoRAConfig,
    add_lora,
    lora_config,
    lora_parameters,
    merge_lora,
    remove_lora,
    use_adapter,
)
from clearhead.finetune.preference import (
    Pairs,
    PreferenceLoss,
    Preferences,
    answer_log_probabilities,
    encode_pair,
    pair_of,
)
from clearhead.finetune.table import Examples, Row, read_examples, text_of

__all__ = [
    "Answers",
    "Example",
    "Examples",
    "LoRAConfig",
    "Pairs",
    "PreferenceLoss",
    "Preferences",
    "Row",
    "add_lora",
    "answer_log_probabilities",
    "encode_conversation",
    "encode_pair",
    "load_adapter",
    "lora_config",
    "lora_parameters",
    "merge_lora",
    "messages_of",
    "pair_of",
    "read_examples",
    "remove_lora",
    "save_adapter",
    "text_of",
    "use_adapter",
]
