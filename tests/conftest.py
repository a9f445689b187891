"""Set up before any module of the package is imported."""

import signal
from importlib.util import find_spec
from pathlib import Path

import torch
from hypothesis import settings
from jaxtyping import install_import_hook


def modules_with_arrays() -> list[str]:
    """Return the package's modules that say the shape of an array."""
    spec = find_spec("clearhead")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    files = [file for file in root.rglob("*.py") if "jaxtyping" in file.read_text("utf-8")]
    return [".".join(file.relative_to(root.parent).with_suffix("").parts) for file in files]


# Every array's shape is held against its annotation while the tests run. The other modules are left
# alone: what holds the shapes costs each function of a module some microseconds a call.
install_import_hook(modules_with_arrays(), "typechecker.check")

# How long an example takes decides no test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Tensors this small are slower on two threads, far more so where others use the cores.
torch.set_num_threads(1)

# A shell lets what it starts in the background ignore Ctrl-C, and its children too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
