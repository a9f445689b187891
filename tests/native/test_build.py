import subprocess
import sys
from pathlib import Path
from shutil import copy

import pytest

from clearhead.native import build


@pytest.fixture
def script(tmp_path):
    """A copy of the script and the source, to compile elsewhere than in the package."""
    for name in ("build.py", "kernels.cpp"):
        copy(Path(build.__file__).with_name(name), tmp_path)
    for variant in build.variants():
        (tmp_path / build.path(variant).name).touch()
    return tmp_path / "build.py"


def run(script, compiler, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    command = [sys.executable, str(script)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_without_a_compiler_it_says_so(script, monkeypatch):
    found = run(script, "no-such-compiler", monkeypatch)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("no C++ compiler:")


def test_a_compiler_s_words_are_shown_and_no_old_kernel_stays(script, monkeypatch):
    script.with_name("kernels.cpp").write_text("nonsense")
    found = run(script, "c++", monkeypatch)
    if "no C++ compiler" in found.stderr:
        pytest.skip("there is no compiler here")
    assert found.returncode == 1
    assert "nonsense" in found.stderr
    best = next(iter(build.variants()))
    assert not script.with_name(build.path(best).name).exists()
