"""The notebook runs from top to bottom, and what it says comes from the run."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "complete_llm.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_stored_without_results(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 20
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_its_links_lead_somewhere(notebook):
    links = re.findall(r"\]\(([^)]+)\)", "".join(cell.source for cell in notebook.cells))
    assert links
    assert all((NOTEBOOK.parent / link).exists() for link in links)


@pytest.mark.slow
def test_it_runs_and_every_claim_holds(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from nbclient import NotebookClient

    here = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = KernelSpec(argv=here, display_name="this Python", language="python")
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: spec)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (place,) = [cell for cell in cells if "MINUTES = 1.0" in cell.source]
    place.source = place.source.replace("MINUTES = 1.0", "MINUTES = 0.1")
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    said = "".join(one["text"] for one in outputs if one.get("name") == "stdout")
    pictures = [one for one in outputs if "image/png" in one.get("data", {})]
    assert len(pictures) == 6
    assert not [one for one in outputs if one.get("name") == "stderr"]
    difference = float(re.search(r"largest difference of a logit: (\S+)", said)[1])
    assert difference < 1e-4
    proofs = re.findall(r"− \S+: (\d\.\de[-+]\d+)", said)
    assert len(proofs) >= 4
    assert all(float(proof) < 1e-3 for proof in proofs)
    assert "8 modes of strength 1.414 read 2.0 heads: mass [0.  0.5 0.  0.5]" in said
