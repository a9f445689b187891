"""What `import clearhead` gives."""

import inspect
import subprocess
import sys

import pytest

import clearhead


@pytest.mark.parametrize("name", clearhead.__all__)
def test_every_public_name_resolves_and_says_what_it_is(name):
    thing = getattr(clearhead, name)
    assert inspect.getdoc(thing)
    assert thing.__module__.startswith("clearhead.")


def test_the_table_and_the_list_agree():
    assert sorted(clearhead._HOMES.keys() | {"ClearheadError"}) == sorted(clearhead.__all__)
    assert set(clearhead.__all__) <= set(dir(clearhead))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = clearhead.nonsense


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, clearhead; sys.exit(bool({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_three_lines_do_what_the_command_does(run):
    model, tokenizer = clearhead.load(run, device="cpu")
    sampling = clearhead.SamplingConfig(max_new_tokens=5, seed=1)
    (completion,) = clearhead.generate(model, tokenizer, "the ", sampling=sampling)
    assert completion.n_tokens <= 5
