"""Fine-tuning: a data set, a loss and a transform each; the loop is train's."""

from clearhead.finetune.adapter import load_adapter, save_adapter
from clearhead.finetune.classified import (
    Calibration,
    CalibrationBin,
    ClassScores,
    Metrics,
    Predictions,
    bootstrap_interval,
    calibrate,
    measure,
    predict,
)
from clearhead.finetune.classify import Balance, Classification, label_logits, label_model
from clearhead.finetune.instruct import Answers, Example, encode_conversation, messages_of
from clearhead.finetune.labelled import (
    LabelledText,
    Parts,
    check_known,
    encode_text,
    label_of,
    labelled_text,
    split_texts,
)
from clearhead.finetune.lora import (
    LoRAConfig,
    add_lora,
    lora_config,
    lora_parameters,
    merge_lora,
    remove_lora,
    use_adapter,
)
from clearhead.finetune.pictures import save_metrics
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
    "Balance",
    "Calibration",
    "CalibrationBin",
    "ClassScores",
    "Classification",
    "Example",
    "Examples",
    "LabelledText",
    "LoRAConfig",
    "Metrics",
    "Pairs",
    "Parts",
    "Predictions",
    "PreferenceLoss",
    "Preferences",
    "Row",
    "add_lora",
    "answer_log_probabilities",
    "bootstrap_interval",
    "calibrate",
    "check_known",
    "encode_conversation",
    "encode_pair",
    "encode_text",
    "label_logits",
    "label_model",
    "label_of",
    "labelled_text",
    "load_adapter",
    "lora_config",
    "lora_parameters",
    "measure",
    "merge_lora",
    "messages_of",
    "pair_of",
    "predict",
    "read_examples",
    "remove_lora",
    "save_adapter",
    "save_metrics",
    "split_texts",
    "text_of",
    "use_adapter",
]
