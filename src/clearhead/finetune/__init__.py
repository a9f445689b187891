"""Fine-tuning: a data set, a loss and a transform each; the loop is train's."""

from clearhead.finetune.table import Examples, Row, read_examples, text_of

__all__ = ["Examples", "Row", "read_examples", "text_of"]
