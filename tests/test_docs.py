"""The documentation says what the code does: its made pages are up to date, its commands run."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from clearhead.cli.main import main

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs" / "scripts"))
import reference  # noqa: E402

README = (ROOT / "README.md").read_text()
HOW_TO = "\n".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 400
TINY = (
    "--steps 2 --batch-size 2 --device cpu --model.d-model 16 --model.n-heads 2 "
    "--model.n-layers 1 --model.context-length 32 --evaluation-tokens 64"
)


@pytest.mark.parametrize("page", reference.PAGES)
def test_a_made_page_is_what_the_code_says_now(page):
    assert (ROOT / "docs" / page).read_text() == reference.PAGES[page](), "run: make docs"


def commands(text):
    """Return the lines of text's bash blocks that call the command."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).splitlines()
    return [line for line in lines if line.startswith("clearhead ")]


@pytest.fixture
def beginners_folder(tmp_path, monkeypatch, capsys):
    """A folder with a text, and a trained run as `make demo` leaves it."""
    monkeypatch.chdir(tmp_path)
    Path("my-texts").mkdir()
    Path("my-texts/one.txt").write_text(TEXT)
    train = f"train --data my-texts --tokenizer bpe:300 --out runs/demo {TINY}"
    assert main(shlex.split(train)) == 0
    capsys.readouterr()


@pytest.mark.usefixtures("beginners_folder")
def test_every_command_of_the_readme_runs(capsys):
    found = commands(README)
    assert len(found) >= 5
    for command in found:
        arguments = shlex.split(command.replace("--minutes 10", TINY))[1:]
        assert main(arguments) == 0, (command, capsys.readouterr())


@pytest.mark.usefixtures("beginners_folder")
def test_the_readmes_python_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(set(commands(HOW_TO))))
def test_every_command_of_the_documentation_is_one_that_exists(command, capsys):
    arguments = shlex.split(command, comments=True)[1:]
    options = [word for word in arguments if word.startswith("--")]
    verb = next(name for name in reference.VERBS if command.startswith(f"clearhead {name}"))
    told = reference.help_of(verb)
    assert all(option.split("=")[0] in told for option in options)


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"make ([a-z]+)", README)
    assert {"demo", "test"} <= set(named)
    assert all(f"\n{target}:" in makefile for target in named)


def test_what_the_readme_links_to_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert all((ROOT / link).exists() for link in links if "://" not in link), links
