"""Set up before any module of the package is imported."""

import signal

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Every array's shape is held against its annotation while the tests run.
install_import_hook("clearhead", "typechecker.check")

# How long an example takes decides no test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Tensors this small are slower on two threads, far more so where others use the cores.
torch.set_num_threads(1)

# A shell lets what it starts in the background ignore Ctrl-C, and its children too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
