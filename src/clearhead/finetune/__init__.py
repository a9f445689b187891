"""Fine-tuning: a data set, a loss and a transform each; the loop is train's."""

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
from clearhead.finetune.labelled import (
    LabelledText,
    Parts,
    check_known,
    encode_text,
    label_of,
    labelled_text,
    split_texts,
)
from clearhead.finetune.pictures import save_metrics
from clearhead.finetune.table import Examples, Row, read_examples, text_of

__all__ = [
    "Balance",
    "Calibration",
    "CalibrationBin",
    "ClassScores",
    "Classification",
    "Examples",
    "LabelledText",
    "Metrics",
    "Parts",
    "Predictions",
    "Row",
    "bootstrap_interval",
    "calibrate",
    "check_known",
    "encode_text",
    "label_logits",
    "label_model",
    "label_of",
    "labelled_text",
    "measure",
    "predict",
    "read_examples",
    "save_metrics",
    "split_texts",
    "text_of",
]
