"""The notebook runs from top to bottom, and what it says comes from the run."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "complete_llm.ipynb"
MINUTES = re.compile(r"^MINUTES = 1\.0$", re.MULTILINE)
NUMBER = r"(\d\.\de[-+]\d+)"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_stored_without_results(notebook):
    assert not any(cell.outputs or cell.execution_count for cell in code(notebook))


def test_it_is_a_valid_notebook_for_any_python_3():
    stored = json.loads(NOTEBOOK.read_text())
    nbformat.validate(stored)  # the cells' ids with it
    assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
    assert stored["metadata"]["kernelspec"]["name"] == "python3"


def test_it_can_be_read_without_scrolling(notebook):
    assert max(len(line) for cell in notebook.cells for line in cell.source.splitlines()) <= 100
    assert max(len(cell.source.splitlines()) for cell in code(notebook)) <= 20


def test_its_links_lead_somewhere(notebook):
    links = re.findall(r"\]\(([^)]+)\)", "".join(cell.source for cell in notebook.cells))
    assert links
    assert all((NOTEBOOK.parent / link).exists() for link in links)


@pytest.fixture
def shortened(notebook):
    """The notebook with a few seconds of training, told at the end which Python it ran in."""
    found = [cell for cell in code(notebook) if MINUTES.search(cell.source)]
    assert len(found) == 1, "one cell must have the line 'MINUTES = 1.0', which is shortened here"
    found[0].source = MINUTES.sub("MINUTES = 0.1", found[0].source)
    asking = "import sys\nprint('ran in', sys.executable)"
    notebook.cells.append(nbformat.v4.new_code_cell(asking))
    return notebook


@pytest.fixture
def this_python(monkeypatch, tmp_path):
    """Let every kernel be this interpreter, whatever kernels the machine has installed."""
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # else jupyter_core warns
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # Threads that wait would otherwise take the cores from those that work.
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    import matplotlib.font_manager  # noqa: F401 - it makes its cache now, not in a cell
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = KernelSpec(argv=argv, display_name="this Python", language="python")
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: spec)


@pytest.mark.slow
@pytest.mark.usefixtures("this_python")
def test_it_runs_and_every_claim_holds(shortened, tmp_path):
    from nbclient import NotebookClient

    folder = tmp_path / "empty"
    folder.mkdir()
    client = NotebookClient(shortened, timeout=600, resources={"metadata": {"path": folder}})
    client.execute()  # an error in a cell is one here
    outputs = [output for cell in code(shortened) for output in cell.outputs]
    said = "".join(one.text for one in outputs if one.get("name") == "stdout")
    warned = [one.text for one in outputs if one.get("name") == "stderr"]
    pictures = [one for one in outputs if "image/png" in one.get("data", {})]
    assert f"ran in {sys.executable}\n" in said
    assert not warned
    assert not list(folder.iterdir()), "it leaves files behind"
    assert len(pictures) == 11
    differences = re.findall(rf"largest difference of a logit: {NUMBER}", said)
    assert len(differences) == 2
    assert all(float(difference) < 1e-4 for difference in differences)
    losses = [float(loss) for loss in re.findall(r"(\d\.\d\d) nats", said)]  # ln V is the first
    assert losses[-1] < losses[0]
    proofs = re.findall(rf"− \S.*?: {NUMBER}", said)
    assert len(proofs) == 6
    assert all(float(proof) < 1e-3 for proof in proofs)
    assert "h1 − h3: 8 modes of strength 1.41, of which the heads have [0.  0.5 0.  0.5]" in said
    (sums,) = re.findall(r"shares of each layer, summed: tensor\(\[(.*?)\]\)", said)
    assert [float(one) for one in sums.split(",")] == pytest.approx([1.0] * 4, abs=1e-3)
