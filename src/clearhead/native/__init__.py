"""Native kernels: the decoder block for a few tokens at the speed of the CPU's memory."""

from clearhead.native.decode import FEW, Backend, accelerate

__all__ = ["FEW", "Backend", "accelerate"]
