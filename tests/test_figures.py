"""The pictures and numbers of docs/out_proj.md come from docs/scripts/figures.py."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs" / "scripts"))
import figures  # noqa: E402

PAGE = (ROOT / "docs/out_proj.md").read_text()
WITHOUT_TRAINING = {"example.txt", "gpt2.txt", "keys.txt", "strongest.txt"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What can be made without a trained model."""
    folder = tmp_path_factory.mktemp("figures")
    figures.made_up(folder)
    figures.draw_gpt2(folder, json.loads((figures.FOLDER / "gpt2.json").read_text()))
    return folder


@pytest.mark.parametrize("name", sorted(WITHOUT_TRAINING))
def test_what_the_page_quotes_is_what_the_code_says_now(made, name):
    assert (made / name).read_text() == (figures.FOLDER / name).read_text(), "run: make docs"


def test_the_page_shows_what_was_made_and_nothing_else():
    named = set(re.findall(r"images/out_proj/([a-z0-9]+\.(?:png|txt))", PAGE))
    kept = {path.name for path in figures.FOLDER.iterdir()} - {"gpt2.json"}
    assert named == kept


@pytest.mark.slow
def test_every_picture_is_made(tmp_path):
    (tmp_path / "gpt2.json").write_bytes((figures.FOLDER / "gpt2.json").read_bytes())
    figures.main(steps=2, folder=tmp_path)
    made, kept = ({path.name for path in folder.iterdir()} for folder in (tmp_path, figures.FOLDER))
    assert made == kept
