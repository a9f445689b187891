"""Compiles the kernels, once for each instruction set that a processor of this kind may have.

It needs nothing but Python, since it runs while clearhead is installed; by hand it is
`python -m clearhead.native.build`.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
_X86 = {"avx512-bf16": [*_AVX512, "-mavx512bf16"], "avx512": _AVX512, "avx2": _AVX2}

VARIANTS: dict[str, dict[str, list[str]]] = {
    "x86_64": _X86,
    "amd64": _X86,
    "aarch64": {"neon": []},
    "arm64": {"neon": []},
}
"""For each kind of processor, the instruction sets, best first, and how the compiler is asked."""

_FLAGS = ["-std=c++20", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-exceptions"]
_LINK = ["-fno-rtti", "-fPIC", "-shared", "-pthread"]


def path(variant: str) -> Path:
    """Return where the compiled kernels of an instruction set lie."""
    return Path(__file__).with_name(f"kernels-{variant}.so")


def variants() -> dict[str, list[str]]:
    """Return the instruction sets that a processor of this kind may have, best first."""
    return VARIANTS.get(platform.machine().lower(), {})


def build() -> list[Path]:
    """Compile the kernels with `$CXX`, or `c++`.

    Returns:
        What was written: nothing for a processor that the kernels do not know.

    Raises:
        OSError: There is no compiler.
        subprocess.CalledProcessError: It could not compile the kernels.
    """
    source = Path(__file__).with_name("kernels.cpp")
    compiler = os.environ.get("CXX", "c++").split()
    written = []
    for variant, flags in variants().items():
        target = path(variant)
        target.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
            made = Path(folder) / target.name
            command = [*compiler, *_FLAGS, *_LINK, *flags, str(source), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(target)
        written.append(target)
    return written


if __name__ == "__main__":
    try:
        for file in build():
            print(file)
    except OSError as error:
        sys.exit(f"no C++ compiler: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"the compiler failed:\n{error.stderr}")
