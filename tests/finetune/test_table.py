import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.errors import ClearheadError
from clearhead.finetune import read_examples, text_of


def pair(row):
    return text_of(row, "text"), text_of(row, "label")


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode())
    return path


CONTENTS = {
    "a.tsv": 'label\ttext\nham\tOk "lar\nspam\tWin, now\n',
    "a.csv": 'label,text\r\nham,"Ok ""lar"\r\nspam,"Win, now"\r\n',
    "a.json": json.dumps(
        [{"label": "ham", "text": 'Ok "lar'}, {"label": "spam", "text": "Win, now"}]
    ),
    "a.jsonl": '{"label": "ham", "text": "Ok \\"lar"}\n\n{"label": "spam", "text": "Win, now"}\n',
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_gives_the_same_rows(tmp_path, name):
    path = write(tmp_path, name, CONTENTS[name])
    found = read_examples(path, pair, columns=("text", "label"))
    assert found.rows == [('Ok "lar', "ham"), ("Win, now", "spam")]
    assert found.n_skipped == 0
    assert len(found.sha256) == 64


def test_a_table_without_a_header_has_numbered_columns(tmp_path):
    path = write(tmp_path, "a.tsv", "ham\tOk\nspam\tWin\n")
    found = read_examples(path, lambda row: (row["2"], row["1"]), columns=("2", "1"))
    assert found.rows == [("Ok", "ham"), ("Win", "spam")]
    with pytest.raises(ClearheadError, match=r"no column 'text' but 'ham', 'Ok'.*numbers"):
        read_examples(path, pair, columns=("text", "label"))


BAD = {
    "a.tsv": ("label\ttext\nham\tOk\nspam\nham\tYes\n", "line 3: 1 columns"),
    "a.csv": ('label,text\nham,Ok\nspam,"a\nb"\nham, \nham,Yes\n', "line 5: 'text' is empty"),
    "a.json": ('[{"label": "ham", "text": "Ok"}, 3]', "row 2: it is no JSON object"),
    "a.jsonl": (
        '{"label": "ham", "text": "Ok"}\n{"label": "ham", "txt": "Ok"}\n',
        "line 2: it has no 'text'",
    ),
    "b.jsonl": ('{"label": "ham", "text": "Ok"}\n{"label": 1,\n', "line 2: not valid JSON"),
    "c.jsonl": ('{"label": "h", "text": "Ok"}\n{"label": "h", "text": 1}\n', "'text' is int"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_by_its_line_or_left_out_and_counted(tmp_path, name):
    content, message = BAD[name]
    path = write(tmp_path, name, content)
    with pytest.raises(ClearheadError) as caught:
        read_examples(path, pair)
    assert message in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    found = read_examples(path, pair, skip_bad=True)
    assert found.n_skipped == 1
    assert message in found.skipped[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x", "examples are read from"),
        ("a.json", "{}", "not a list"),
        ("a.json", "[", "line 1: not valid JSON"),
        ("a.json", "[]", "holds no row"),
        ("a.tsv", "", "holds no row"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    with pytest.raises(ClearheadError, match=message):
        read_examples(write(tmp_path, name, content), pair)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ClearheadError, match=r"no\.jsonl cannot be read"):
        read_examples(tmp_path / "no.jsonl", pair)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200), kind=st.sampled_from([".tsv", ".csv", ".json", ".jsonl"]))
def test_only_our_error_comes_out_of_any_bytes(tmp_path_factory, content, kind):
    path = tmp_path_factory.mktemp("fuzz") / f"a{kind}"
    path.write_bytes(content)
    try:
        found = read_examples(path, pair, skip_bad=True)
    except ClearheadError:
        return
    assert found.rows
