"""Native kernels: a model's next tokens at the speed of the CPU's memory."""

from clearhead.native.decode import FEW, Backend

__all__ = ["FEW", "Backend"]
