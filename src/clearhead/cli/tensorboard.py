"""The curves of a run for TensorBoard, an extra."""

from pathlib import Path
from typing import TYPE_CHECKING, Self

from clearhead.errors import ClearheadError
from clearhead.train import Evaluated, Event, Started, Stepped

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """An observer that writes loss and speed as scalars.

    Args:
        folder: Where to write; made when the run begins.

    Raises:
        ClearheadError: The package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401 - told now, not after minutes of work
        except ImportError as error:
            raise ClearheadError(
                "--tensorboard needs a package that is missing; "
                "get it by: pip install 'clearhead[tensorboard]'"
            ) from error
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, event: Event) -> None:
        """Write what an event measured."""
        if isinstance(event, Started):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=event.step)
        elif self._writer is None:
            return
        elif isinstance(event, Stepped):
            self._writer.add_scalar("loss/training", event.loss, event.step)
            self._writer.add_scalar("tokens_per_second", event.tokens_per_second, event.step)
        elif isinstance(event, Evaluated):
            self._writer.add_scalar("loss/held_out", event.evaluation.loss, event.step)
            for name in ("bits_per_byte", "accuracy"):
                value = getattr(event.evaluation, name)
                if value is not None:
                    self._writer.add_scalar(name, value, event.step)
